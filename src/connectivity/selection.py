"""Which channels stay, given importance scores and widths."""

from typing import Dict, List, Mapping, Sequence

import torch
from torch import Tensor, nn

from .budget import ParameterCount, head_widths, minimum_width, settle
from .errors import PruningError
from .groups import ChannelGroup, attention_groups
from .layers import layer_groups

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


def _share_out(
    scores: Sequence[Tensor], costs: Sequence[int], least: Sequence[int], budget: int
) -> List[int]:
    """How many items each owner keeps when those of all owners are ranked together.

    The least important go, whoever owns them, until the cost of the rest is as near to
    ``budget`` as this order of removal allows.

    Args:
        scores: importance of each owner's items.
        costs: parameters of one item of each owner.
        least: number of items that each owner keeps in any case.
    """
    now = [len(score) for score in scores]
    spent = sum(cost * number for cost, number in zip(costs, now))
    owners = [owner for owner, number in enumerate(now) for _ in range(number)]
    everything = torch.cat(list(scores))
    for item in torch.sort(everything.flip(0), stable=True).indices.tolist():
        owner = owners[len(owners) - 1 - item]  # flipped: of equals the last goes first
        if now[owner] <= least[owner]:
            continue
        if abs(spent - costs[owner] - budget) >= abs(spent - budget):
            break
        now[owner] -= 1
        spent -= costs[owner]
    return now


def _share_out_units(
    count: ParameterCount, scores: Mapping[str, Tensor], widths: Mapping[str, int], kind: str
) -> Dict[str, int]:
    """Widths of a kind's groups when the units of all of them are ranked together."""
    names = [n for n, g in count.groups.items() if g.kind == kind]
    costs = [count.per_channel(n, widths) for n in names]
    budget = sum(cost * widths[n] for cost, n in zip(costs, names))
    least = [minimum_width(count.groups[n]) for n in names]
    return dict(zip(names, _share_out([scores[n] for n in names], costs, least, budget)))


def head_scores(queries: Tensor, values: Tensor, heads: int) -> Tensor:
    """Importance of whole heads: what queries and values count, added up by head.

    Args:
        queries: scores of a module's query/key channels, ``[H*K]`` or by head ``[H]``.
        values: scores of its value/output channels, ``[H*V]`` or by head ``[H]``.

    Returns:
        ``[H]``
    """
    return queries.view(heads, -1).sum(dim=1) + values.view(heads, -1).sum(dim=1)


def _select_heads(
    count: ParameterCount, scores: Mapping[str, Tensor], widths: Mapping[str, int]
) -> Keep:
    """Channels that stay when the heads of all attention modules are ranked together.

    Heads of different sizes compare by importance per parameter. They cost as many
    parameters as ``widths`` allow them; every module keeps one.
    """
    pairs = attention_groups(count.groups)
    costs, budget, importance = [], 0, []
    for pair in pairs:
        heads = widths[pair[0].name] // pair[0].head_width
        more = {**widths, **head_widths(pair, heads + 1)}
        costs.append(count(more) - count(widths))
        budget += heads * costs[-1]
        queries, values = (scores[group.name] for group in pair)
        score = head_scores(queries, values, pair[0].heads)
        importance.append(score / costs[-1])
    keep = {}
    numbers = _share_out(importance, costs, [1] * len(pairs), budget)
    for pair, score, number in zip(pairs, importance, numbers):
        kept = _top(score, number)
        for group in pair if number < pair[0].heads else ():
            channels = torch.arange(group.width, device=kept.device)
            keep[group.name] = channels.view(group.heads, -1)[kept].flatten()
    return keep


def select_layers(
    groups: Mapping[str, ChannelGroup], scores: Mapping[str, Tensor], numbers: Mapping[str, int]
) -> Keep:
    """Choose the layers that stay.

    Args:
        scores: importance per group, ``[width]``; larger stays.
        numbers: how many stay, per group of layers.

    Returns:
        Ascending positions of the layers that stay, for each group that loses any.

    Raises:
        PruningError: a score is not a finite number.
    """
    losing = {n: g for n, g in layer_groups(groups).items() if numbers.get(n, g.width) < g.width}
    check_finite({name: scores[name] for name in losing})
    return {name: _top(scores[name], numbers[name]) for name in losing}


def check_finite(scores: Mapping[str, Tensor]) -> None:
    """Refuse to rank by NaN.

    Raises:
        PruningError: a score is not a finite number.
    """
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise PruningError(
                f"the importance of group {name} is not finite (NaN or infinite): the "
                "loss or its gradient overflows on the scoring batches; prune a model "
                "whose training loss is finite, in float32"
            )


def select(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    widths: Mapping[str, int],
    whole_heads: bool = False,
    layers: Mapping[str, Tensor] = {},
) -> Keep:
    """Choose the channels that stay.

    Embedding channels are ranked within their group, query/key and value/output
    channels within each head, feed-forward units (and the units of every kind that a
    user declares) across all layers.

    Args:
        scores: importance per group, ``[width]``; larger stays. With ``whole_heads``
            that of attention groups may be by head, ``[heads]``.
        widths: width of every group afterwards, see ``budget.plan_widths``.
        whole_heads: rank the heads of all attention modules together instead, and
            remove all channels of a head.
        layers: positions of the layers that stay, per group that loses some; nothing is
            chosen within the others.

    Returns:
        Ascending positions of the channels that stay, for each group that loses
        any.

    Raises:
        PruningError: a score is not a finite number.
    """
    count = ParameterCount(model, layers)
    check_finite(scores)
    widths, keep = dict(widths), {}
    if whole_heads:
        target = count(widths)
        keep = _select_heads(count, scores, widths)
        for pair in attention_groups(count.groups):
            for group in pair:
                widths[group.name] = len(keep.get(group.name, range(group.width)))
        # heads that differ in size don't cost exactly what was planned
        widths = settle(count, widths, target)
    for kind in {g.kind: None for g in count.groups.values() if g.ranked_across}:
        if any(widths[n] < g.width for n, g in count.groups.items() if g.kind == kind):
            widths.update(_share_out_units(count, scores, widths, kind))

    for name, group in count.groups.items():
        if widths[name] < group.width and name not in keep:
            keep[name] = _top_per_head(group, scores[name], widths[name])
    return keep
