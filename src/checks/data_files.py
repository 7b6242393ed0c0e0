"""Damage in fairseq's files of binarized data, noticed before they are used."""

import logging
import os
import struct
from typing import List, Optional, Tuple

import numpy as np
from fairseq.data import Dictionary
from fairseq.data.huffman import HuffmanMMapIndex
from fairseq.data.indexed_dataset import IndexedDataset, MMapIndexedDataset, _code_to_dtype

from ..errors import UserError
from ..files import UNREADABLE, reason
from . import checksums

logger = logging.getLogger(__name__)

_MAGIC = MMapIndexedDataset.Index._HDR_MAGIC
_OTHERS = (IndexedDataset._HDR_MAGIC, HuffmanMMapIndex._HDR_MAGIC[:8])  # --dataset-impl
_HEADER = struct.Struct("<QBQ")  # version, code of the numbers' type, sentences
_AT_ONCE = 1 << 24  # numbers that are compared at a time


def read_dictionary(read, path: str) -> Dictionary:
    """A dictionary from ``read(path)``, which is fairseq's way to read one.

    Raises:
        UserError: it is missing, no UTF-8 text, lacks a count, or has a type twice.
    """
    try:
        dictionary = read(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # fairseq raises plain Exceptions among others
        if type(error) is not Exception and not isinstance(error, UNREADABLE):
            raise
        raise UserError(
            f"data {path}: can't be read as a dictionary, a type and its count in each line "
            f"({reason(error)}); run fairseq-preprocess anew"
        ) from None
    checksums.check_data(os.path.dirname(path), [os.path.basename(path)], "data")
    marked = next((s for s in dictionary.symbols if s.startswith("\ufeff")), None)
    if marked is not None:
        logger.warning(
            f"{path}: {marked!r} begins with a byte order mark, which the text should not have; "
            "remove it and run fairseq-preprocess anew"
        )
    return dictionary


def check_set(task, folder: str, subset: str, option: str) -> None:
    """Check the files of a set of sentence pairs, once in a process.

    Args:
        task: its dictionaries say which numbers there are.
        option: what named the set, for messages.

    Raises:
        UserError: it has no sentences, is damaged, or its sides differ in length.
    """
    checked = vars(task).setdefault("checked_sets", set())
    if (folder, subset) in checked:
        return
    languages = task.cfg.source_lang, task.cfg.target_lang
    dictionaries = task.source_dictionary, task.target_dictionary
    total, known = 0, False
    for part in (subset, *(f"{subset}{n}" for n in range(1, len(os.listdir(folder))))):
        for pair in (languages, languages[::-1]):
            prefix = f"{part}.{'-'.join(pair)}"
            sizes = [
                check_side(os.path.join(folder, f"{prefix}.{language}"), option, dictionary)
                for language, dictionary in zip(languages, dictionaries)
            ]
            if sizes != [None, None]:
                break
        if sizes == [None, None]:
            break
        if None not in sizes and sizes[0] != sizes[1]:
            raise UserError(
                f"{option} {subset}: has {sizes[0]} source and {sizes[1]} target sentences "
                f"({os.path.join(folder, prefix)}.*); run fairseq-preprocess anew"
            )
        names = [f"{prefix}.{language}.{kind}" for language in languages for kind in ("bin", "idx")]
        checksums.check_data(folder, names, option)
        known, total = True, total + max(size or 0 for size in sizes)
    if known and not total:
        raise UserError(f"{option} {subset}: has no sentences")
    if total == 1 and subset == task.cfg.train_subset:
        logger.warning(f"{option} {subset}: {folder} has one sentence to train on")
    checked.add((folder, subset))


def check_side(path: str, option: str, dictionary: Optional[Dictionary] = None) -> Optional[int]:
    """Sentences of one side of a set in fairseq's usual format, mmap.

    Args:
        path: without ``.idx`` and ``.bin``.
        dictionary: the numbers in the data are compared with it, too.

    Returns:
        None if there is none, or in another format.

    Raises:
        UserError: its index (.idx) or data (.bin) is damaged.
    """
    index, data = f"{path}.idx", f"{path}.bin"
    if not (os.path.isfile(index) and os.path.isfile(data)):
        return None

    def refuse(name: str, problem: str):
        raise UserError(f"{option}: {name} {problem}; run fairseq-preprocess anew")

    try:
        with open(index, "rb") as stream:
            content = stream.read()
        size = os.path.getsize(data)
    except OSError as error:
        refuse(index, f"can't be read ({reason(error)})")
    if not content.strip(b"\0"):
        refuse(index, "holds only zeros" if content else "is truncated")
    start = len(_MAGIC) + _HEADER.size
    if content[: len(_MAGIC)] != _MAGIC[: len(content)]:
        if content[:8] in _OTHERS:
            return None
        refuse(index, "is damaged, or no index of fairseq's")
    if len(content) < start:
        refuse(index, "is truncated")
    version, code, sentences = _HEADER.unpack_from(content, len(_MAGIC))
    if version != 1 or code not in _code_to_dtype:
        refuse(index, "is damaged")
    if len(content) != start + sentences * 12:  # an int32 and an int64 each
        refuse(index, "is truncated or damaged")
    lengths = np.frombuffer(content, np.int32, sentences, start)
    kind = np.dtype(_code_to_dtype[code])
    ends = lengths.cumsum(dtype=np.int64)
    needed = int(ends[-1]) * kind.itemsize if sentences else 0
    if (lengths < 0).any() or size != needed:
        refuse(data, f"has {size} bytes, but its index says {needed}")
    places = np.frombuffer(content, np.int64, sentences, start + sentences * 4)
    if not np.array_equal(places, (ends - lengths) * kind.itemsize):
        refuse(index, "is damaged")
    if dictionary is not None and size:
        try:
            numbers = np.memmap(data, kind, "r")
        except (OSError, ValueError) as error:
            refuse(data, f"can't be read ({reason(error)})")
        problem = _problem(numbers, ends[lengths > 0], dictionary)
        if problem:
            refuse(data, problem)
    return sentences


def _problem(numbers: np.ndarray, ends: np.ndarray, dictionary: Dictionary) -> Optional[str]:
    """What is wrong with the numbers of a side; None if nothing is."""
    low, high = _extremes(numbers)
    if low < 0 or high >= len(dictionary):
        return f"holds type {high if low >= 0 else low}, its dictionary has {len(dictionary)}"
    if not high:  # <s>, which nothing in a sentence is
        return "holds only zeros"
    closed = numbers[ends - 1] == dictionary.eos()
    if closed.any() and not closed.all():  # fairseq-preprocess ends every sentence
        number = int(np.flatnonzero(~closed)[0]) + 1
        return f"is damaged: sentence {number} does not end like others"
    return None


def _extremes(numbers: np.ndarray) -> Tuple[int, int]:
    parts: List[np.ndarray] = [
        numbers[begin : begin + _AT_ONCE] for begin in range(0, len(numbers), _AT_ONCE)
    ]
    return min(int(p.min()) for p in parts), max(int(p.max()) for p in parts)
