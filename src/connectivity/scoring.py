"""What criteria of importance are made of: their input, their options, their registry."""

from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, Mapping, Optional

from torch import Tensor

from .groups import ChannelGroup

Scores = Dict[str, Tensor]
Groups = Mapping[str, ChannelGroup]
# Adds up a tensor over all processes, in place.
Reduce = Callable[[Tensor], None]


@dataclass(frozen=True)
class ScoringBatch:
    """One batch of training sentences; calling it computes its loss.

    Args:
        loss: the loss, summed over target tokens.
        tokens: number of these tokens, without padding; ``grad`` and ``taylor`` divide by it.
        relevance: the sum of their logits, made so that its gradient
            times an activation is that activation's relevance; ``lrp`` alone needs it.
    """

    loss: Callable[[], Tensor]
    tokens: int = 1
    relevance: Optional[Callable[[], Tensor]] = None

    def __call__(self) -> Tensor:
        return self.loss()


@dataclass(frozen=True)
class Scoring:
    """What a criterion works on.

    Args:
        groups: the groups that are scored.
        batches: scoring batches of this process.
        reduce: adds up over processes.
        per_example: take absolute values of each sentence's sum.
        by_head: score whole heads instead of channels.
        seed: of the criterion that draws at random.
        layers: how many stay of the layers of a group (default: one), for ``ablation``.
    """

    groups: Groups
    batches: Iterable[ScoringBatch]
    reduce: Reduce
    per_example: bool = False
    by_head: bool = False
    seed: int = 1
    layers: Mapping[str, int] = field(default_factory=dict)

    def units(self, group: ChannelGroup, x: Tensor) -> Tensor:
        """What is scored together: ``[..., width]``, or its sums by head ``[..., heads]``."""
        if not self._in_heads(group):
            return x
        return x.unflatten(-1, (group.heads, -1)).sum(-1)

    def number_of_units(self, group: ChannelGroup) -> int:
        return group.heads if self._in_heads(group) else group.width

    def _in_heads(self, group: ChannelGroup) -> bool:
        return self.by_head and group.original_heads > 1


@dataclass(frozen=True)
class Criterion:
    """A registered criterion; larger scores stay.

    Args:
        function: computes the scores of all groups.
        uses_batches: whether it reads scoring batches at all.
        uses_relevance: it differentiates the batches' ``relevance``, not their loss.
        per_example: whether absolute values by sentence mean anything to it.
        of_layers: it ranks whole layers and nothing else.
    """

    function: Callable[[Scoring], Scores]
    uses_batches: bool = True
    uses_relevance: bool = False
    per_example: bool = False
    of_layers: bool = False

    def __call__(self, groups: Groups, batches, reduce: Reduce, **options) -> Scores:
        return self.function(Scoring(groups, batches, reduce, **options))


IMPORTANCE: Dict[str, Criterion] = {}


def importance_criterion(name: str, **properties):
    """Register a criterion under ``name``."""

    def register(function):
        IMPORTANCE[name] = Criterion(function, **properties)
        return function

    return register
