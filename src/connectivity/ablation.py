"""Importance of whole layers: the loss without them."""

import logging
from contextlib import contextmanager
from typing import Dict, List, Tuple

import torch

from .layers import LayerGroup, layer_groups
from .scoring import Scores, Scoring, importance_criterion

logger = logging.getLogger(__name__)


@contextmanager
def _closed(groups: Dict[str, LayerGroup], gone: List[Tuple[str, int]]):
    """Connectivity 0 for some layers, given by group and position."""
    try:
        for name, group in groups.items():
            gates = torch.ones_like(group.connectivity)
            gates[[number for of, number in gone if of == name]] = 0
            group.set_connectivity(gates)
        yield
    finally:
        for group in groups.values():
            group.set_connectivity(torch.ones_like(group.connectivity))


@importance_criterion("ablation", of_layers=True)
def ablation_importance(scoring: Scoring) -> Scores:
    """The round in which a layer is taken out: the one whose loss costs least goes first.

    In every round the loss is measured without each layer that is left, in turn, until
    every group has as many as stay (``scoring.layers``). Layers that stay share the last
    place. A derivative at g = 1 says little about a jump to 0. Source: greedy backward
    elimination; of layers: Fan et al., Reducing Transformer depth on demand (arXiv
    1909.11556), section 4.
    """
    groups, batches = layer_groups(scoring.groups), list(scoring.batches)
    if not groups:
        return {}
    device = next(iter(groups.values())).connectivity.device
    left = {name: list(range(group.width)) for name, group in groups.items()}
    gone: List[Tuple[str, int]] = []
    while True:
        candidates = [
            (name, number)
            for name, numbers in left.items()
            if len(numbers) > scoring.layers.get(name, 1)
            for number in numbers
        ]
        if not candidates:
            break
        losses = torch.zeros(len(candidates), dtype=torch.float64, device=device)
        for row, candidate in enumerate(candidates):
            with _closed(groups, [*gone, candidate]), torch.no_grad():
                for batch in batches:
                    losses[row] += batch()
        scoring.reduce(losses)
        cost, (name, number) = min(zip(losses.nan_to_num(float("inf")).tolist(), candidates))
        if cost == float("inf"):
            return {name: torch.full_like(g.connectivity, cost) for name, g in groups.items()}
        logger.info(f"without layer {number + 1} of {name} the loss is {cost:.6g}, the least")
        left[name].remove(number)
        gone.append((name, number))
    scores = {}
    for name, group in groups.items():
        scores[name] = group.connectivity.new_full((group.width,), len(gone), dtype=torch.float64)
        for turn, (of, number) in enumerate(gone):
            if of == name:
                scores[name][number] = turn
    return scores
