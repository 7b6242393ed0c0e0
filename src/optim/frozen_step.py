"""AdamW's step beside frozen weights, at the price of the plain step."""

import math
from dataclasses import dataclass
from typing import Any, Dict, Optional

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ..connectivity.freeze import Freezer

OUTSTANDING = "outstanding_decay"
# weight decay waits until it amounts to this share of the weights
LARGEST_OUTSTANDING = 2.0**-10


@dataclass
class _Moments:
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    outstanding: float  # factor that the live weights are still to be multiplied by


class FrozenStep:
    """Steps an AdamW whose frozen weights stay as they are, bit for bit.

    A step is bound by the memory that it reads and writes. Masking the gradients
    before it and restoring the weights after it costs as much again, so neither is
    done: the second moment of a frozen weight is made infinite. What AdamW adds to
    the weight is divided by its root: exactly 0, whatever the gradient. (A weight
    of -0 may become 0.)

    Weight decay would reach frozen weights, so the kernel is told of none for
    parameters that have some. Their live weights are multiplied by the decay of
    many steps at once, when it amounts to 2^-10 of them; with a learning rate and
    a decay so large that one step's does, in every step, as AdamW has it. (One
    step's is often no more than 1e-8, which rounds to nothing in float32.)

    The moments of parameters with frozen weights are not in the optimizer's state
    meanwhile; :meth:`state_dict` and :meth:`release` put them there, those of
    frozen weights as 0.

    Args:
        optimizer: over float32 parameters on the CPU, see :meth:`suits`.
        freezer: says which weights are frozen.
    """

    def __init__(self, optimizer: torch.optim.AdamW, freezer: Freezer):
        self.freezer = freezer
        self._optimizer = optimizer
        self._frozen = set(freezer.parameters)
        self._moments: Dict[nn.Parameter, _Moments] = {}

    @staticmethod
    def suits(optimizer: torch.optim.AdamW) -> bool:
        """Whether an optimizer can be stepped so; beta2 0 would turn ∞ into NaN."""
        return all(
            group["betas"][1] > 0
            and all(p.is_cpu and p.dtype == torch.float32 for p in group["params"])
            for group in optimizer.param_groups
        )

    @torch.no_grad()
    def step(self) -> None:
        """One step of AdamW from the gradients that are there, masked or not."""
        for group in self._optimizer.param_groups:
            decay = group["lr"] * group["weight_decay"]
            lists = {True: ([], [], [], [], []), False: ([], [], [], [], [])}
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                frozen = parameter in self._frozen
                moments = self._moments.get(parameter) or self._take(parameter)
                if frozen and decay:
                    moments.outstanding *= 1 - decay
                    if 1 - moments.outstanding >= LARGEST_OUTSTANDING:
                        self._decay(parameter, moments)
                tensors = moments.exp_avg, moments.exp_avg_sq, moments.step
                for row, tensor in zip(lists[frozen], (parameter, gradient, *tensors)):
                    row.append(tensor)
            for frozen, (parameters, gradients, *moments, steps) in lists.items():
                adamw(
                    parameters,
                    gradients,
                    *moments,
                    [],
                    steps,
                    foreach=False,
                    fused=True,
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=0.0 if frozen else group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )

    def _take(self, parameter: nn.Parameter) -> _Moments:
        """Take the moments of a parameter out of the optimizer's state."""
        state = self._optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        if parameter not in self._frozen:
            return _Moments(state["exp_avg"], state["exp_avg_sq"], state["step"], 1.0)
        moments = self._moments[parameter] = _Moments(
            state.pop("exp_avg"),
            state.pop("exp_avg_sq"),
            state["step"],
            state.pop(OUTSTANDING, 1.0),
        )
        mask = self.freezer.mask(parameter)
        moments.exp_avg.masked_fill_(mask, 0)
        moments.exp_avg_sq.masked_fill_(mask, math.inf)
        return moments

    def _decay(self, parameter: nn.Parameter, moments: _Moments) -> None:
        self.freezer.scale_live(parameter, moments.outstanding)
        moments.outstanding = 1.0

    @torch.no_grad()
    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn=None) -> Tensor:
        """fairseq's ``clip_grad_norm_`` over the gradients of live weights.

        Returns:
            Their norm before clipping.
        """
        parameters = [
            parameter
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not parameters:
            return torch.tensor(0.0)
        norms = [
            self.freezer.live_norm(parameter)
            if parameter in self._frozen
            else torch.linalg.vector_norm(parameter.grad)
            for parameter in parameters
        ]
        total = torch.linalg.vector_norm(torch.stack(norms))
        if aggregate_norm_fn is not None:
            total = aggregate_norm_fn(total)
        if max_norm > 0:
            coefficient = (max_norm / (total + 1e-6)).clamp_(max=1)
            torch._foreach_mul_([p.grad for p in parameters], coefficient)
        return total

    def state_dict(self) -> Dict[str, Any]:
        """The optimizer's, with the moments of all parameters in it."""
        packed = self._optimizer.state_dict()
        every = [p for group in self._optimizer.param_groups for p in group["params"]]
        for position, parameter in enumerate(every):
            moments = self._moments.get(parameter)
            if moments is not None:
                mask = self.freezer.mask(parameter)
                packed["state"][position] = {
                    **packed["state"][position],
                    "exp_avg": moments.exp_avg.masked_fill(mask, 0),
                    "exp_avg_sq": moments.exp_avg_sq.masked_fill(mask, 0),
                    OUTSTANDING: moments.outstanding,
                }
        return packed

    @torch.no_grad()
    def release(self) -> None:
        """Give everything back to the optimizer: moments, and decay to the weights."""
        for parameter, moments in self._moments.items():
            mask = self.freezer.mask(parameter)
            self._decay(parameter, moments)
            self._optimizer.state[parameter].update(
                exp_avg=moments.exp_avg.masked_fill_(mask, 0),
                exp_avg_sq=moments.exp_avg_sq.masked_fill_(mask, 0),
            )
        self._moments.clear()
