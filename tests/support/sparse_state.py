"""Tensors for sparse files, the same bits wherever they are made."""

from typing import Dict

import torch


def _scattered(n: int, seed: int) -> torch.Tensor:
    """Numbers from 0 to 999 that follow no pattern."""
    mixed = (torch.arange(n) + seed) * 2654435761 % 2**32
    return (mixed * (mixed // 65536) // 256) % 1000


def _floats(*shape: int, density: float = 1, seed: int = 0) -> torch.Tensor:
    n = torch.Size(shape).numel()
    kept = _scattered(n, seed + 7) < 1000 * density
    values = torch.where(kept, (_scattered(n, seed) - 500.5) / 256, 0.0)
    return values.reshape(shape)


def every_encoding() -> Dict[str, torch.Tensor]:
    """A tensor for each way in which a sparse file keeps one."""
    half = _floats(30, 40, density=0.5)
    signs = _floats(30, 40, seed=1) * (_floats(30, 40, density=0.2, seed=2) != 0)
    return {
        "bias": _floats(12),
        "gaps": _floats(50, 60, density=0.03, seed=3),
        "bitmap": half,
        "tied": half,
        "flat": half.view(-1),
        "signs": signs,
        "constant": torch.ones(100, dtype=torch.int64),
        "mask": _floats(90, 20, density=0.1) != 0,
        "nothing": torch.zeros(90, 90, dtype=torch.bfloat16),
        "far": torch.zeros(3000).index_fill_(0, torch.tensor([3, 2500]), 1.5),
        "half": _floats(40, 9, density=0.4, seed=4).half(),
        "short": _floats(20, seed=5).bfloat16(),
        "double": _floats(5, 3, seed=6).double(),
        "complex": torch.complex(_floats(9, seed=8), _floats(9, seed=9)),
        "tiny": _floats(7).to(torch.float8_e5m2),
        "empty": torch.empty(0, 7),
        "number": torch.tensor(5),
        "__metadata__": _floats(3),
        "é𝄞\n": _floats(2, 2),
        "\ud800": _floats(4, 4),
    }
