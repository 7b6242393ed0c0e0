"""Exact freezing of the weights of selected channels."""

from typing import Dict, List, Mapping

import torch
from torch import Tensor, nn

from .groups import channel_groups, tied_dimensions


class Freezer:
    """Keeps every weight of the removed channels bit-identical while the rest trains.

    Gradients of frozen weights are zeroed before the gradient norm is taken, so
    they neither count in clipping nor move Adam's moments; after the step the
    weights are written back, which undoes weight decay under any optimizer.

    Args:
        model: the model as it was when the channels were selected.
        removed: positions of the selected channels per group.
    """

    def __init__(self, model: nn.Module, removed: Mapping[str, Tensor]):
        self.frozen = []  # (parameter, mask of frozen weights, their values)
        # the same by dimension: 1 at frozen channels, else 0, broadcasting over the rest
        self._channels: List[List[Tensor]] = []
        for parameter, dims in tied_dimensions(channel_groups(model)):
            channels = [
                self._indicator(parameter, dim, removed[group.name])
                for dim, group in dims.items()
                if group.name in removed and len(removed[group.name])
            ]
            if channels and parameter.is_floating_point():  # adapters tie positions too
                mask = torch.zeros_like(parameter, dtype=torch.bool)
                for indicator in channels:
                    mask |= indicator.bool()
                self.frozen.append((parameter, mask, parameter.detach().clone()))
                self._channels.append(channels)

    @staticmethod
    def _indicator(parameter: Tensor, dim: int, positions: Tensor) -> Tensor:
        size = [1] * parameter.dim()
        size[dim] = parameter.shape[dim]
        indicator = torch.zeros(size, dtype=parameter.dtype, device=parameter.device)
        return indicator.index_fill_(dim, positions.to(indicator.device), 1)

    # Arithmetic with the channels' indicators takes half the time of filling and
    # selecting under a mask, and is as exact: it multiplies by 0 and 1 only.

    @torch.no_grad()
    def mask_gradients(self) -> None:
        for (parameter, _, _), channels in zip(self.frozen, self._channels):
            if parameter.grad is not None:
                for indicator in channels:
                    parameter.grad.mul_(1 - indicator)

    @torch.no_grad()
    def clear_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero what the optimizer remembers of the frozen weights (Adam's moments)."""
        for parameter, mask, _ in self.frozen:
            for value in optimizer.state.get(parameter, {}).values():
                if torch.is_tensor(value) and value.shape == mask.shape:
                    value.masked_fill_(mask, 0)

    @torch.no_grad()
    def restore(self) -> None:
        for (parameter, _, values), channels in zip(self.frozen, self._channels):
            for indicator in channels:
                parameter.lerp_(values, indicator)
