"""Choose the blocks to remove: exactly as many as the target says, lowest scores first.

Of equal scores the earlier layer, then the earlier block goes first, so that every
process and every run decides alike.
"""

import logging
import math
from typing import List, Sequence, Union

import torch
from torch import Tensor

from ..errors import SparsityError
from .patterns import GroupPattern, Pattern

logger = logging.getLogger(__name__)

# Above this many blocks the threshold is bracketed by a sample instead of sorting all.
SORTED = 1 << 17
SAMPLE = 1 << 16
DOMAINS = ("global", "local")
# elements that each block removes [blocks], or that every block does
Sizes = Union[int, Tensor]


def allocate(
    scores: Sequence[Tensor],
    sizes: Sequence[Tensor],
    removed: Sequence[Tensor],
    elements: Sequence[int],
    target: float,
    max_sparsity: float = 1.0,
    domain: str = "global",
    min_sparsity: float = 0.0,
) -> List[Tensor]:
    """Blocks to remove now so that ``target`` is reached to one block.

    A layer gives no more than its cap; what it would have given beyond it, other
    layers give. Only where whole blocks below the caps do not add up to the target,
    a layer may pass its cap by less than one block.

    Args:
        scores: of the blocks of each layer [blocks], finite where a size is above 0.
        sizes: elements that each block removes [blocks]; 0: never removed.
        removed: blocks that are gone already [blocks], bool; they stay gone.
        elements: of each layer.
        target: sparsity in [0, 1].
        max_sparsity: cap of the sparsity of each layer.
        domain: ``global``: the target holds for all layers together; ``local``: for
            each.
        min_sparsity: what every layer gives, to one block, before the rest is chosen
            among all.

    Returns:
        For each layer the blocks [blocks] that go now, bool.
    """
    if domain == "local":
        return [
            _allocate([score], [size], [gone], [number], target, max_sparsity)[0]
            for score, size, gone, number in zip(scores, sizes, removed, elements)
        ]
    if not min_sparsity:
        return _allocate(scores, sizes, removed, elements, target, max_sparsity)
    least = allocate(scores, sizes, removed, elements, min_sparsity, max_sparsity, "local")
    removed = [block | more for block, more in zip(removed, least)]
    rest = _allocate(scores, sizes, removed, elements, target, max_sparsity)
    return [block | more for block, more in zip(least, rest)]


def _round(number: float) -> int:
    return int(number + 0.5)


def _allocate(scores, sizes, removed, elements, target, max_sparsity) -> List[Tensor]:
    places = [block.device for block in removed]  # layers may be on several devices
    scores = [score.to(scores[0].device) for score in scores]
    removed = [block.to(scores[0].device) for block in removed]
    sizes = [_uniform(size.to(score.device)) for size, score in zip(sizes, scores)]
    gone = [_weight(block, size) for size, block in zip(sizes, removed)]
    budget = _round(target * sum(elements)) - sum(gone)
    if budget <= 0:
        return [torch.zeros_like(block, device=place) for block, place in zip(removed, places)]
    # what is gone or never goes comes last in every order
    barred = [
        block | (torch.as_tensor(size, device=block.device) == 0)
        for size, block in zip(sizes, removed)
    ]
    scores = [
        score.masked_fill(bar, torch.inf) if bar.any() else score
        for score, bar in zip(scores, barred)
    ]
    largest = max(_largest(size) for size in sizes)
    left = [number - past for number, past in zip(elements, gone)]
    most = [number if max_sparsity == 1 else number - 1 for number in elements]
    for rounding in ("down", "up"):
        whole = math.floor if rounding == "down" else math.ceil
        slack = 1e-6 if rounding == "down" else -1e-6
        caps = [
            min(whole(max_sparsity * number + slack), limit) - past
            for number, limit, past in zip(elements, most, gone)
        ]
        chosen = _under_caps(scores, sizes, barred, left, budget, caps, rounding)
        taken = sum(_weight(block, size) for size, block in zip(sizes, chosen))
        if budget - taken < largest:
            break
    return [block.to(place) for block, place in zip(chosen, places)]


def _under_caps(scores, sizes, barred, left, budget, caps, rounding) -> List[Tensor]:
    """The lowest blocks of all layers, none giving more than its cap, or all it has."""
    scores, barred = list(scores), list(barred)
    lengths = [len(score) for score in scores]
    all_sizes = _join(sizes, lengths)
    capped = [False] * len(scores)
    while True:
        together = torch.cat(scores) if len(scores) > 1 else scores[0]
        chosen = lowest(together, all_sizes, budget, "nearest").split(lengths)
        chosen = [block & ~bar for block, bar in zip(chosen, barred)]
        over = [
            not done and _weight(block, size) > cap
            for done, size, block, cap in zip(capped, sizes, chosen, caps)
        ]
        if not any(over):
            return chosen
        for i, exceeded in enumerate(over):
            if exceeded:
                # beyond its cap a layer has no candidates; that is the same as
                # handing the share above the cap to the next best blocks elsewhere
                within = lowest(scores[i], sizes[i], max(0, caps[i]), rounding)
                free = within & ~barred[i]
                if _weight(free, sizes[i]) == left[i] > caps[i]:
                    within[_last(scores[i], free)] = False
                barred[i] = barred[i] | ~within
                scores[i] = scores[i].masked_fill(~within, torch.inf)
                capped[i] = True


def _last(scores: Tensor, candidates: Tensor) -> Tensor:
    """Index of the candidate that goes last: highest score, latest position."""
    index = candidates.nonzero().flatten()
    return index[scores[index].argsort(stable=True)[-1:]]


def _uniform(sizes: Tensor) -> Sizes:
    """The one size of all blocks as an int; the sizes if they differ."""
    first = int(sizes[0])
    if sizes.stride() == (0,) or bool((sizes == first).all()):
        return first
    return sizes


def _join(sizes: Sequence[Sizes], lengths: Sequence[int]) -> Sizes:
    if all(isinstance(size, int) for size in sizes) and len(set(sizes)) == 1:
        return sizes[0]
    device = next((s.device for s in sizes if isinstance(s, Tensor)), None)
    return torch.cat(
        [
            torch.as_tensor(size, device=device).expand(length)
            for size, length in zip(sizes, lengths)
        ]
    )


def _weight(chosen: Tensor, sizes: Sizes) -> int:
    """Elements that the chosen blocks hold."""
    if isinstance(sizes, int):
        return sizes * int(chosen.count_nonzero())
    return int((sizes.to(chosen.device) * chosen).sum())


def _largest(sizes: Sizes) -> int:
    return sizes if isinstance(sizes, int) else int(sizes.max())


def lowest(scores: Tensor, sizes: Sizes, budget: int, rounding: str) -> Tensor:
    """The first blocks in order of (score, position) that use up ``budget`` elements.

    Args:
        scores: [blocks].
        sizes: elements of each block [blocks], or of every block.
        budget: elements to take.
        rounding: ``down``: never more, ``up``: never fewer (while there are blocks),
            ``nearest``.

    Returns:
        True at the blocks taken [blocks].
    """
    if len(scores) <= SORTED:
        return _by_sorting(scores, sizes, budget, rounding)
    bracket = _bracket(scores, sizes, budget)
    if bracket is None:
        return _by_sorting(scores, sizes, budget, rounding)
    below, between, rest = bracket
    index = between.nonzero().flatten()
    if not isinstance(sizes, int):
        sizes = sizes[index]
    # many equal scores can keep the bracket wide; sorting always ends
    narrow = lowest if 2 * len(index) < len(scores) else _by_sorting
    taken = narrow(scores[index], sizes, rest, rounding)
    below[index[taken]] = True
    return below


def _by_sorting(scores, sizes, budget, rounding) -> Tensor:
    number = len(scores)
    if isinstance(sizes, int):
        full, part = divmod(budget, sizes) if sizes else (number, 0)
        after = sizes
    else:
        order = scores.argsort(stable=True)
        used = sizes.to(order.device)[order].cumsum(0)
        # of blocks without elements none is taken beyond the budget
        full = int(torch.searchsorted(used, budget, right=True)) if budget > 0 else 0
        part = budget - (int(used[full - 1]) if full else 0)
        after = int(used[full]) - (budget - part) if full < number else 0
    full += part > 0 and (rounding == "up" or (rounding == "nearest" and 2 * part >= after))
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    full = min(full, number)
    if full == number:
        return ~chosen
    if not full:
        return chosen
    if isinstance(sizes, int):
        if bool((scores == scores[0]).all()):
            chosen[:full] = True
            return chosen
        order = scores.argsort(stable=True)
    chosen[order[:full]] = True
    return chosen


def _bracket(scores, sizes, budget):
    """Blocks surely taken, blocks to decide on, and what is left of the budget.

    A sample of the scores tells about where the threshold lies; the exact counts on
    both sides tell whether it does. ``None``: it does not.
    """
    total = sizes * len(scores) if isinstance(sizes, int) else int(sizes.sum())
    if budget >= total:
        return None
    # at random, since steps of a fixed width could follow the pattern of a layer
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(scores), (SAMPLE,), generator=generator)
    sample = scores[index.to(scores.device)].sort().values
    middle = int(budget / total * SAMPLE)
    margin = 2 * int(SAMPLE**0.5)  # four standard deviations of a sampled quantile
    low, high = middle - margin, middle + margin
    below = scores < sample[low] if low >= 0 else torch.zeros_like(scores, dtype=torch.bool)
    between = scores <= sample[high] if high < SAMPLE else torch.ones_like(below)
    between &= ~below
    rest = budget - _weight(below, sizes)
    # the next block after the budget must be inside too: rounding looks at it
    if rest < 0 or _weight(between, sizes) < rest + _largest(sizes):
        return None
    return below, between, rest


def check_reachable(
    pattern: Pattern,
    shapes: Sequence,
    target: float,
    max_sparsity: float,
    domain: str = "global",
) -> None:
    """Refuse a target that the caps do not allow.

    A target of N/M is taken for "all that N:M allows": where inputs are no multiple of
    M that is less, and the log says how much.

    Args:
        pattern: of the pruner.
        shapes: (outputs, inputs) of each layer.
        target: sparsity asked for.
        max_sparsity: cap of each layer.
        domain: ``global`` or ``local``.

    Raises:
        SparsityError: with the largest sparsity that is possible.
    """
    cap = min(max_sparsity, pattern.limit)
    groups = pattern if isinstance(pattern, GroupPattern) else None
    full = groups and abs(target - pattern.limit) < 1e-9 and max_sparsity >= target
    layers = []
    for rows, columns in shapes:
        sizes = pattern.block_sizes((rows, columns))
        block, most = max(1, int(sizes.max())), int(sizes.sum())
        if not groups:
            most -= block  # one block of a layer always stays
        layers.append((rows * columns, min(cap * rows * columns, most), block))
    if domain == "global":
        elements, possible, blocks = zip(*layers)
        layers = [(sum(elements), sum(possible), max(blocks))]
    for elements, possible, block in layers:
        short = target * elements - possible >= block
        if groups and full and short and possible:
            logger.warning(
                f"target_sparsity: {target}: pattern {pattern.text} removes no more than "
                f"{possible / elements:.6g} of {elements:,} weights, since inputs are no "
                f"multiple of {groups.width}"
            )
        elif target > cap + 1e-9 or short:
            raise SparsityError(
                f"target_sparsity: {target} is more than {possible / elements:.6g}, the "
                f"largest that pattern {pattern.text} and max_sparsity_ratio_per_layer "
                f"{max_sparsity} allow in these layers; lower it or raise the cap"
            )
