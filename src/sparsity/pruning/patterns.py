"""Which weights are removed together.

A weight is viewed as a matrix ``[out, in]``. A convolution's weight
``[Cout, Cin, kh, kw]`` becomes ``[Cout, kh·kw·Cin]``, so that neighbours in a row
are channels of one position of the kernel.
"""

import re
from abc import ABC, abstractmethod
from typing import Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SparsityError

REDUCTIONS = ("mean", "sum", "max")
# what the Pytorch Pruner's own files write before a pattern; it means nothing there either
PREFIX = re.compile(r"(tile|oc|ic)_pattern_")
VALID = '"NxM" (as 4x1), "N:M" (as 2:4), "channelx1" or "1xchannel"'
# Up to here ranks in a group are cheaper by comparing pairs than by sorting.
PAIRWISE = 64


def parse_pattern(text: str) -> "Pattern":
    """The pattern that ``text`` names.

    Args:
        text: ``"NxM"``: blocks of N outputs × M inputs; ``"N:M"``: N of M consecutive
            inputs of an output are removed (the hardware's 2:4 is the same either
            way; 1:4 removes one of four); ``"channelx1"``: one input of all outputs;
            ``"1xchannel"``: one output. ``tile_pattern_``, ``oc_pattern_`` or
            ``ic_pattern_`` may stand before it.

    Raises:
        SparsityError: ``text`` is none of them.
    """
    text = str(text).strip()
    prefix = PREFIX.match(text)
    if prefix:
        text = text[prefix.end() :]
    if text in ("channelx1", "1xchannel"):
        return BlockPattern(text, None, 1) if text[0] == "c" else BlockPattern(text, 1, None)
    match = re.fullmatch(r"([1-9][0-9]*)([x:])([1-9][0-9]*)", text)
    if not match:
        raise SparsityError(f"pattern: {text!r} is unknown; give {VALID}")
    first, second = int(match[1]), int(match[3])
    if match[2] == "x":
        return BlockPattern(text, first, second)
    if first >= second:
        raise SparsityError(
            f"pattern: {text!r} would remove {first} of every {second} inputs; "
            "in N:M, N must be smaller than M"
        )
    return GroupPattern(text, first, second)


class Pattern(ABC):
    """Blocks of a weight that are removed together.

    Blocks are numbered row by row. All tensors are matrices ``[out, in]`` unless
    said otherwise.

    Attributes:
        text: the pattern as written in a configuration.
        limit: sparsity that the pattern can reach where it divides a layer.
    """

    limit = 1.0

    def __init__(self, text: str):
        self.text = text

    def __repr__(self):
        return f"{type(self).__name__}({self.text!r})"

    @staticmethod
    def matrix(weight: Tensor) -> Tensor:
        """``weight`` [out, in, ...] as a matrix [out, ...·in]; a view where possible.

        Raises:
            SparsityError: ``weight`` has fewer than two dimensions.
        """
        if weight.dim() < 2:
            raise SparsityError(
                f"a weight of shape {list(weight.shape)} has no inputs and outputs; "
                "patterns need two dimensions or more"
            )
        if weight.dim() == 2:
            return weight
        return weight.movedim(1, -1).reshape(weight.shape[0], -1)

    @staticmethod
    def tensor(matrix: Tensor, shape) -> Tensor:
        """Undo :meth:`matrix`: [out, ...·in] back to ``shape`` [out, in, ...]."""
        if len(shape) == 2:
            return matrix.reshape(tuple(shape))
        moved = (shape[0], *shape[2:], shape[1])
        return matrix.reshape(moved).movedim(-1, 1)

    @abstractmethod
    def block_scores(self, scores: Tensor, reduce: str = "mean") -> Tensor:
        """Score of each block [blocks] from the scores of the elements it removes.

        Args:
            scores: [out, in].
            reduce: ``mean``, ``sum`` or ``max`` over the elements of a block.
        """

    @abstractmethod
    def block_sizes(self, shape: Sequence[int]) -> Tensor:
        """Number of elements that removing each block removes [blocks], int64."""

    @abstractmethod
    def expand(self, blocks: Tensor, scores: Tensor) -> Tensor:
        """Mask of the elements that stay (True) when ``blocks`` are removed.

        Args:
            blocks: [blocks], True where the block is removed.
            scores: [out, in]; N:M removes the lowest of a group by them.
        """

    @abstractmethod
    def removed_blocks(self, mask: Tensor) -> Tensor:
        """Undo :meth:`expand`: which blocks [blocks] ``mask`` removes."""

    def max_sparsity(self, shape: Tuple[int, int]) -> float:
        """Largest sparsity that this pattern allows for a matrix of ``shape``."""
        return int(self.block_sizes(shape).sum()) / (shape[0] * shape[1])


class BlockPattern(Pattern):
    """Blocks of ``rows`` outputs × ``columns`` inputs; the last ones may be smaller.

    Args:
        text: the pattern as written in a configuration.
        rows: outputs in a block; ``None``: all.
        columns: inputs in a block; ``None``: all.
    """

    def __init__(self, text: str, rows, columns):
        super().__init__(text)
        self.rows, self.columns = rows, columns

    def _grid(self, shape) -> Tuple[int, int, int, int]:
        """Rows and columns of a block, and of the grid of blocks."""
        rows = min(self.rows or shape[0], shape[0])
        columns = min(self.columns or shape[1], shape[1])
        return rows, columns, -(-shape[0] // rows), -(-shape[1] // columns)

    def _sizes(self, shape) -> Tensor:
        rows, columns, down, across = self._grid(shape)
        height = torch.full((down,), rows)
        width = torch.full((across,), columns)
        height[-1] = shape[0] - rows * (down - 1)
        width[-1] = shape[1] - columns * (across - 1)
        return height[:, None] * width

    def block_sizes(self, shape):
        rows, columns, down, across = self._grid(shape)
        if rows * down == shape[0] and columns * across == shape[1]:
            return torch.tensor([rows * columns]).expand(down * across)
        return self._sizes(shape).flatten()

    def block_scores(self, scores, reduce="mean"):
        rows, columns, down, across = self._grid(scores.shape)
        if rows == columns == 1:
            return scores.reshape(-1)
        missing = (rows * down - scores.shape[0], columns * across - scores.shape[1])
        if any(missing):
            fill = -torch.inf if reduce == "max" else 0.0
            scores = F.pad(scores, (0, missing[1], 0, missing[0]), value=fill)
        grid = scores.reshape(down, rows, across, columns)
        # one dimension after the other: twice as fast as both at once
        if reduce == "max":
            return grid.amax(1).amax(2).flatten()
        total = grid.sum(1).sum(2)
        if reduce == "sum":
            return total.flatten()
        if any(missing):
            sizes = self._sizes((rows * down - missing[0], columns * across - missing[1]))
            return (total / sizes.to(total)).flatten()
        return (total / (rows * columns)).flatten()

    def expand(self, blocks, scores):
        rows, columns, down, across = self._grid(scores.shape)
        kept = ~blocks.view(down, 1, across, 1)
        full = kept.expand(down, rows, across, columns)
        full = full.reshape(down * rows, across * columns)
        return full[: scores.shape[0], : scores.shape[1]].contiguous()

    def removed_blocks(self, mask):
        rows, columns, _, _ = self._grid(mask.shape)
        return ~mask[::rows, ::columns].reshape(-1)


class GroupPattern(Pattern):
    """Groups of ``width`` consecutive inputs of an output, ``count`` of which go.

    The last group of a row may hold fewer, m; then ⌊count·m/width⌋ go.

    Args:
        text: the pattern as written in a configuration.
        count: N, how many elements of a group are removed.
        width: M, how many elements a group holds.
    """

    def __init__(self, text: str, count: int, width: int):
        super().__init__(text)
        self.count, self.width = count, width
        self.limit = count / width

    def _columns(self, inputs: int) -> Tuple[int, int, int]:
        """Full groups in a row, elements of the last smaller one, how many of it go."""
        full, rest = divmod(inputs, self.width)
        return full, rest, self.count * rest // self.width

    def block_sizes(self, shape):
        full, rest, rest_count = self._columns(shape[1])
        if not rest:
            return torch.tensor([self.count]).expand(shape[0] * full)
        row = torch.tensor([self.count] * full + [rest_count])
        return row.repeat(shape[0])

    def _lowest(self, scores: Tensor) -> Tensor:
        """True at the elements [out, in] that go when their groups go."""
        full, rest, rest_count = self._columns(scores.shape[1])
        end = full * self.width
        lowest = torch.empty_like(scores, dtype=torch.bool)
        if full:
            groups = scores[:, :end].reshape(-1, self.width)
            lowest[:, :end] = _lowest_in_row(groups, self.count).view(-1, end)
        if rest:
            lowest[:, end:] = _lowest_in_row(scores[:, end:], rest_count)
        return lowest

    def _pad(self, matrix: Tensor, value) -> Tensor:
        """``matrix`` [out, in] as groups [out, groups, M], the missing ones ``value``."""
        missing = -matrix.shape[1] % self.width
        if missing:
            matrix = F.pad(matrix, (0, missing), value=value)
        return matrix.reshape(matrix.shape[0], -1, self.width)

    def block_scores(self, scores, reduce="mean"):
        lowest = self._lowest(scores)
        if reduce == "max":
            highest = self._pad(scores.masked_fill(~lowest, -torch.inf), -torch.inf)
            return highest.amax(2).flatten()
        total = self._pad(scores * lowest, 0.0).sum(2).flatten()
        if reduce == "sum":
            return total
        sizes = self.block_sizes(scores.shape).to(total).clamp(min=1)
        return total / sizes

    def expand(self, blocks, scores):
        rows, columns = scores.shape
        groups = blocks.view(rows, -1)
        removed = groups.repeat_interleave(self.width, 1)[:, :columns]
        return ~(removed & self._lowest(scores))

    def removed_blocks(self, mask):
        return ~self._pad(mask, True).all(2).flatten()


def _lowest_in_row(rows: Tensor, count: int) -> Tensor:
    """True at the ``count`` lowest of each row; of equal ones the first goes first."""
    width = rows.shape[1]
    if width > PAIRWISE:
        order = rows.argsort(dim=1, stable=True)[:, :count]
        return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True)
    columns = [rows[:, i].contiguous() for i in range(width)]
    ranks = [torch.zeros_like(c, dtype=torch.uint8) for c in columns]
    for later in range(width):
        for earlier in range(later):
            behind = columns[earlier] <= columns[later]
            ranks[later] += behind
            ranks[earlier] += ~behind
    return torch.stack([rank < count for rank in ranks], dim=1)
