"""Which types of a dictionary stay, and the dictionary of those that do."""

import re
from collections import Counter
from typing import Collection, Dict, Iterable, List, NamedTuple, Optional, Set

import numpy as np
from fairseq.data import Dictionary

from ..errors import UserError
from .segmentation import Splitter

# Language tags of multilingual models: __de__ (M2M-100), <2de>, de_DE and [de_DE] (mBART),
# deu_Latn (NLLB), and the mask of denoising.
TAG = re.compile(
    r"__[a-z]{2,3}(?:_[A-Za-z]+)?__|<2[A-Za-z_-]+>|\[[a-z]{2,3}_[A-Z]{2}\]|[a-z]{2,3}_[A-Z]{2}"
    r"|[a-z]{3}_[A-Z][a-z]{3}|<mask>|\[MASK\]|<lang:[A-Za-z_-]+>"
)


class Limits(NamedTuple):
    """What is asked to stay.

    Attributes:
        max_types: most types of a dictionary, None for no limit.
        min_count: least number in the training data of a type that stays.
        keep: types that stay whatever their number.
    """

    max_types: Optional[int] = None
    min_count: int = 1
    keep: Collection[str] = ()


def isolated_types(dictionary: Dictionary) -> Set[str]:
    """Types that are no text: the special ones and language tags."""
    special = dictionary.symbols[: dictionary.nspecial]
    return {*special, *filter(TAG.fullmatch, dictionary.symbols)}


def is_character(symbol: str, splitter: Optional[Splitter]) -> bool:
    """Whether a type is one character or byte."""
    if splitter is not None:
        return splitter.is_character(symbol)
    plain = symbol.removesuffix("@@") or symbol
    return len(plain) <= 1 or re.fullmatch("<0x[0-9A-F]{2}>", symbol) is not None


class Required(NamedTuple):
    """Types that stay whatever the limits.

    Attributes:
        stays: ``[N]``, whether a type is one.
        reasons: how many there are by the reason for it.
    """

    stays: np.ndarray
    reasons: Dict[str, int]


def required_types(
    dictionary: Dictionary,
    used: np.ndarray,
    keep: Collection[str],
    splitter: Optional[Splitter],
) -> Required:
    """Special types, tags, characters, and what nothing else can write.

    Args:
        used: ``[N]``, whether a type is in any of the data, training or not.
        keep: types that stay because they are asked for.
        splitter: over the whole dictionary; without one text can't be split anew, so
            every type that is used has to stay.
    """
    isolated, keep = isolated_types(dictionary), frozenset(keep)

    def reason(number: int, symbol: str) -> Optional[str]:
        if number < dictionary.nspecial or symbol in isolated:
            return "special types and tags"
        if symbol in keep:
            return "types of --keep-types"
        if is_character(symbol, splitter):
            return "characters"
        if used[number] and (splitter is None or not splitter.can_write(symbol)):
            return "types that nothing else can write"
        return None

    reasons = [reason(*item) for item in enumerate(dictionary.symbols)]
    numbers = Counter(name for name in reasons if name is not None)
    return Required(np.array([name is not None for name in reasons]), dict(numbers))


def choose_types(
    counts: np.ndarray, required: Required, limits: Limits, splitter: Optional[Splitter]
) -> np.ndarray:
    """The numbers of the types that stay, in their order.

    Beyond ``max_types`` the rarest go, of equally rare ones those that come later in the
    dictionary.

    Args:
        counts: ``[N]``, how often each type is in the training data.

    Raises:
        UserError: more types have to stay than ``max_types`` allows.
    """
    stays = required.stays.copy()
    free = np.flatnonzero(~stays & (counts >= max(1, limits.min_count)))
    if limits.max_types is not None:
        room = limits.max_types - int(stays.sum())
        if room < 0:
            least = int(stays.sum())
            raise UserError(_too_few(limits.max_types, least, required.reasons, splitter))
        free = free[np.argsort(-counts[free], kind="stable")[:room]]
    stays[free] = True
    return np.flatnonzero(stays)


def _too_few(limit: int, least: int, numbers, splitter) -> str:
    named = ", ".join(f"{number:,} {name}" for name, number in numbers.items())
    advice = ""
    if splitter is None:
        advice = (
            ", or name what splits text anew (--bpe-codes or --sentencepiece-model), without "
            "which all types that the data use stay"
        )
    return (
        f"--max-types {limit}: {least:,} types have to stay ({named}); give at least that{advice}"
    )


def sub_dictionary(dictionary: Dictionary, kept: Iterable[int], counts: np.ndarray) -> Dictionary:
    """A dictionary of some types of another, with new counts.

    Args:
        kept: their numbers in order, all special ones among them.
        counts: of the types that are kept, in their order.
    """
    found = Dictionary(
        bos=dictionary.bos_word,
        pad=dictionary.pad_word,
        eos=dictionary.eos_word,
        unk=dictionary.unk_word,
        extra_special_symbols=dictionary.symbols[4 : dictionary.nspecial],
    )
    for number, count in zip(kept, counts):
        if number >= dictionary.nspecial:
            symbol = dictionary.symbols[number]
            found.add_symbol(symbol, n=int(count), overwrite=symbol in found)
    return found


def save_dictionary(dictionary: Dictionary, path: str) -> None:
    """Write a dictionary as ``Dictionary.load`` reads it, repeated symbols too."""
    seen = set(dictionary.symbols[: dictionary.nspecial])
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for symbol, count in list(zip(dictionary.symbols, dictionary.count))[dictionary.nspecial :]:
            stream.write(f"{symbol} {count}{' #fairseq:overwrite' if symbol in seen else ''}\n")
            seen.add(symbol)


def read_types(path: str, option: str) -> List[str]:
    """The types of a file, one a line, with or without a count after them.

    Raises:
        UserError: it can't be read, or has no types.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as stream:
            lines = [line.rstrip("\r\n").split(" ")[0] for line in stream]
    except OSError as error:
        raise UserError(f"{option} {path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{option} {path}: is no text; give one type a line") from None
    found = list(dict.fromkeys(line for line in lines if line))
    if not found:
        raise UserError(f"{option} {path}: is empty; give one type a line")
    return found
