"""Which channels stay, given importance scores and widths."""

from typing import Dict, Mapping

import torch
from torch import Tensor, nn

from ..errors import UserError
from .budget import ParameterCount, minimum_width
from .groups import ChannelGroup

Keep = Dict[str, Tensor]


def _top(scores: Tensor, width: int) -> Tensor:
    """Positions of the ``width`` largest scores, ascending; of equals the first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:width].sort().values


def _top_per_head(group: ChannelGroup, scores: Tensor, width: int) -> Tensor:
    per_head = group.width // group.heads
    kept = [
        _top(head, width // group.heads) + h * per_head
        for h, head in enumerate(scores.view(group.heads, per_head))
    ]
    return torch.cat(kept)


def _share_out_ffn(
    count: ParameterCount, scores: Mapping[str, Tensor], widths: Mapping[str, int]
) -> Dict[str, int]:
    """Feed-forward widths when the units of all layers are ranked together.

    The least important units go, whatever their layer, until the layers cost no
    more parameters than ``widths`` allow them; every layer keeps one unit.
    """
    names = [n for n, g in count.groups.items() if g.kind == "ffn"]
    cost = {n: count.per_channel(n, widths) for n in names}
    budget = sum(cost[n] * widths[n] for n in names)
    now = {n: count.groups[n].width for n in names}
    spent = sum(cost[n] * now[n] for n in names)

    owner = [n for n in names for _ in range(now[n])]
    everything = torch.cat([scores[n] for n in names]) if names else torch.empty(0)
    for unit in torch.sort(everything.flip(0), stable=True).indices.tolist():
        name = owner[len(owner) - 1 - unit]  # flipped: of equals the last goes first
        if now[name] <= minimum_width(count.groups[name]):
            continue
        if abs(spent - cost[name] - budget) >= abs(spent - budget):
            break
        now[name] -= 1
        spent -= cost[name]
    return now


def select(
    model: nn.Module, scores: Mapping[str, Tensor], widths: Mapping[str, int]
) -> Keep:
    """Choose the channels that stay.

    Embedding channels are ranked within their group, query/key and value/output
    channels within each head, feed-forward units across all layers.

    Args:
        scores: importance per group, ``[width]``; larger stays.
        widths: width of every group afterwards, see ``budget.plan_widths``.

    Returns:
        Ascending positions of the channels that stay, for each group that loses
        any.

    Raises:
        UserError: a score is not a finite number.
    """
    count = ParameterCount(model)
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise UserError(
                f"the importance of group {name} is not finite (NaN or infinite): the "
                "loss or its gradient overflows on the scoring batches; prune a model "
                "whose training loss is finite, in float32"
            )
    widths = dict(widths)
    if any(widths[n] < g.width for n, g in count.groups.items() if g.kind == "ffn"):
        widths.update(_share_out_ffn(count, scores, widths))

    keep = {}
    for name, group in count.groups.items():
        if widths[name] < group.width:
            keep[name] = _top_per_head(group, scores[name], widths[name])
    return keep
