"""How important each channel is.

A criterion is a function of the groups and of scoring batches, registered under the
name that ``--importance`` takes. Larger scores stay. Scores of different criteria, and
of different kinds of groups, are on different scales: compare none of them.
"""

import zlib
from contextlib import contextmanager
from typing import Callable, Iterable, Mapping, Union

import torch
from torch import Tensor, nn

from . import ablation, sites  # noqa: F401  registers ablation, grad, taylor and lrp
from .errors import PruningError
from .groups import Slice, base_parameters
from .layers import LayerGroup
from .scoring import (
    IMPORTANCE,
    Groups,
    Reduce,
    Scores,
    Scoring,
    ScoringBatch,
    importance_criterion,
)

NORMS = {"none": None, "l1": 1, "l2": 2}


def score(
    groups: Groups,
    batches: Iterable[Union[ScoringBatch, Callable[[], Tensor]]],
    criterion: str = "fisher",
    reduce: Reduce = lambda total: None,
    norm: str = "none",
    per_example: bool = False,
    seed: int = 1,
    by_head: bool = False,
    layers: Mapping[str, int] = {},
) -> Scores:
    """Importance of every channel, ``[width]`` per group, float64.

    Args:
        groups: all groups of a model, by name.
        batches: scoring batches of this process: functions that compute the loss of one, or
            :class:`ScoringBatch` where the criterion needs to know more.
        criterion: a name in ``IMPORTANCE``.
        reduce: adds up a tensor over processes, in place; one process needs none.
        norm: what each group's scores are divided by, see :func:`normalized`.
        per_example: absolute value of each sentence's sum (grad, taylor, lrp).
        seed: of ``random``.
        by_head: attention groups are scored by head instead, ``[heads]``. A head counts as
            one channel that all of its channels make up: what the criterion measures is
            added up over them, signs and all, before any absolute value or square.
        layers: how many layers stay, per group of layers, for ``ablation``.

    Raises:
        PruningError: no such criterion or norm, or no groups.
    """
    for option, value, known in (("importance", criterion, IMPORTANCE), ("norm", norm, NORMS)):
        if value not in known:
            raise PruningError(f"{option} {value!r}: is none of {', '.join(known)}")
    if not groups:
        raise PruningError("there are no channel groups to score; declare some in the model")
    batches = (b if isinstance(b, ScoringBatch) else ScoringBatch(b) for b in batches)
    options = dict(per_example=per_example, seed=seed, by_head=by_head, layers=layers)
    return normalized(IMPORTANCE[criterion](groups, batches, reduce, **options), norm)


def normalized(scores: Scores, norm: str) -> Scores:
    """Each group's scores divided by their L1 or L2 norm over the present channels.

    It takes the layers' scales out of a ranking across layers (feed-forward units
    are ranked so); within a group the order stays. A group of zeros stays as it is.
    """
    if NORMS[norm] is None:
        return scores
    divided = {}
    for name, values in scores.items():
        size = torch.linalg.vector_norm(values, NORMS[norm])
        divided[name] = values / size if size > 0 else values
    return divided


# -- from the gradient by connectivity ---------------------------------------------


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


def _sum_over_batches(scoring: Scoring, contribution: Callable[[Tensor], Tensor]) -> Scores:
    """Sum of ``contribution(∂L/∂c)`` over batches and processes, in float64."""
    groups = scoring.groups
    sizes = [scoring.number_of_units(group) for group in groups.values()]
    with _differentiable(groups) as connectivities:
        # one flat vector: a single reduction, and the same order everywhere
        total = torch.zeros(sum(sizes), dtype=torch.float64, device=connectivities[0].device)
        for batch in scoring.batches:
            gradients = torch.autograd.grad(batch(), connectivities, allow_unused=True)
            flat = [
                scoring.units(group, (torch.zeros_like(c) if g is None else g).double())
                for group, g, c in zip(groups.values(), gradients, connectivities)
            ]
            total += contribution(torch.cat(flat))
    scoring.reduce(total)
    return dict(zip(groups, total.split(sizes)))


@importance_criterion("connectivity")
def connectivity_importance(scoring: Scoring) -> Scores:
    """-∂L/∂c at c = 1, summed over batches: SRP's importance.

    A channel whose connectivity the loss wants smaller goes first. Source: the
    SRP project's README, "Selecting Parameters to be pruned".
    """
    return _sum_over_batches(scoring, torch.neg)


@importance_criterion("fisher")
def fisher_importance(scoring: Scoring) -> Scores:
    """Σ (∂L/∂c)² over batches at c = 1: the diagonal of the empirical Fisher matrix.

    To second order the loss grows by ½·F when a channel is removed from a
    converged model, whatever the gradient's sign. Source: Theis et al., Faster
    gaze prediction with dense networks and Fisher pruning (arXiv 1801.05787).
    """
    return _sum_over_batches(scoring, torch.square)


# -- without batches ----------------------------------------------------------------


def _slice_norms(piece: Slice) -> Tensor:
    """L2 norm of what each channel has in a parameter, ``[width]``."""
    weight = piece.value.detach().double().transpose(0, piece.dim)
    return weight.reshape(len(weight), -1).norm(dim=1)


def _layer_norm(layer: nn.Module) -> Tensor:
    """Sum of the L2 norms of a layer's parameters, with their adapters' updates."""
    base = {id(parameter) for parameter in base_parameters(layer)}
    pieces = [
        Slice(module, name, 0)
        for module in layer.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in base
    ]
    return torch.stack([piece.value.detach().double().norm() for piece in pieces]).sum()


@importance_criterion("weight", uses_batches=False)
def weight_importance(scoring: Scoring) -> Scores:
    """Sum of the L2 norms of all slices that are tied to a channel.

    For queries and keys, which act as a product alone, the product of the norms of
    their matrices. A parameter that two modules share counts once; a layer with an
    adapter counts with its update. A whole layer has the norms of its parameters. Source:
    Hedegaard et al., Structured Pruning Adapters (arXiv 2211.10155), for Transformers.
    """
    scores = {}
    for name, group in scoring.groups.items():
        if isinstance(group, LayerGroup):
            scores[name] = torch.stack([_layer_norm(layer) for layer in group.layers])
            continue
        distinct = {(id(s.parameter), s.dim): s for s in group.slices}.values()
        if group.kind == "qk":
            matrices = [s for s in distinct if s.parameter.dim() > 1]
            total = torch.stack([_slice_norms(s) for s in matrices]).prod(0)
        else:
            total = torch.stack([_slice_norms(s) for s in distinct]).sum(0)
        scores[name] = scoring.units(group, total)
    return scores


@importance_criterion("random", uses_batches=False)
def random_importance(scoring: Scoring) -> Scores:
    """Uniform in [0, 1): what any criterion has to beat.

    A channel keeps its score over iterations and stages of one seed, and has the same
    one in every process.
    """
    scores = {}
    for name, group in scoring.groups.items():
        seed = zlib.crc32(f"{scoring.seed} {name}".encode())
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(group.original_width, generator=generator, dtype=torch.float64)
        present = drawn[group.channel_ids.cpu().long()]
        scores[name] = scoring.units(group, present.to(group.connectivity.device))
    return scores
