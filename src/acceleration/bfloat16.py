"""What a processor gains by multiplying in bfloat16."""

import functools
import time

import torch

from ..modules.linear import linear


@functools.cache
def bfloat16_gain(rounds: int = 5) -> float:
    """How many times as fast this processor multiplies bfloat16 matrices as float32 ones.

    Not every one with instructions for bfloat16 gains by them: Intel's need AMX, which
    virtual machines may hide. The least times of some products tell; it takes 0.1 s.
    """
    products = []
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = (torch.full((n, 512), 0.01, dtype=dtype) for n in (1024, 512))
        products.append(functools.partial(linear, x, weight))
    least = [float("inf")] * len(products)
    with torch.no_grad():
        for _ in range(rounds):
            for i, product in enumerate(products):
                begin = time.perf_counter()
                product()
                least[i] = min(least[i], time.perf_counter() - begin)
    return least[0] / least[1]
