"""The rows of a checkpoint that belong to types: selected, added, counted."""

from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ..checkpoint_utils import damage, load_checkpoint, safe_pickle
from ..checkpoints.pretrained import read_model_config
from ..connectivity.groups import shrinking_in
from ..errors import UserError
from ..files import UNREADABLE
from ..sparsity import is_sparse_file, parameter_name

State = Dict[str, Any]

# Weights of fairseq's Transformer with a row for every type, and whose types.
TABLES = {
    "encoder.embed_tokens.weight": 0,
    "decoder.embed_tokens.weight": 1,
    "decoder.output_projection.weight": 1,
    "decoder.embed_out": 1,  # its name in old checkpoints
}
# What is saved with the weights and is none of them.
_BUFFERS = (".connectivity", ".channel_ids", ".version", "._float_tensor")
# Of the state of training, what another run needs: the epoch, and whether its stage is done.
_KEPT_EXTRA_STATE = ("train_iterator", "SRPTranslationTask")


def map_checkpoint(path: str, option: str, trust: bool = False) -> State:
    """A checkpoint whose tensors stay in the file until they are needed.

    Files that torch can't map into memory are read: those of old versions, sparse ones,
    and those that need trust.

    Raises:
        UserError: missing, damaged, or holding objects off the allow-list.
    """
    try:
        if not is_sparse_file(path) and damage(path) is None:
            state = safe_pickle.load(path, mmap=True)
            if isinstance(state, dict) and "model" in state and state.get("cfg"):
                return state
    except UNREADABLE:
        pass  # said below
    return load_checkpoint(path, option, trust)


def share_one_table(state: State) -> bool:
    """Whether source and target have one table of embeddings."""
    names = [name for name in TABLES if name.endswith("embed_tokens.weight")]
    first, second = (state["model"].get(name) for name in names)
    if first is None or second is None:
        return False
    same = first.data_ptr() == second.data_ptr() and first.shape == second.shape
    return same or bool(read_model_config(state).share_all_embeddings)


def check_selectable(state: State, origin: str) -> None:
    """Refuse checkpoints whose rows can't be selected.

    Args:
        origin: option and file of the checkpoint, for messages.

    Raises:
        UserError: a stage is under way, or adapters change the output projection.
    """
    weights = state["model"]
    group = shrinking_in(weights)
    if group is not None:
        raise UserError(
            f"{origin}: a pruning stage is under way, channels of {group} are shrinking; let it "
            "come to its end"
        )
    module = "decoder.output_projection"
    parts = [name for name in weights if name.startswith(f"{module}.")]
    if parts and f"{module}.weight" not in parts:
        raise UserError(
            f"{origin}: its output projection has adapters ({parts[0]}), with rows for types "
            "inside; fuse them first (finetuning.py --pretrained-model does)"
        )


def change_rows(state: State, change: Callable[[Tensor, int], Tensor]) -> State:
    """A checkpoint with other rows in its tables, ready to be saved.

    The optimizer's state is left out; tables that were one stay one; everything else is
    the given state's own.

    Args:
        change: makes the new table ``[N', D]`` of an old one ``[N, D]`` and the side
            whose types they are, 0 source, 1 target.
    """
    weights = dict(state["model"])
    made: Dict[Any, Tensor] = {}
    for name, side in TABLES.items():
        table = weights.get(name)
        if table is None:
            continue
        place = (table.data_ptr(), table.shape, table.stride())
        if place not in made:
            made[place] = change(table, side)
        weights[name] = made[place]
    new = {key: value for key, value in state.items() if key != "last_optimizer_state"}
    if OmegaConf.is_config(state.get("cfg")):
        # a plain container, as fairseq saves it: omegaconf's own classes would be a pickle
        new["cfg"] = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
    extra = state.get("extra_state") or {}
    new["extra_state"] = {key: extra[key] for key in _KEPT_EXTRA_STATE if key in extra}
    _change_masks(new["extra_state"], state["model"], change)
    return {**new, "model": weights}


def _change_masks(
    extra: Dict[str, Any], weights: Mapping[str, Tensor], change: Callable[[Tensor, int], Tensor]
) -> None:
    """The masks of --sparsity-config for tables get the tables' rows."""
    task = extra.get("SRPTranslationTask") or {}
    pruning = task.get("weight_pruning")
    if not pruning or "pruners" not in pruning:
        return
    pruners = []
    for pruner in pruning["pruners"]:
        masks = dict(pruner["masks"])
        for layer, mask in masks.items():
            name = parameter_name(layer)
            if name in TABLES and name in weights:
                masks[layer] = change(mask, TABLES[name])
        pruners.append({**pruner, "masks": masks})
    extra["SRPTranslationTask"] = {**task, "weight_pruning": {**pruning, "pruners": pruners}}


def selected(kept: Tuple[np.ndarray, np.ndarray]) -> Callable[[Tensor, int], Tensor]:
    """For :func:`change_rows`: the rows of the types that stay.

    Args:
        kept: their numbers, of source and target.
    """
    numbers = tuple(map(torch.from_numpy, kept))
    return lambda table, side: table.index_select(0, numbers[side])


def count_parameters(state: State) -> int:
    """Parameters of a checkpoint's model, tied ones once."""
    places = {}
    for name, value in state["model"].items():
        if value.is_floating_point() and not name.endswith(_BUFFERS):
            places[value.data_ptr(), value.shape, value.stride()] = value.numel()
    return sum(places.values())


def table_sizes(state: State) -> List[Tuple[int, int]]:
    """(side, width) of every table, tied ones once."""
    found = {}
    for name, side in TABLES.items():
        table: Optional[Tensor] = state["model"].get(name)
        if table is not None:
            found.setdefault((table.data_ptr(), table.shape), (side, table.shape[1]))
    return list(found.values())


def bytes_per_parameter(state: State) -> int:
    return state["model"]["encoder.embed_tokens.weight"].element_size()
