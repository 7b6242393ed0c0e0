"""AdamW's step beside frozen weights, at the price of the plain step."""

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor, nn

from ..connectivity.freeze import Freezer
from ..modules.torch_private import foreach_mul_, fused_adamw_

OUTSTANDING = "outstanding_decay"
# weight decay waits until it amounts to this share of the weights
LARGEST_OUTSTANDING = 2.0**-10


def clip(gradients: List[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale gradients whose norm, over all of them, is above ``max_norm``; 0: never."""
    if max_norm > 0:
        foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp_(max=1))


@dataclass
class _Moments:
    """What AdamW remembers of a parameter with frozen weights."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    outstanding: float  # factor that the live weights are still to be multiplied by


@dataclass
class _Part:
    """Parameters of a group that are stepped alike, with what their step needs."""

    parameters: List[nn.Parameter]
    exp_avgs: List[Tensor]
    exp_avg_sqs: List[Tensor]
    counts: Tensor  # steps of each, [parameters]
    steps: List[Tensor]  # the same, one by one


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
        # per group: the parameters it was last stepped for, and their parts
        self._parts: Dict[int, Tuple[tuple, Tuple[_Part, _Part]]] = {}

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
        for number, group in enumerate(self._optimizer.param_groups):
            present = [p for p in group["params"] if p.grad is not None]
            identity = tuple(map(id, present))
            known, parts = self._parts.get(number, (None, None))
            if known != identity:
                frozen = [p for p in present if p in self._frozen]
                free = [p for p in present if p not in self._frozen]
                parts = self._part(frozen), self._part(free)
                self._parts[number] = identity, parts
            frozen, free = parts
            self._put_off_decay(frozen.parameters, group["lr"] * group["weight_decay"])
            for part, decay in ((frozen, 0.0), (free, group["weight_decay"])):
                if not part.parameters:
                    continue
                part.counts.add_(1)
                # without what torch.optim.AdamW does for each parameter, which takes a
                # tenth of the kernel's time
                fused_adamw_(
                    part.parameters,
                    [p.grad for p in part.parameters],
                    part.exp_avgs,
                    part.exp_avg_sqs,
                    part.steps,
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=decay,
                    eps=group["eps"],
                )

    def _part(self, parameters: List[nn.Parameter]) -> _Part:
        states = [self._optimizer.state[p] for p in parameters]
        moments = []
        for parameter, state in zip(parameters, states):
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            if parameter in self._frozen:
                held = self._moments.get(parameter) or self._take(parameter, state)
                moments.append((held.exp_avg, held.exp_avg_sq))
            else:
                moments.append((state["exp_avg"], state["exp_avg_sq"]))
        # numbers in one tensor are counted up at once
        counts = torch.tensor([float(s["step"]) for s in states], dtype=torch.float32)
        steps = list(counts.unbind())
        for state, step in zip(states, steps):
            state["step"] = step
        return _Part(parameters, [m for m, _ in moments], [v for _, v in moments], counts, steps)

    def _take(self, parameter: nn.Parameter, state: Dict[str, Any]) -> _Moments:
        """Take the moments of a parameter out of the optimizer's state."""
        mask = self.freezer.mask(parameter)
        moments = self._moments[parameter] = _Moments(
            state.pop("exp_avg").masked_fill_(mask, 0),
            state.pop("exp_avg_sq").masked_fill_(mask, math.inf),
            state.pop(OUTSTANDING, 1.0),
        )
        return moments

    def _put_off_decay(self, parameters: List[nn.Parameter], decay: float) -> None:
        if not decay:
            return
        for parameter in parameters:
            moments = self._moments[parameter]
            moments.outstanding *= 1 - decay
            if 1 - moments.outstanding >= LARGEST_OUTSTANDING:
                self._decay(parameter, moments)

    def _decay(self, parameter: nn.Parameter, moments: _Moments) -> None:
        self.freezer.scale_live(parameter, moments.outstanding)
        moments.outstanding = 1.0

    @torch.no_grad()
    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn=None) -> Tensor:
        """fairseq's ``clip_grad_norm_`` over the gradients of live weights.

        Returns:
            Their norm before clipping.
        """
        present = [
            parameter
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norms = [self.freezer.live_norm(p for p in present if p in self._frozen)]
        norms += [torch.linalg.vector_norm(p.grad) for p in present if p not in self._frozen]
        total = torch.linalg.vector_norm(torch.stack(norms))
        if aggregate_norm_fn is not None:
            total = aggregate_norm_fn(total)
        clip([p.grad for p in present], total, max_norm)
        return total

    @torch.no_grad()
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
                    "exp_avg": moments.exp_avg.masked_fill_(mask, 0),
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
        self._parts.clear()
