"""Binarized data of a pair of languages: counted, and written in another dictionary."""

import os
import re
import shutil
from dataclasses import dataclass
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from fairseq.data import Dictionary, data_utils
from fairseq.data.indexed_dataset import make_builder
from tqdm import tqdm

from ..checks.data_files import check_side
from ..errors import UserError
from ..files import UNREADABLE, fsync, reason
from .segmentation import Splitter, Word
from .selection import isolated_types

_NOT_COPIED = (".part", ".log")
_CHUNK = 4096  # sentences that are counted at once


class Part(NamedTuple):
    """One side of a data set: the files ``name.bin`` and ``name.idx``."""

    name: str
    side: int  # 0 source, 1 target
    training: bool


class DataFolder:
    """A folder of binarized data, of which one pair of languages is read.

    Args:
        languages: of source and target.
        dictionaries: of source and target.

    Raises:
        UserError: there is no training data, it is damaged or in the format raw.
    """

    def __init__(
        self,
        path: str,
        languages: Tuple[str, str],
        dictionaries: Tuple[Dictionary, Dictionary],
    ):
        self.path, self.languages, self.dictionaries = path, languages, dictionaries
        pair = f"(?:{'|'.join(map(re.escape, (*languages, 'None')))})"
        sides = "|".join(map(re.escape, languages))
        named = re.compile(rf"([^.]+)\.{pair}-{pair}\.({sides})\.idx")
        self.parts: List[Part] = []
        for entry in sorted(os.listdir(path)):
            match = named.fullmatch(entry)
            if match:
                training = re.fullmatch(r"train\d*", match[1]) is not None
                side = languages.index(match[2])
                self.parts.append(Part(entry.removesuffix(".idx"), side, training))
        if not any(part.training for part in self.parts):
            raise UserError(
                f"data {path}: has no training data of {'-'.join(languages)} "
                "(train.*.idx), from which types are counted; make it with fairseq-preprocess"
            )
        for part in self.parts:
            check_side(os.path.join(path, part.name), f"data {path}")

    @property
    def alignments(self) -> List[str]:
        """Files of word alignments, which are numbers of tokens in sentences."""
        names = sorted(os.listdir(self.path))
        return [n for n in names if ".align." in n and n.endswith((".bin", ".idx"))]

    def sentences(self, part: Part) -> Sequence[torch.Tensor]:
        """The numbers of each sentence's types, with the end."""
        path = os.path.join(self.path, part.name)
        try:
            found = data_utils.load_indexed_dataset(path, self.dictionaries[part.side])
        except UNREADABLE as error:
            raise UserError(f"data {path}: can't be read ({reason(error)})") from None
        if found is None:
            raise UserError(f"data {path}: can't be read; run fairseq-preprocess anew")
        return found

    def counts(self) -> "Counts":
        """How often every type is in the data, of each side."""
        training = [np.zeros(len(d), dtype=np.int64) for d in self.dictionaries]
        all_data = [np.zeros(len(d), dtype=np.int64) for d in self.dictionaries]
        for part in self.parts:
            dataset, types = self.sentences(part), len(self.dictionaries[part.side])
            for begin in range(0, len(dataset), _CHUNK):
                some = range(begin, min(begin + _CHUNK, len(dataset)))
                numbers = np.concatenate([dataset[i].numpy() for i in some])
                if len(numbers) and not 0 <= numbers.min() <= numbers.max() < types:
                    raise UserError(
                        f"data {self.path}: {part.name} has type number {numbers.max()}, its "
                        f"dictionary has {types} types; run fairseq-preprocess anew"
                    )
                found = np.bincount(numbers, minlength=types)
                all_data[part.side] += found
                if part.training:
                    training[part.side] += found
        return Counts(training, all_data)

    def copy_others(self, folder: str) -> List[str]:
        """Copy what is neither data nor dictionary; returns what is left out."""
        own = {f"{part.name}.{kind}" for part in self.parts for kind in ("bin", "idx")}
        own |= {f"dict.{language}.txt" for language in self.languages}
        left_out = []
        for entry in os.scandir(self.path):
            if not entry.is_file() or entry.name in own:
                continue
            another = entry.name.endswith((".bin", ".idx")) and ".align." not in entry.name
            another |= re.fullmatch(r"dict\..+\.txt", entry.name) is not None
            if another or entry.name.endswith(_NOT_COPIED):
                left_out.append(entry.name)
            else:
                shutil.copyfile(entry.path, os.path.join(folder, entry.name))
        return sorted(left_out)


class Counts(NamedTuple):
    """Occurrences of every type, of source and target."""

    training: List[np.ndarray]
    all_data: List[np.ndarray]

    def joined(self) -> "Counts":
        """Of one dictionary for both sides."""
        return Counts(*([sum(sides)] * 2 for sides in self))


class Rewriter:
    """Sentences of one dictionary in another.

    Args:
        numbers: ``[N]``, the new number of each old type, -1 of those that are gone.
        splitter: over the new dictionary; None if nothing has to be split.
        whole: split all words anew, not only those that have lost a type.
    """

    def __init__(
        self,
        old: Dictionary,
        new: Dictionary,
        numbers: np.ndarray,
        splitter: Optional[Splitter] = None,
        whole: bool = False,
    ):
        self.old, self.new, self.numbers = old, new, numbers
        self.splitter, self.whole = splitter, whole and splitter is not None
        self._isolated = isolated_types(old)
        self._known: Dict[Word, List[int]] = {}

    def __call__(self, sentence: np.ndarray) -> np.ndarray:
        """``[T]`` old numbers to ``[T']`` new ones; the text is the same."""
        found = self.numbers[sentence]
        if self.splitter is None or not (self.whole or (found < 0).any()):
            return found
        symbols = [self.old.symbols[i] for i in sentence]
        new: List[int] = []
        begin = 0
        for word in self.splitter.words(symbols, self._isolated):
            end = begin + len(word)
            kept = found[begin:end]
            isolated = len(word) == 1 and word[0] in self._isolated
            if isolated or not (self.whole or (kept < 0).any()):
                new += kept.tolist()
            else:
                new += self._split(word)
            begin = end
        return np.asarray(new, dtype=np.int64)

    def _split(self, word: Word) -> List[int]:
        if word not in self._known:
            self._known[word] = [self.new.indices[part] for part in self.splitter.split(word)]
        return self._known[word]


@dataclass
class Lengths:
    """Tokens of some sentences before and after, with the end of each.

    Attributes:
        changed: sentences with another number of tokens.
        unknown: tokens before that are the unknown word.
        still_unknown: the same after.
        longest: tokens of the longest sentence after.
    """

    sentences: int = 0
    before: int = 0
    after: int = 0
    changed: int = 0
    unknown: int = 0
    still_unknown: int = 0
    longest: int = 0

    @property
    def growth(self) -> float:
        return self.after / max(1, self.before) - 1

    def add(self, before: np.ndarray, after: np.ndarray, unks: Tuple[int, int]) -> None:
        """Count one more sentence, ``[T]`` and ``[T']`` numbers of types."""
        self.sentences += 1
        self.before += len(before)
        self.after += len(after)
        self.changed += len(after) != len(before)
        self.unknown += int((before == unks[0]).sum())
        self.still_unknown += int((after == unks[1]).sum())
        self.longest = max(self.longest, len(after))


def rewrite(
    dataset: Sequence[torch.Tensor],
    rewriter: Rewriter,
    name: str,
    lengths: Lengths,
    numbers: Optional[Sequence[int]] = None,
) -> Iterator[torch.Tensor]:
    """Every sentence anew.

    Args:
        name: for the progress bar.
        lengths: gets those of the sentences.
        numbers: of the sentences to take, default all.
    """
    unks = rewriter.old.unk(), rewriter.new.unk()
    chosen = range(len(dataset)) if numbers is None else numbers
    for number in tqdm(chosen, desc=name, unit=" sentences", disable=None, leave=False):
        sentence = dataset[number].numpy()
        new = rewriter(sentence)
        lengths.add(sentence, new, unks)
        yield torch.from_numpy(new)


def write_parts(
    data: DataFolder, rewriters: Tuple[Rewriter, Rewriter], folder: str
) -> Dict[str, Lengths]:
    """Write all parts of the data in the new dictionaries, in the format mmap.

    Returns:
        Lengths by the part's name.
    """
    found = {}
    for part in data.parts:
        rewriter, path = rewriters[part.side], os.path.join(folder, part.name)
        builder = make_builder(f"{path}.bin", "mmap", vocab_size=len(rewriter.new))
        found[part.name] = Lengths()
        sentences = data.sentences(part)
        for sentence in rewrite(sentences, rewriter, part.name, found[part.name]):
            builder.add_item(sentence)
        builder.finalize(f"{path}.idx")
        for kind in ("bin", "idx"):
            fsync(f"{path}.{kind}")
    return found
