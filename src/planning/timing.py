"""Timing several things side by side, on a machine that is never quite the same."""

import random
import statistics
import time
from contextlib import contextmanager
from typing import Callable, Dict, Hashable, Iterator, List, NamedTuple, Sequence, TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)


class Ratio(NamedTuple):
    """Median and quartiles of ratios within rounds."""

    median: float
    low: float
    high: float


@contextmanager
def threads(number: int) -> Iterator[None]:
    """A block in which PyTorch, and engines that are made in it, have so many threads.

    With several, those of PyTorch and of CTranslate2 in one process wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleave(
    variants: Dict[Name, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Dict[Name, List[float]]:
    """Seconds per call, every variant once a round, in a new random order each time.

    Args:
        warmup: rounds ahead that are not counted.
        progress: is told after each round how many are done, and of how many.
    """
    times: Dict[Name, List[float]] = {name: [] for name in variants}
    order = list(variants)
    generator = random.Random(1)
    for number in range(warmup + rounds):
        generator.shuffle(order)
        for name in order:
            start = time.perf_counter()
            variants[name]()
            if number >= warmup:
                times[name].append(time.perf_counter() - start)
        progress(number + 1, warmup + rounds)
    return times


def ratio(base: Sequence[float], times: Sequence[float]) -> Ratio:
    """How many times as fast as ``base``, round by round; at least two rounds."""
    quotients = [b / t for b, t in zip(base, times)]
    low, _, high = statistics.quantiles(quotients, n=4, method="inclusive")
    return Ratio(statistics.median(quotients), low, high)
