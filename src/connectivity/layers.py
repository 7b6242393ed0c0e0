"""Whole layers as channels: one group for each stack of layers."""

from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from .groups import ChannelGroup, channel_groups


class LayerGroup(ChannelGroup):
    """The layers of an encoder or decoder, one channel each.

    Layer l with connectivity g makes x + g·(F(x) - x) of its input x, where F is all
    of it, residual sums and norms included. Everything in a layer, weights and other
    groups, lives and dies with its channel.

    Args:
        stack: holds the layers; those that are cut are taken out of it.

    Attributes:
        layers: the layer of each channel.
    """

    def __init__(self, stack: nn.ModuleList):
        super().__init__("layer", len(stack))
        self._stack = (stack,)  # in a tuple: the encoder or decoder has it
        self.layers: List[nn.Module] = list(stack.children())
        self._levels: Dict[int, float] = {}  # connectivities other than 1, off the device
        self._shrinking: Tuple[Optional[Tensor], List[int]] = (None, [])

    def _level(self, layer: nn.Module) -> float:
        return self._levels.get(self.layers.index(layer), 1.0) if self.gated else 1.0

    def skips(self, layer: nn.Module) -> bool:
        """Whether a layer passes its input on and need not be computed."""
        return not self.connectivity.requires_grad and self._level(layer) == 0

    def blend(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x + g·(y - x) of a layer's input x and what it computes from it, y, ``[T, B, D]``.

        y itself where the layer's connectivity g is 1.
        """
        number = self.layers.index(layer)
        if self.listener is not None:
            gates = self.measure(x.new_ones(*x.shape[:-1], self.width))
            return x + gates[..., number : number + 1] * (y - x)
        if self._level(layer) == 1 and not self.connectivity.requires_grad:
            return y
        return x + self.connectivity[number].to(y.dtype) * (y - x)

    def shrink(self, positions: Tensor, connectivity: float) -> None:
        super().shrink(positions, connectivity)
        if positions is not self._shrinking[0]:  # asked of a GPU once an iteration
            self._shrinking = positions, positions.tolist()
        level = torch.tensor(connectivity, dtype=self.connectivity.dtype).item()
        self._levels = dict.fromkeys(self._shrinking[1], level)

    def refresh(self) -> None:
        super().refresh()
        self._levels = {n: c for n, c in enumerate(self.connectivity.tolist()) if c != 1}

    def resize(self, channel_ids: Tensor) -> None:
        super().resize(channel_ids)
        self._levels, self._shrinking = {}, (None, [])

    def keep_layers(self, positions: Sequence[int]) -> List[nn.Module]:
        """Take the other layers out of the stack, and return them."""
        kept = set(positions)
        gone = [layer for n, layer in enumerate(self.layers) if n not in kept]
        self.layers = [self.layers[n] for n in sorted(kept)]
        (stack,) = self._stack
        del stack[:]
        stack.extend(self.layers)
        return gone


def layer_groups(groups: Mapping[str, ChannelGroup]) -> Dict[str, LayerGroup]:
    """The groups of whole layers among others."""
    return {name: group for name, group in groups.items() if isinstance(group, LayerGroup)}


def positions_without(group: ChannelGroup, positions: Tensor) -> Tensor:
    """The positions of a group's other channels, ascending, on the CPU."""
    others = torch.ones(group.width, dtype=torch.bool)
    others[positions.cpu()] = False
    return others.nonzero().squeeze(1)


def layers_at(
    groups: Mapping[str, ChannelGroup], positions: Mapping[str, Tensor]
) -> List[nn.Module]:
    """The layers at these positions of each group of layers."""
    return [
        group.layers[number]
        for name, group in layer_groups(groups).items()
        for number in positions.get(name, torch.empty(0, dtype=torch.long)).tolist()
    ]


def remove_layers(
    groups: Dict[str, ChannelGroup], keep: Mapping[str, Tensor]
) -> List[nn.Parameter]:
    """Take whole layers out of a model.

    Args:
        groups: all groups of the model; those within the removed layers go.
        keep: positions of the layers that stay, per group that loses some.

    Returns:
        The removed layers' parameters.
    """
    gone: List[nn.Module] = []
    for name, stack in layer_groups(groups).items():
        if name in keep:
            gone += stack.keep_layers(keep[name].tolist())
    modules = {module for layer in gone for module in layer.modules()}
    for name, group in list(groups.items()):
        if group in modules:
            del groups[name]
        else:
            group.slices = [piece for piece in group.slices if piece.module not in modules]
    return [parameter for layer in gone for parameter in layer.parameters()]


def resize_depth(model: nn.Module, channel_ids: Mapping[str, Tensor]) -> None:
    """Give a model as many layers as a cut checkpoint has, before its weights are loaded.

    Args:
        channel_ids: the ``channel_ids`` buffer of each group of layers.

    Raises:
        RuntimeError: the checkpoint has more layers than the model.
    """
    groups = channel_groups(model)
    for name, ids in channel_ids.items():
        if len(ids) > groups[name].width:
            raise RuntimeError(
                f"{name}: the checkpoint has {len(ids)} layers, the model {groups[name].width}"
            )
    remove_layers(groups, {name: torch.arange(len(ids)) for name, ids in channel_ids.items()})
    for name, ids in channel_ids.items():
        groups[name].resize(ids)


def widths_in_uncut(model: nn.Module) -> Dict[str, List[int]]:
    """Width of every group now and in the uncut model, by its name *there*.

    Groups within a layer that is gone have width 0.
    """
    groups = channel_groups(model)
    inside = {
        id(module)
        for group in layer_groups(groups).values()
        for layer in group.layers
        for module in layer.modules()
    }
    widths = {n: [g.width, g.original_width] for n, g in groups.items() if id(g) not in inside}
    names = {id(module): name for name, module in model.named_modules()}
    for group in layer_groups(groups).values():
        stack = names[id(group._stack[0])]
        present = dict(zip(group.channel_ids.tolist(), group.layers))
        for number in range(group.original_width):
            for name, part in channel_groups(present.get(number, group.layers[0])).items():
                width = part.width if number in present else 0
                widths[f"{stack}.{number}.{name}"] = [width, part.original_width]
    channel_groups(model)  # names are those in the whole model again
    return widths
