"""Physical removal of channels, from the declaration alone."""

from typing import Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from .groups import ChannelGroup, Slice, attention_groups, channel_groups, tied_dimensions
from .layers import remove_layers

# (parameter, size before, {dimension: positions that stay}, or None: it is gone with its layer)
Cuts = List[Tuple[nn.Parameter, torch.Size, Optional[Dict[int, Tensor]]]]

_WIDTH_ATTRIBUTES = {
    (nn.Linear, "weight", 0): "out_features",
    (nn.Linear, "weight", 1): "in_features",
    (nn.Embedding, "weight", 1): "embedding_dim",
}


def _note_width(piece: Slice, width: int) -> None:
    """Keep torch's own records (``in_features`` and the like) true."""
    for (kind, name, dim), attribute in _WIDTH_ATTRIBUTES.items():
        if isinstance(piece.module, kind) and (piece.name, piece.dim) == (name, dim):
            setattr(piece.module, attribute, width)


def select_positions(tensor: Tensor, positions: Mapping[int, Tensor]) -> Tensor:
    """The entries of ``tensor`` at ``positions`` of each dimension."""
    for dim, kept in positions.items():
        tensor = tensor.index_select(dim, kept.to(tensor.device))
    return tensor.contiguous()


def _give_data(parameter: nn.Parameter, data: Tensor) -> None:
    """Give a parameter data of another shape, and no gradient.

    Its node of the backward pass knows the old shape, and lives on where a graph is kept
    (torch.compile keeps some). PyTorch makes a new one when the type changes.
    """
    other = torch.float32 if data.dtype == torch.float64 else torch.float64
    parameter.data = data.new_empty(0, dtype=other)
    parameter.data = data
    parameter.grad = None


@torch.no_grad()
def cut(model: nn.Module, keep: Mapping[str, Tensor]) -> Cuts:
    """Remove all channels but ``keep`` from a model, in place.

    Parameters stay the same objects (ties, optimizers and hooks go on holding
    them); only their data shrinks. Outputs do not change where the removed
    channels' connectivity is 0.

    Args:
        keep: ascending positions that stay, per group that loses channels.

    Returns:
        What was cut, for :func:`cut_optimizer_state`.

    Raises:
        RuntimeError: a module's heads would be no longer alike; nothing is cut.
    """
    groups = channel_groups(model)
    ids = {}
    for name, kept in keep.items():
        present = groups[name].channel_ids
        ids[name] = present[kept.to(present.device)]
    _check_heads(groups, ids)
    cuts: Cuts = [(p, p.shape, None) for p in remove_layers(groups, keep)]
    for parameter, dims in tied_dimensions(groups):
        positions = {d: keep[g.name] for d, g in dims.items() if g.name in keep}
        if positions:
            cuts.append((parameter, parameter.shape, positions))
            _give_data(parameter, select_positions(parameter.data, positions))
    for name in keep.keys() & groups.keys():
        group = groups[name]
        group.resize(ids[name])
        for piece in group.slices:
            _note_width(piece, group.width)
    channel_groups(model)  # layers have other numbers, and so names, where some are gone
    return cuts


@torch.no_grad()
def cut_optimizer_state(optimizer: torch.optim.Optimizer, cuts: Cuts) -> None:
    """Cut the optimizer's per-weight state (Adam's moments) like the weights.

    Parameters that are gone with their layers leave the optimizer.
    """
    gone = {parameter for parameter, _, positions in cuts if positions is None}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p not in gone]
    for parameter in gone:
        optimizer.state.pop(parameter, None)
    for parameter, shape, positions in cuts:
        if positions is None:
            continue
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if torch.is_tensor(value) and value.shape == shape:
                state[key] = select_positions(value, positions)


@torch.no_grad()
def resize_to(model: nn.Module, channel_ids: Mapping[str, Tensor]) -> None:
    """Give a model the widths of a cut checkpoint before its weights are loaded.

    Parameters that change shape are left uninitialised.

    Args:
        channel_ids: the ``channel_ids`` buffer of every group.

    Raises:
        RuntimeError: a module's heads are not alike.
    """
    groups = channel_groups(model)
    _check_heads(groups, channel_ids)
    changed = {n for n, ids in channel_ids.items() if not _same(groups[n], ids)}
    for parameter, dims in tied_dimensions(groups):
        shape = list(parameter.shape)
        for dim, group in dims.items():
            shape[dim] = channel_ids[group.name].numel()
        if list(parameter.shape) != shape:
            _give_data(parameter, parameter.data.new_empty(shape))
    for name in changed:
        groups[name].resize(channel_ids[name])
        for piece in groups[name].slices:
            _note_width(piece, groups[name].width)


def _check_heads(groups: Mapping[str, ChannelGroup], channel_ids: Mapping[str, Tensor]) -> None:
    """The groups of an attention module must have the same heads with these channels."""
    for pair in attention_groups(groups):
        heads = [g.heads_of(channel_ids.get(g.name, g.channel_ids)) for g in pair]
        if not torch.equal(*heads):
            names, (queries, values) = [g.name for g in pair], map(Tensor.tolist, heads)
            raise RuntimeError(
                f"{names[0]} has heads {queries}, {names[1]} has {values}: a head is in "
                "both or in none"
            )


def _same(group: ChannelGroup, ids: Tensor) -> bool:
    return torch.equal(group.channel_ids.cpu(), ids.cpu().to(torch.int32))
