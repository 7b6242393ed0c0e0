"""Exact freezing of the weights of selected channels."""

from typing import Mapping

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
        for parameter, dims in tied_dimensions(channel_groups(model)):
            mask = torch.zeros_like(parameter, dtype=torch.bool)
            for dim, group in dims.items():
                if group.name in removed:
                    mask.index_fill_(dim, removed[group.name].to(mask.device), True)
            if mask.any():
                self.frozen.append((parameter, mask, parameter.detach().clone()))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        for parameter, mask, _ in self.frozen:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0)

    @torch.no_grad()
    def clear_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero what the optimizer remembers of the frozen weights (Adam's moments)."""
        for parameter, mask, _ in self.frozen:
            for value in optimizer.state.get(parameter, {}).values():
                if torch.is_tensor(value) and value.shape == mask.shape:
                    value.masked_fill_(mask, 0)

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, mask, values in self.frozen:
            torch.where(mask, values, parameter.data, out=parameter.data)
