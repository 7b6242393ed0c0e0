"""Extending: new types for a trained model, its dictionaries and its data."""

import copy
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from fairseq.data import Dictionary
from torch import Tensor

from ..errors import UserError
from .binarized import DataFolder, Rewriter
from .segmentation import Splitter
from .selection import isolated_types
from .trimming import check_origin

INITIALIZATIONS = ("mean", "random")


class Extension(NamedTuple):
    """Types that were added.

    Attributes:
        dictionaries: the old types, then the new ones, of source and target.
        parts: for each side the old numbers that spell a new type, by its number;
            one that nothing spells is missing.
        rewriters: what writes sentences in the extended dictionaries.
        numbers: of old types, of source and target.
    """

    dictionaries: Tuple[Dictionary, Dictionary]
    parts: Tuple[Dict[int, List[int]], Dict[int, List[int]]]
    rewriters: Tuple[Rewriter, Rewriter]
    numbers: Tuple[int, int]

    def new_rows(self, how: str, seed: int) -> Callable[[Tensor, int], Tensor]:
        """For ``tables.change_rows``: the old rows, then those of the new types.

        Args:
            how: of :data:`INITIALIZATIONS`.
            seed: of random rows, which are normal with a variance of 1 / width, as
                fairseq initializes embeddings. Those of masks are ones.
        """

        def change(table: Tensor, side: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed + side)
            added = len(self.dictionaries[side]) - len(table)
            if table.dtype == torch.bool:
                return torch.cat([table, table.new_ones(added, table.shape[1])])
            rows = torch.randn(added, table.shape[1], generator=generator)
            rows *= table.shape[1] ** -0.5
            if how == "mean":
                for number, parts in self.parts[side].items():
                    rows[number - len(table)] = table[parts].float().mean(0)
            return torch.cat([table, rows.to(table.dtype)])

        return change

    def describe(self, how: str) -> str:
        """How the new rows begin, in a line."""
        added = [len(d) - n for d, n in zip(self.dictionaries, self.numbers)]
        spelt = [len(parts) if how == "mean" else 0 for parts in self.parts]
        return "; ".join(
            f"{name}: {number:,} types added, {some:,} begin as the mean of the types that "
            f"spell them, {number - some:,} at random"
            for name, number, some in zip(("source", "target"), added, spelt)
        )


def plan(
    data: DataFolder,
    joined: bool,
    added: Sequence[Sequence[str]],
    splitter: Optional[Splitter],
    named: str,
) -> Extension:
    """Dictionaries with new types, and what they are made of.

    Args:
        added: types for both sides, or for source and target.
        splitter: makes the new types of text; without one data keep their tokens.
        named: the files of ``--extend``, for messages.

    Raises:
        UserError: nothing is new, sides that have one dictionary would differ, or the
            splitter does not make the dictionary's types.
    """
    if joined and len(added) == 2 and set(added[0]) != set(added[1]):
        raise UserError(
            f"--extend {named}: source and target have one dictionary here; give one file"
        )
    if data.alignments and splitter is not None:
        raise UserError(
            f"data {data.path}: has word alignments ({data.alignments[0]}), which don't fit text "
            "that is split anew; take them out of the folder"
        )
    sides = []
    for side, old in enumerate(data.dictionaries):
        if side and joined:
            sides.append(sides[0])
            continue
        sides.append(_extended(old, added[side % len(added)], splitter))
    if all(len(new) == len(old) for old, (new, _, _) in zip(data.dictionaries, sides)):
        raise UserError(f"--extend {named}: has no type that the dictionaries lack")
    (first, parts, writes), (second, more_parts, more_writes) = sides
    numbers = tuple(len(d) for d in data.dictionaries)
    return Extension((first, second), (parts, more_parts), (writes, more_writes), numbers)


def _extended(old: Dictionary, types: Sequence[str], splitter: Optional[Splitter]):
    new = copy.deepcopy(old)
    for symbol in types:
        if symbol not in new:
            new.add_symbol(symbol, n=0)
    restricted, parts = None, {}
    if splitter is not None:
        check_origin(new, splitter)
        before, restricted = splitter.over(old.symbols), splitter.over(new.symbols)
        isolated = isolated_types(new)
        for number in range(len(old), len(new)):
            symbol = new.symbols[number]
            if symbol in isolated:
                continue
            pieces = before.split((symbol,))
            if before.vocabulary.issuperset(pieces):
                parts[number] = [old.indices[piece] for piece in pieces]
    return new, parts, Rewriter(old, new, np.arange(len(old)), restricted, whole=True)
