"""Stochastic gradient descent that updates only stored weights."""

from numbers import Real
from typing import Any, Callable, Iterable, Optional

import torch
from torch import Tensor

from ..errors import SparsityError


class SGD(torch.optim.Optimizer):
    """``torch.optim.SGD`` for pruned models, with dense layers or layers that store values.

    Of a dense weight (a parameter with two dimensions or more) the entries that are
    exactly zero are taken as pruned: they stay zero, and so does their momentum. A
    layer that is zero before training, as some are initialized, would never learn: set
    ``keep_zeros=False`` for its parameter group. Biases and stored values are always
    updated. The steps are those of ``torch.optim.SGD`` with gradients that are zero
    where the weight is.

    Args:
        params: parameters or groups of them; a group may override each setting.
        lr: learning rate.
        momentum: of the gradients; the buffer begins with the first gradient.
        weight_decay: times the weight, added to its gradient.
        nesterov: look ahead along the momentum.
        keep_zeros: zero entries of dense weights stay zero.

    Raises:
        SparsityError: a setting outside of its range.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        keep_zeros: bool = True,
    ):
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "keep_zeros": keep_zeros,
        }
        super().__init__(params, settings)

    def add_param_group(self, param_group: dict) -> None:
        given = {**self.defaults, **param_group}
        for name in ("lr", "momentum", "weight_decay"):
            number = isinstance(given[name], (Real, Tensor))
            if not number or not given[name] >= 0:
                raise SparsityError(f"{name} = {given[name]}: must be a number of 0 or more")
        if given["nesterov"] and given["momentum"] == 0:
            raise SparsityError("nesterov = True: needs a momentum above 0")
        super().add_param_group(param_group)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a state of torch.optim.SGD lacks keep_zeros
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """One update of all parameters that have a gradient.

        Args:
            closure: computes the loss anew, with gradients.

        Returns:
            The closure's loss, if one is given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        if gradient.is_sparse:
            raise SparsityError("a gradient is a sparse tensor; make its layer with sparse=False")
        pruned = None
        if group["keep_zeros"] and parameter.dim() > 1:
            pruned = parameter == 0
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        if pruned is not None:
            gradient = gradient.masked_fill(pruned, 0)
        momentum = group["momentum"]
        if momentum:
            state = self.state[parameter]
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = state["momentum_buffer"] = gradient.clone()
            else:
                buffer.mul_(momentum).add_(gradient)
                if pruned is not None:
                    # pruned since the last step
                    buffer.masked_fill_(pruned, 0)
            if group["nesterov"]:
                gradient = gradient.add(buffer, alpha=momentum)
            else:
                gradient = buffer
        parameter.add_(gradient, alpha=-group["lr"])
