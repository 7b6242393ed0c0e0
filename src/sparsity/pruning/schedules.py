"""When a pruner prunes, and how much it has removed by then.

Steps are optimizer steps that are complete. Sparsity is the fraction removed.
"""

import math
from dataclasses import dataclass
from typing import Callable, Dict

from ..errors import SparsityError

# Sparsity after the share `progress` (p/n, in [0, 1]) of the prunes, given the target.
DECAYS: Dict[str, Callable[[float, float], float]] = {
    "linear": lambda target, progress: target * progress,
    "cos": lambda target, progress: target * (1 - math.cos(math.pi / 2 * progress)),
    "exp": lambda target, progress: 1 - (1 - target) ** progress,
    "cube": lambda target, progress: target * progress**3,
    # Zhu and Gupta, To prune, or not to prune (arXiv 1710.01878), equation 1
    "zhu_gupta": lambda target, progress: target * (1 - (1 - progress) ** 3),
}


@dataclass(frozen=True)
class Schedule:
    """Prunes at ``start``, ``start + frequency``, … up to ``end``.

    Args:
        start: first step at which something is pruned.
        end: no prune comes after this step; equal to ``start``: one shot.
        frequency: steps between two prunes.
        target: sparsity after the last prune.
        decay: name in :data:`DECAYS` of the curve in between.
        initial: sparsity at which the curve begins.

    Raises:
        SparsityError: ``end`` before ``start``, ``frequency`` below 1, or an
            unknown ``decay``.
    """

    start: int
    end: int
    frequency: int
    target: float
    decay: str
    initial: float = 0.0

    def __post_init__(self):
        if self.end < self.start:
            raise SparsityError(
                f"end_step: {self.end} lies before start_step {self.start}; give the same "
                "step for one shot, or a later one"
            )
        if self.frequency < 1:
            raise SparsityError(f"update_frequency_on_step: {self.frequency}; give an int above 0")
        if self.decay not in DECAYS:
            raise SparsityError(
                f"sparsity_decay_type: {self.decay!r} is unknown; choose from {', '.join(DECAYS)}"
            )

    @property
    def steps(self) -> range:
        """Steps at which something is pruned; never empty."""
        return range(self.start, self.end + 1, self.frequency)

    @property
    def last(self) -> int:
        """Step of the last prune, which lands on the target."""
        return self.steps[-1]

    def due(self, step: int) -> bool:
        """Whether a prune is planned at ``step``."""
        return step in self.steps

    def latest(self, step: int) -> int:
        """Step of the latest prune planned at or before ``step``; -1 without one."""
        if step < self.start:
            return -1
        return min(step - (step - self.start) % self.frequency, self.last)

    def sparsity_after(self, step: int) -> float:
        """Sparsity that the prunes planned up to and at ``step`` have reached."""
        if step < self.start:
            return 0.0
        prunes = len(self.steps)
        done = min((step - self.start) // self.frequency + 1, prunes)
        if done == prunes:  # rounding of the curve must not miss the target
            return self.target
        # the curve from 0 to the share of what the beginning leaves
        share = (self.target - self.initial) / (1 - self.initial)
        return self.initial + (1 - self.initial) * DECAYS[self.decay](share, done / prunes)
