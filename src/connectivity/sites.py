"""Importance from activations and their gradients, at the sites of each group.

A site is a place where a group's activation is measured (``ChannelGroup.measure``):

=========  ==================================================================
kind       site
=========  ==================================================================
qk         the queries (the gradient by keys adds up to 0: softmax does not
           change when all scores of a row do)
vo         the heads' outputs before the output projection
ffn        the activation before the second feed-forward matrix
embedding  the residual stream: the embedding after dropout, what every
           sub-layer makes of it (with post-norm after its normalization), and
           with pre-norm the output of the last normalization
=========  ==================================================================
"""

from contextlib import contextmanager
from typing import Callable, Dict, List, Tuple

import torch
from torch import Tensor

from .errors import PruningError
from .scoring import Groups, Scores, Scoring, ScoringBatch, importance_criterion

# (name of the group, activation, its dimension that counts sentences)
Measured = List[Tuple[str, Tensor, int]]


@contextmanager
def measuring(groups: Groups):
    """Collect the activations at all sites of ``groups``, in the order of the forward pass."""
    measured: Measured = []

    def listener(name: str):
        def listen(x: Tensor, sentences: int) -> Tensor:
            if not x.requires_grad:  # nothing ahead of this site is trained
                x = x.detach().requires_grad_()
            measured.append((name, x, sentences))
            return x

        return listen

    try:
        for name, group in groups.items():
            group.listener = listener(name)
        yield measured
    finally:
        for group in groups.values():
            group.listener = None


def _gradients(value: Tensor, measured: Measured) -> List[Tensor]:
    tensors = [x for _, x, _ in measured]
    gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, gradients)]


def _over_all(amounts: Tensor) -> Tensor:
    return amounts.sum((0, 1))


def _by_sentence(amounts: Tensor) -> Tensor:
    return amounts.sum(1).abs().sum(0)


def _by_token(amounts: Tensor) -> Tensor:
    return amounts.abs().sum((0, 1))


def _site_sums(
    scoring: Scoring,
    value: Callable[[ScoringBatch], Tensor],
    amount: Callable[[Tensor, Tensor], Tensor],
    total: Callable[[Tensor], Tensor],
) -> Tuple[Dict[str, Tensor], float]:
    """Sums over all batches and processes, in float64.

    Args:
        value: what is differentiated.
        amount: of an activation and its gradient, elementwise.
        total: from ``[B, T, units]`` to ``[units]``, additive over batches.

    Returns:
        ``[sites, units]`` per group, and the number of target tokens.
    """
    groups = scoring.groups
    device = next(iter(groups.values())).connectivity.device
    sums: Dict[str, List[Tensor]] = {name: [] for name in groups}
    tokens = batches = 0
    for batch in scoring.batches:
        with measuring(groups) as measured:
            result = value(batch)
        site = dict.fromkeys(groups, 0)
        for (name, x, dim), gradient in zip(measured, _gradients(result, measured)):
            wide = torch.promote_types(x.dtype, torch.float32)
            amounts = amount(x.detach().to(wide), gradient.to(wide))
            amounts = amounts.transpose(0, dim)
            amounts = amounts.reshape(len(amounts), -1, amounts.shape[-1])
            part = total(scoring.units(groups[name], amounts.double()))
            if site[name] == len(sums[name]):
                sums[name].append(torch.zeros_like(part))
            sums[name][site[name]] += part
            site[name] += 1
        tokens += batch.tokens
        batches += 1
    return _reduced(scoring, sums, tokens, batches, device)


def _reduced(scoring, sums, tokens, batches, device):
    # a process without a batch does not know how many sites there are
    here = [len(sites) for sites in sums.values()] + [int(batches > 0)]
    everywhere = torch.tensor(here, dtype=torch.float64, device=device)
    scoring.reduce(everywhere)
    *counts, processes = everywhere.tolist()
    shapes = [
        (int(count / max(processes, 1)), scoring.number_of_units(group))
        for count, group in zip(counts, scoring.groups.values())
    ]
    parts = [
        torch.stack(sites).flatten()
        if sites
        else torch.zeros(shape[0] * shape[1], dtype=torch.float64, device=device)
        for sites, shape in zip(sums.values(), shapes)
    ]
    number = torch.tensor([tokens], dtype=torch.float64, device=device)
    flat = torch.cat([*parts, number])
    scoring.reduce(flat)
    *parts, number = flat.split([a * b for a, b in shapes] + [1])
    tables = (part.view(shape) for part, shape in zip(parts, shapes))
    return dict(zip(scoring.groups, tables)), max(number.item(), 1.0)


def _mean_of_sites(scoring: Scoring, amount) -> Scores:
    total = _by_sentence if scoring.per_example else _over_all
    sums, tokens = _site_sums(scoring, ScoringBatch.__call__, amount, total)
    return {name: table.abs().sum(0) / tokens for name, table in sums.items()}


@importance_criterion("grad", per_example=True)
def grad_importance(scoring: Scoring) -> Scores:
    """|Σ δ| / T with the loss's gradient δ at the site, T target tokens.

    Source: Sun et al., meProp (ICML 2017), as a criterion in Hedegaard et al.,
    Structured Pruning Adapters (arXiv 2211.10155).
    """
    return _mean_of_sites(scoring, lambda x, gradient: gradient)


@importance_criterion("taylor", per_example=True)
def taylor_importance(scoring: Scoring) -> Scores:
    """|Σ a·δ| / T with the activation a: the loss's change, to first order.

    Where a group has one site, this is |∂L/∂c| / T. Source: Molchanov et al.,
    Pruning convolutional neural networks for resource efficient inference (ICLR
    2017); of whole heads: Michel et al., Are sixteen heads really better than one?
    (arXiv 1905.10650).
    """
    return _mean_of_sites(scoring, torch.mul)


def _relevance(batch: ScoringBatch) -> Tensor:
    if batch.relevance is None:
        raise PruningError(
            "importance lrp: needs the relevance of every scoring batch; give ScoringBatch "
            "objects with one, or another criterion"
        )
    return batch.relevance()


@importance_criterion("lrp", per_example=True, uses_relevance=True)
def lrp_importance(scoring: Scoring) -> Scores:
    """Σ |R| over tokens, R = a·δ̃ the relevance of the activation for the gold logits.

    Source: Yeom et al., Pruning by explaining (Pattern Recognition 2021); the rules
    are in ``src/modules/relevance.py``.
    """
    total = _by_sentence if scoring.per_example else _by_token
    sums, _ = _site_sums(scoring, _relevance, torch.mul, total)
    return {name: table.sum(0) for name, table in sums.items()}
