"""How important each channel is, from the gradient of the loss by connectivity.

A criterion is a function of the groups and of the losses of scoring batches,
registered under the name that ``--importance`` takes. Larger scores stay.
"""

from contextlib import contextmanager
from typing import Callable, Dict, Iterable, Mapping

import torch
from torch import Tensor

from .groups import ChannelGroup

Scores = Dict[str, Tensor]
Groups = Mapping[str, ChannelGroup]
# Adds up a tensor over all processes, in place.
Reduce = Callable[[Tensor], None]
# One scoring batch: computes its loss, summed over target tokens.
Losses = Iterable[Callable[[], Tensor]]

IMPORTANCE: Dict[str, Callable[[Groups, Losses, Reduce], Scores]] = {}


def importance_criterion(name: str):
    """Register a criterion under ``name``."""

    def register(function):
        IMPORTANCE[name] = function
        return function

    return register


@contextmanager
def _differentiable(groups: Groups):
    """Let autograd see the connectivities, all gates open at 1."""
    try:
        for group in groups.values():
            group.gated = True
            group.connectivity.requires_grad_(True)
        yield [group.connectivity for group in groups.values()]
    finally:
        for group in groups.values():
            group.connectivity.requires_grad_(False)
            group.refresh()


def _sum_over_batches(
    groups: Groups,
    losses: Losses,
    reduce: Reduce,
    contribution: Callable[[Tensor], Tensor],
) -> Scores:
    """Sum of ``contribution(∂L/∂c)`` over batches and processes, in float64."""
    with _differentiable(groups) as connectivities:
        # one flat vector: a single reduction, and the same order everywhere
        total = torch.zeros(
            sum(c.numel() for c in connectivities),
            dtype=torch.float64,
            device=connectivities[0].device,
        )
        for loss in losses:
            gradients = torch.autograd.grad(loss(), connectivities, allow_unused=True)
            flat = [
                torch.zeros_like(c) if g is None else g
                for g, c in zip(gradients, connectivities)
            ]
            total += contribution(torch.cat(flat).double())
    reduce(total)
    sizes = [group.width for group in groups.values()]
    return dict(zip(groups, total.split(sizes)))


@importance_criterion("connectivity")
def connectivity_importance(groups: Groups, losses: Losses, reduce: Reduce) -> Scores:
    """-∂L/∂c at c = 1, summed over batches: SRP's importance.

    A channel whose connectivity the loss wants smaller goes first. Source: the
    SRP project's README, "Selecting Parameters to be pruned".
    """
    return _sum_over_batches(groups, losses, reduce, torch.neg)


@importance_criterion("fisher")
def fisher_importance(groups: Groups, losses: Losses, reduce: Reduce) -> Scores:
    """Σ (∂L/∂c)² over batches at c = 1: the diagonal of the empirical Fisher matrix.

    To second order the loss grows by ½·F when a channel is removed from a
    converged model, whatever the gradient's sign. Source: Theis et al., Faster
    gaze prediction with dense networks and Fisher pruning (arXiv 1801.05787).
    """
    return _sum_over_batches(groups, losses, reduce, torch.square)
