"""Settings of SPLoPA, and the parameters that its layers share.

Legend: blocks of ``p x q``, a grid of ``R x C`` blocks, ``N`` prototypes of rank
``r``.
"""

import math
from dataclasses import dataclass
from typing import Sequence, Tuple, Union

from torch import Tensor, nn

from .errors import AdapterError
from .layer import SharedParameters
from .low_rank import check_init_range
from .update import uniform


@dataclass(frozen=True)
class BlockSettings:
    """Settings of SPLoPA.

    Args:
        block_size: ``p`` and ``q``, see :func:`block_sides`.
        num_prototypes: ``N``.
        rank: rank of a prototype.
        shared_prototypes: one set of prototypes for all layers of a network.
        shared_pos_weights: one set of position weights for all layers with the
            same grid.
        init_range: the prototypes' ``cols ~ U(-init_range, init_range)``.
    """

    block_size: Tuple[int, int] = (32, 32)
    num_prototypes: int = 64
    rank: int = 1
    shared_prototypes: bool = True
    shared_pos_weights: bool = False
    init_range: float = 1e-4

    def __post_init__(self):
        sides = block_sides(self.block_size)
        for name in ("num_prototypes", "rank"):
            if not _positive(getattr(self, name)):
                raise AdapterError(
                    f"{name} {getattr(self, name)!r}: expected an integer of at least 1"
                )
        if self.rank > min(sides):
            raise AdapterError(f"rank {self.rank} is above the smaller side of the blocks {sides}")
        check_init_range(self.init_range)

    def grid(self, shape: Sequence[int]) -> Tuple[int, int]:
        """``R`` and ``C`` for a weight of ``shape [n, m]``."""
        n, m = shape
        p, q = self.block_size
        return -(-n // p), -(-m // q)

    def check(self, weight: Tensor) -> None:
        """Raises AdapterError if ``weight [n, m]`` is empty; every other can be adapted."""
        if weight.numel() == 0:
            raise AdapterError(f"its weight of shape {tuple(weight.shape)} has no blocks")


def block_sides(size: Union[int, Sequence[int]]) -> Tuple[int, int]:
    """``p`` and ``q``, given both or one number for both.

    Raises:
        AdapterError: anything else.
    """
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(map(_positive, sides)):
        raise AdapterError(f"block_size {size!r}: expected an integer of at least 1, or two")
    p, q = sides
    return p, q


def _positive(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class Prototypes(SharedParameters):
    """``N`` blocks ``cols_i [p, r] @ rows_i [r, q]``.

    Args:
        settings: sizes and init range.
        like: a weight whose device and (at least float32) type is taken.
    """

    adapter_names = ("rows", "cols")

    def __init__(self, settings: BlockSettings, like: Tensor):
        super().__init__()
        (p, q), r = settings.block_size, settings.rank
        count = settings.num_prototypes
        self.rows = uniform((count, r, q), 1 / math.sqrt(r * q), like)
        self.cols = uniform((count, p, r), settings.init_range, like)

    @property
    def block_size(self) -> Tuple[int, int]:
        return self.cols.shape[1], self.rows.shape[2]

    def flat(self) -> Tensor:
        """``[N, p * q]``."""
        return (self.cols @ self.rows).flatten(1)

    def fits(self, settings: BlockSettings) -> bool:
        expected = (settings.num_prototypes, settings.rank, *settings.block_size)
        return (*self.rows.shape[:2], *self.block_size) == expected

    def extra_repr(self) -> str:
        count, rank, _ = self.rows.shape
        return f"{count}, block_size={self.block_size}, rank={rank}"


class PositionWeights(SharedParameters):
    """Position weights ``[N, R, C]`` that several layers share."""

    adapter_names = ("weights",)

    def __init__(self, settings: BlockSettings, grid: Tuple[int, int], like: Tensor):
        super().__init__()
        self.weights = position_weights(settings, grid, like)


def position_weights(settings: BlockSettings, grid: Tuple[int, int], like: Tensor) -> nn.Parameter:
    return uniform((settings.num_prototypes, *grid), 1 / math.sqrt(math.prod(grid)), like)
