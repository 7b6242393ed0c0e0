"""Exact freezing of the weights of selected channels."""

from typing import Dict, Iterable, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from .groups import channel_groups, tied_dimensions
from .layers import layers_at


class Freezer:
    """Keeps every weight of shrinking channels bit-identical while the rest trains.

    Under any optimizer: :meth:`mask_gradients` before the gradient norm is taken, so
    that frozen weights neither count in clipping nor move Adam's moments, and
    :meth:`restore` after the step, which undoes weight decay. An optimizer that
    leaves frozen weights alone by itself asks for :meth:`mask` and :meth:`live_norm`.

    Args:
        model: the model as it was when the channels were selected.
        shrinking: positions of the selected channels per group.
    """

    def __init__(self, model: nn.Module, shrinking: Mapping[str, Tensor]):
        # by dimension: 0 at frozen channels, else 1, broadcasting over the rest
        self._live: Dict[nn.Parameter, Dict[int, Tensor]] = {}
        self._values: Optional[List[Tensor]] = None
        self._masks: List[Tensor] = []  # on GPUs: 1 at frozen weights, else 0
        groups = channel_groups(model)
        for parameter, dims in tied_dimensions(groups):
            live = {
                dim: self._indicator(parameter, dim, shrinking[group.name])
                for dim, group in dims.items()
                if group.name in shrinking and len(shrinking[group.name])
            }
            if live and parameter.is_floating_point():  # adapters tie positions too
                self._live[parameter] = live
        for layer in layers_at(groups, shrinking):
            for parameter in layer.parameters():
                if parameter.is_floating_point():
                    everything = torch.arange(len(parameter))
                    self._live[parameter] = {0: self._indicator(parameter, 0, everything)}

    @staticmethod
    def _indicator(parameter: Tensor, dim: int, positions: Tensor) -> Tensor:
        size = [1] * parameter.dim()
        size[dim] = parameter.shape[dim]
        indicator = torch.ones(size, dtype=parameter.dtype, device=parameter.device)
        return indicator.index_fill_(dim, positions.to(indicator.device), 0)

    @property
    def parameters(self) -> List[nn.Parameter]:
        """The parameters of which some weights are frozen."""
        return list(self._live)

    def mask(self, parameter: nn.Parameter) -> Tensor:
        """Where a parameter is frozen: bool, of its shape."""
        mask = torch.zeros_like(parameter, dtype=torch.bool)
        for live in self._live[parameter].values():
            mask |= live == 0
        return mask

    @property
    def frozen(self) -> List[Tuple[nn.Parameter, Tensor, Tensor]]:
        """(parameter, mask of its frozen weights, what they are to be) of each."""
        values = self._values or [parameter.detach() for parameter in self._live]
        return [(p, self.mask(p), v) for p, v in zip(self._live, values)]

    # Arithmetic with the channels' indicators takes half the time of filling and
    # selecting under a mask, and is as exact: it multiplies by 0 and 1 only. A GPU
    # waits for every operator to be called: there, masks of the weights' own shapes
    # let one operator see to all of them.

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of frozen weights; the first time, remember the weights."""
        if self._values is None:
            self._values = [parameter.detach().clone() for parameter in self._live]
            if all(parameter.is_cuda for parameter in self._live):
                self._masks = [self.mask(parameter).to(parameter.dtype) for parameter in self._live]
        if self._masks:
            present = [(p.grad, m) for p, m in zip(self._live, self._masks) if p.grad is not None]
            if present:
                gradients, masks = zip(*present)
                torch._foreach_addcmul_(gradients, gradients, masks, value=-1)
            return
        for parameter, dims in self._live.items():
            if parameter.grad is not None:
                for live in dims.values():
                    parameter.grad.mul_(live)

    @torch.no_grad()
    def live_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """L2 norm of the gradients of live weights of some of :attr:`parameters`.

        Not finite if any element of a gradient is not, frozen or live: 0 · ∞ is NaN.
        """
        norms, of_rows, live_rows = [], [], []
        for parameter in parameters:
            assert parameter.grad is not None
            rest, rows = parameter.grad, None
            for dim, live in self._live[parameter].items():
                if dim:
                    rest = rest * live
                else:
                    rows = live.flatten()
            if rows is None:
                norms.append(torch.linalg.vector_norm(rest))
                continue
            if rest.dim() > 1:  # a number for every row, to leave out rows for free
                rest = torch.linalg.vector_norm(rest, dim=tuple(range(1, rest.dim())))
            of_rows.append(rest)
            live_rows.append(rows)
        if of_rows:
            rest = torch.cat(of_rows) * torch.cat(live_rows)
            norms.append(torch.linalg.vector_norm(rest))
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    @torch.no_grad()
    def scale_live(self, parameter: nn.Parameter, factor: float) -> None:
        """Multiply the weights of a parameter that are not frozen."""
        first, *others = self._live[parameter].values()
        scaled = parameter * torch.full_like(first, factor).masked_fill_(first == 0, 1)
        for live in others:
            scaled = torch.lerp(parameter, scaled, live)
        parameter.copy_(scaled)

    @torch.no_grad()
    def clear_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero what the optimizer remembers of the frozen weights (Adam's moments)."""
        for parameter in self._live:
            mask = self.mask(parameter)
            for value in optimizer.state.get(parameter, {}).values():
                if torch.is_tensor(value) and value.shape == mask.shape:
                    value.masked_fill_(mask, 0)

    @torch.no_grad()
    def restore(self) -> None:
        """Write frozen weights back, if their gradients were masked."""
        if self._masks:
            assert self._values is not None  # remembered with the masks
            torch._foreach_lerp_(list(self._live), self._values, self._masks)
            return
        for (parameter, dims), values in zip(self._live.items(), self._values or ()):
            for live in dims.values():
                parameter.lerp_(values, 1 - live)
