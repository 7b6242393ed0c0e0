"""How many channels a compression rate leaves.

``compression_rate`` is the share of the uncut model's parameters that is kept
(embeddings and all, connectivity excluded). Everything is counted from the
declaration of channel groups, exactly.
"""

import math
from typing import Callable, Dict, Iterable, Mapping, Set, Tuple

from torch import Tensor, nn

from .errors import PruningError
from .groups import (
    KINDS,
    ChannelGroup,
    attention_groups,
    base_parameters,
    channel_groups,
    tied_dimensions,
)
from .layers import layer_groups, layers_at, positions_without

# A LayerNorm over one channel has no variance left: its output is constant.
MINIMUM_EMBEDDING = 2
STAGES = (0, 1, 2)

Widths = Dict[str, int]


def minimum_width(group: ChannelGroup) -> int:
    """Least width: 1 per head, 1 feed-forward unit per layer, 2 embedding channels."""
    return MINIMUM_EMBEDDING if group.kind == "embedding" else group.heads


def kinds_of(stage: int, groups: Mapping[str, ChannelGroup]) -> Set[str]:
    """The kinds of groups that a stage narrows: 0 all, 1 embeddings, 2 all others.

    Raises:
        PruningError: there is no such stage.
    """
    if stage not in STAGES:
        raise PruningError(
            f"$stage {stage!r}: is none of 0 (all groups), 1 (embeddings), 2 (others)"
        )
    kinds = {group.kind for group in groups.values()} - {"layer"}  # a number, chosen first
    return {kind for kind in kinds if not stage or (kind == "embedding") == (stage == 1)}


def head_widths(pair: Iterable[ChannelGroup], heads: int) -> Widths:
    """Widths of an attention module's groups with so many whole heads."""
    return {group.name: heads * group.head_width for group in pair}


class ParameterCount:
    """Number of parameters of a model as a function of its groups' widths.

    Adapters are not counted: fused, they are part of the weights.

    Args:
        model: any model with channel groups; only shapes and ties are read.
        layers: positions of the layers that count, per group of layers; of other
            groups all do.

    Attributes:
        groups: by name, without those of layers that don't count.
        uncut: parameters of the uncut model, with the layers that are gone.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Tensor] = {}):
        self.groups = channel_groups(model)
        self.constant = self.uncut = 0
        self.terms = []  # (size of the untied dimensions, names of the groups)
        self._tied = {id(p): dims for p, dims in tied_dimensions(self.groups)}
        left_out = self._leave_out(layers)
        for parameter in base_parameters(model):
            self.uncut += self._size_in_uncut(parameter)
            if id(parameter) in left_out:
                continue
            dims = self._tied.get(id(parameter), {})
            if not dims:
                self.constant += parameter.numel()
                continue
            fixed = math.prod(size for d, size in enumerate(parameter.shape) if d not in dims)
            self.terms.append((fixed, [group.name for group in dims.values()]))
        for group in layer_groups(channel_groups(model)).values():
            layer = sum(map(self._size_in_uncut, base_parameters(group.layers[0])))
            self.uncut += (group.original_width - group.width) * layer

    def _leave_out(self, layers: Mapping[str, Tensor]) -> Set[int]:
        """Forget the groups of layers that don't count; the ids of their parameters."""
        going = {
            name: positions_without(group, layers[name])
            for name, group in self.groups.items()
            if name in layers
        }
        gone = layers_at(self.groups, going)
        modules = {module for layer in gone for module in layer.modules()}
        self.groups = {n: g for n, g in self.groups.items() if g not in modules}
        self.present = {n: len(layers.get(n, ())) or g.width for n, g in self.groups.items()}
        return {id(parameter) for layer in gone for parameter in layer.parameters()}

    def _size_in_uncut(self, parameter: nn.Parameter) -> int:
        dims = self._tied.get(id(parameter), {})
        return math.prod(
            dims[d].original_width if d in dims else size for d, size in enumerate(parameter.shape)
        )

    def __call__(self, widths: Mapping[str, int]) -> int:
        return self.constant + sum(
            fixed * math.prod(widths[name] for name in names) for fixed, names in self.terms
        )

    def per_channel(self, name: str, widths: Mapping[str, int]) -> int:
        """Parameters that go with one channel of group ``name`` at these widths."""
        return self({**widths, name: widths[name] + 1}) - self(widths)

    @property
    def current(self) -> Widths:
        return dict(self.present)

    @property
    def share(self) -> float:
        """Share of the uncut model's parameters that is there."""
        return self(self.current) / self.uncut

    @property
    def original(self) -> Widths:
        return {name: group.original_width for name, group in self.groups.items()}


def scaled_widths(
    groups: Mapping[str, ChannelGroup],
    kinds: Iterable[str],
    ratio: float,
    whole_heads: bool = False,
    embedding_ratio: float = 1.0,
) -> Widths:
    """Widths of the groups of ``kinds`` scaled to ``ratio`` of the uncut model's.

    Never wider than now, never below the minimum, whole heads' multiples; the
    other groups stay as they are.

    Args:
        whole_heads: attention modules lose heads as wide as they are, rather than
            channels of every head.
        embedding_ratio: embeddings keep so many times that share.
    """
    widths = {name: group.width for name, group in groups.items()}
    for name, group in groups.items():
        if group.kind in kinds:
            share = ratio * embedding_ratio if group.kind == "embedding" else ratio
            per_head = round(group.original_width * share / group.heads)
            widths[name] = min(group.width, max(minimum_width(group), per_head * group.heads))
    if whole_heads:
        widths.update(_scaled_heads(groups, ratio))
    return widths


def _scaled_heads(groups: Mapping[str, ChannelGroup], ratio: float) -> Widths:
    """Attention widths of whole heads, at least one a module.

    The modules round at different ratios, so that the heads of all of them together
    go one by one.
    """
    widths, pairs = {}, attention_groups(groups)
    for number, pair in enumerate(pairs):
        uncut = sum(group.original_width for group in pair)
        heads = ratio * uncut / sum(group.head_width for group in pair)
        heads = math.floor(heads + (number + 0.5) / len(pairs))
        widths.update(head_widths(pair, min(pair[0].heads, max(1, heads))))
    return widths


def _turning_point(fits: Callable[[float], bool], high: float = 1.0) -> Tuple[float, float]:
    """The ratio up to which ``fits`` holds, from below and from above, at most ``high``."""
    low = 0.0
    if fits(high):
        return high, high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, high


def plan_widths(
    model: nn.Module,
    compression_rate: float,
    stage: int,
    whole_heads: bool = False,
    embedding_ratio: float = 1.0,
    layers: Mapping[str, Tensor] = {},
) -> Widths:
    """Widths after a pruning stage.

    Stage 1 takes the embedding widths to the ratio at which *all* widths,
    scaled alike, would meet the rate; stage 2 scales the rest so that the total
    meets it; stage 0 does both at once. Attention widths are the same for every
    head of a module. The widths of the feed-forward layers are a total to be
    shared out by importance, see ``selection.select``; so is the number of heads.

    Args:
        whole_heads: attention modules lose whole heads instead of channels of every
            head; not in stage 1.
        embedding_ratio: embeddings keep so many times the share that other widths do.
        layers: positions of the layers that stay, per group that loses some; the widths
            of the others are planned.

    Returns:
        Width of every group that stays; feed-forward widths, and with ``whole_heads`` attention
        widths, are those of equal shares.

    Raises:
        PruningError: the rate can't be met with the minimum widths.
    """
    count = ParameterCount(model, layers)
    groups, total = count.groups, count.uncut
    target = compression_rate * total
    kinds = kinds_of(stage, groups)

    def scaled(ratio: float, kinds=kinds) -> Widths:
        return scaled_widths(groups, kinds, ratio, whole_heads, embedding_ratio)

    least = count(scaled(0.0, kinds if stage != 1 else kinds_of(0, groups)))
    if least > target * 1.005:
        raise PruningError(
            f"$compression_rate {compression_rate:g}: at least {least / total:.4f} "
            f"({least:,} of {total:,} parameters) stay when {_least_kept(groups, whole_heads)} "
            "are kept; use a larger rate"
            + (", leave out $prune_heads" if whole_heads else "")
            + (" or start with $stage 1" if stage == 2 else "")
        )
    # where embeddings keep less than the others, these are whole before embeddings are
    high = max(1.0, 1 / embedding_ratio)
    if stage == 1:
        # The embedding alone: at the ratio that suits the whole model.
        ratio, _ = _turning_point(
            lambda r: count(_uncut_scaled(groups, r, embedding_ratio)) <= target, high
        )
        # But no further than stage 2 can still meet the rate.
        _, least_ratio = _turning_point(lambda r: count(scaled(r)) < target, high)
        return scaled(max(ratio, least_ratio))
    ratios = _turning_point(lambda r: count(scaled(r)) <= target, high)
    below, above = (settle(count, scaled(ratio), target) for ratio in ratios)
    # Near rate 1 there are too few removed units to make up for what rounding took
    # from below; from above there are enough to remove.
    gaps = abs(count(below) - target), abs(count(above) - target)
    return below if gaps[0] <= max(gaps[1], 0.001 * target) else above


def _least_kept(groups: Mapping[str, ChannelGroup], whole_heads: bool) -> str:
    """What stays at the least, in words."""
    kinds = {group.kind for group in groups.values()}
    least = {
        "one head per attention module" if whole_heads else "one channel per head": {"qk", "vo"},
        "one unit per feed-forward layer": {"ffn"},
        "one channel per other group": kinds - set(KINDS),
        "two embedding channels": {"embedding"},
    }
    *first, last = [words for words, of in least.items() if kinds & of]
    return f"{', '.join(first)} and {last}" if first else last


def _uncut_scaled(
    groups: Mapping[str, ChannelGroup], ratio: float, embedding_ratio: float
) -> Widths:
    """All widths scaled, of the uncut model, whatever was cut already."""
    widths = {}
    for name, group in groups.items():
        embedding = group.kind == "embedding"
        least = MINIMUM_EMBEDDING if embedding else 1
        share = min(1.0, ratio * embedding_ratio if embedding else ratio)
        per_head = round(group.original_width * share / group.original_heads)
        widths[name] = max(least, per_head) * group.original_heads
    return widths


def embedding_rate(model: nn.Module, embedding_ratio: float = 1.0) -> float:
    """The rate at which stage 1 would leave a model's embeddings as wide as they are.

    For uncut ones the share of the layers that are there, whatever was cut elsewhere.
    """
    count = ParameterCount(model)
    now = {n: g.width for n, g in count.groups.items() if g.kind == "embedding"}

    def scaled(ratio: float) -> Widths:
        return _uncut_scaled(count.groups, ratio, embedding_ratio)

    ratio, _ = _turning_point(
        lambda r: all(scaled(r)[name] <= width for name, width in now.items()),
        max(1.0, 1 / embedding_ratio),
    )
    return count(scaled(ratio)) / count.uncut


def settle(count: ParameterCount, widths: Widths, target: float) -> Widths:
    """Use up what rounding left over with feed-forward units, one by one.

    Rounding all widths at one ratio leaves up to one embedding channel's worth
    of parameters; a feed-forward unit is the smallest piece there is. Groups of kinds
    that a user declares count as such units.
    """
    names = [n for n, g in count.groups.items() if g.ranked_across]
    if not names:
        return widths
    widths = dict(widths)
    while True:
        now = count(widths)
        step = 1 if now < target else -1
        best, best_gap = None, abs(now - target)
        for name in names:
            width = widths[name] + step
            if not minimum_width(count.groups[name]) <= width <= count.groups[name].width:
                continue
            gap = abs(count({**widths, name: width}) - target)
            # The widest (narrowest) layer gives (takes) first: shares stay equal.
            if gap < best_gap and (best is None or step * widths[name] < step * widths[best]):
                best = name
        if best is None:
            return widths
        widths[best] += step


def iteration_rate(compression_rate: float, iteration: int, iterations: int) -> float:
    """Compression rate after ``iteration`` of ``iterations``: equal ratios multiply up.

    With the share p = 1 - rate to remove, every iteration removes
    1 - (1 - p)^(1/iterations) of what is there.
    """
    return compression_rate ** (iteration / iterations)
