"""Choose the fastest of several products of the same weight by timing them briefly."""

import random
import statistics
import time
from typing import Callable, Dict, List, NamedTuple

import torch
from torch import Tensor

from .products import Product

# How many times faster than dense another product must have been.
MARGIN = 1.05
BUDGET = 0.04  # seconds
# Rounds of timing: at most; after which the hopeless are dropped; enough of them.
_ROUNDS, _DROP, _ENOUGH = 40, (2, 5), 6
# Numbers that fill the cache next to a core.
_CACHE = 1 << 19


class Choice(NamedTuple):
    """The chosen product.

    Attributes:
        name: of the layout.
        product: ``[rows, in]`` to ``[rows, out]``.
        seconds: per product, of the layouts that were timed; empty if none had to be.
    """

    name: str
    product: Product
    seconds: Dict[str, float]


@torch.no_grad()
def choose_among(
    products: Dict[str, Product],
    x: Tensor,
    budget: float = BUDGET,
    margin: float = MARGIN,
) -> Choice:
    """The product that is fastest with ``x``; "dense" unless one is so by ``margin``."""
    if len(products) == 1:
        return Choice("dense", products["dense"], {})
    for product in products.values():
        product(x)
    times = _measure(products, x, budget)
    name = _winner(times, margin)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return Choice(name, products[name], seconds)


def _winner(times: Dict[str, List[float]], margin: float) -> str:
    """The fastest layout, or dense unless that one is faster by ``margin``."""
    best = min(times, key=lambda name: statistics.median(times[name]))
    base = times["dense"]
    # neither some slow rounds of dense nor a lucky one of the other decide
    typical = statistics.median(base) / statistics.median(times[best])
    return best if min(typical, min(base) / min(times[best])) >= margin else "dense"


def _measure(products: Dict[str, Product], x: Tensor, budget: float) -> Dict[str, List[float]]:
    """Seconds per call of every product, timed round by round in random order.

    What is far behind the best is dropped after the first rounds. Between two products
    the cache is filled with something else, as a model's other layers do.
    """
    clock, wait, others = _clock(x), _nothing, torch.zeros(_CACHE)
    if x.is_cuda:
        wait, others = torch.cuda.synchronize, torch.zeros(1)
    order, generator = list(products), random.Random(1)
    times: Dict[str, List[float]] = {name: [] for name in products}
    start = time.perf_counter()
    for number in range(1, _ROUNDS + 1):
        generator.shuffle(order)
        for name in order:
            others.add_(1)
            wait()
            begin = clock()
            products[name](x)
            wait()
            times[name].append(clock() - begin)
        if number in _DROP:
            best = min(min(values) for values in times.values())
            far = 3 if number == _DROP[0] else 1.5
            order = [k for k in order if k == "dense" or min(times[k]) < far * best]
        if number >= _ENOUGH and time.perf_counter() - start > budget:
            break
    return times


def _clock(x: Tensor) -> Callable[[], float]:
    """The thread's own time where it does all the work: other programs don't count."""
    alone = x.device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def _nothing() -> None:
    pass
