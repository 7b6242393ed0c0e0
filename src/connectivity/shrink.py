"""How the connectivity of selected channels goes from 1 to exactly 0."""

import math
from typing import Callable, Dict

# The geometric schedules reach this before the last step sets 0.
GEOMETRIC_END = 1e-5


def _arithmetic(progress: float) -> float:
    return 1.0 - progress


def _geometric(progress: float) -> float:
    return GEOMETRIC_END**progress


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


# name -> (shape, whether it moves only at the end of an epoch)
SCHEDULES: Dict[str, tuple] = {
    "sa": (_arithmetic, False),
    "sg": (_geometric, False),
    "sc": (_cosine, False),
    "ea": (_arithmetic, True),
    "eg": (_geometric, True),
    "ec": (_cosine, True),
}


def connectivity_at(decreasing: str, step: int, steps: int, ended: int, epochs: int) -> float:
    """Connectivity of a selected channel after ``step`` of ``steps`` updates.

    Args:
        decreasing: ``sa``/``sg``/``sc`` arithmetic/geometric/half a cosine every
            update, ``ea``/``eg``/``ec`` the same once per epoch.
        ended: epochs that have ended; they need not have equally many updates.
        epochs: number of epochs that the ``steps`` updates make up.

    Returns:
        1 at step 0, exactly 0 at step ``steps`` (and for ``steps == 0``).
    """
    shape: Callable[[float], float]
    shape, per_epoch = SCHEDULES[decreasing]
    if step >= steps:
        return 0.0
    return shape(ended / epochs if per_epoch else step / steps)
