"""Trimming: a model, its dictionaries and its data without types that are not needed."""

import logging
from collections import deque
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from fairseq.data import Dictionary

from ..errors import UserError
from .binarized import Counts, DataFolder, Lengths, Rewriter, rewrite
from .segmentation import Splitter
from .selection import Limits, choose_types, isolated_types, required_types, sub_dictionary
from .tables import State, bytes_per_parameter, count_parameters, table_sizes

logger = logging.getLogger(__name__)

_CHECKED_WORDS = 2000  # distinct words whose tokens are made again
_AGREEING = 0.9  # least share of them that must come out as they are
NEVER = 2**62  # a least number that no type reaches
SAMPLE = 2000  # training sentences from which --dry-run estimates lengths


class Vocabulary(NamedTuple):
    """One pair of dictionaries, and what is known of the data's types in them.

    Attributes:
        joined: both sides have one dictionary.
        splitters: over the whole dictionary of each side, None without one.
    """

    dictionaries: Tuple[Dictionary, Dictionary]
    counts: Counts
    joined: bool
    splitters: Tuple[Optional[Splitter], Optional[Splitter]]


class Choice(NamedTuple):
    """Types that stay, of source and target.

    Attributes:
        kept: their numbers in order.
        dictionaries: of these types.
    """

    kept: Tuple[np.ndarray, np.ndarray]
    dictionaries: Tuple[Dictionary, Dictionary]

    def rewriters(self, old: Vocabulary) -> Tuple[Rewriter, Rewriter]:
        """What writes sentences of either side in the types that stay."""
        made = []
        for side in (0, 1):
            before, after = old.dictionaries[side], self.dictionaries[side]
            numbers = np.full(len(before), -1, dtype=np.int64)
            numbers[self.kept[side]] = np.arange(len(after))
            splitter = old.splitters[side]
            restricted = None if splitter is None else splitter.over(after.symbols)
            made.append(Rewriter(before, after, numbers, restricted))
        return made[0], made[1]


def study(data: DataFolder, joined: bool, splitter: Optional[Splitter]) -> Vocabulary:
    """Count the data's types, and check that the splitter is the one that made them.

    Raises:
        UserError: the codes or the model are of another dictionary or other text.
    """
    source, target = data.dictionaries
    counts = data.counts()
    if joined:
        counts = counts.joined()
    splitters: Tuple[Optional[Splitter], Optional[Splitter]] = (None, None)
    if splitter is not None:
        first = splitter.over(source.symbols)
        splitters = first, first if joined else splitter.over(target.symbols)
        for dictionary, over in zip(data.dictionaries, splitters):
            check_origin(dictionary, over)
        check_words(data, splitters)
    return Vocabulary(data.dictionaries, counts, joined, splitters)


def check_origin(dictionary: Dictionary, splitter: Splitter) -> None:
    """Refuse codes or a model that don't make the types of a dictionary.

    Raises:
        UserError: says how many of them they make.
    """
    isolated = isolated_types(dictionary)
    words = [
        symbol
        for symbol in dictionary.symbols
        if symbol not in isolated and not splitter.is_character(symbol)
    ]
    words = [word for word in words if not word.startswith("madeupword")]
    made = sum(map(splitter.makes, words))
    if made < _AGREEING * len(words):
        example = next(word for word in words if not splitter.makes(word))
        raise UserError(
            f"{splitter.name}: makes {made:,} of the dictionary's {len(words):,} types of "
            f"several characters (not {example!r}); give the file that the data were made with"
        )


def check_words(data: DataFolder, splitters: Sequence[Splitter]) -> None:
    """Refuse a splitter that makes other tokens of the training data's text.

    Raises:
        UserError: says of how many words, and shows one.
    """
    for side in (0, 1):
        dictionary, splitter = data.dictionaries[side], splitters[side]
        isolated, words = isolated_types(dictionary), set()
        part = next(part for part in data.parts if part.training and part.side == side)
        for sentence in data.sentences(part):
            symbols = [dictionary.symbols[i] for i in sentence]
            found = splitter.words(symbols, isolated)
            words.update(word for word in found if word[0] not in isolated)
            if len(words) >= _CHECKED_WORDS:
                break
        others = [word for word in sorted(words) if splitter.split(word) != word]
        if len(others) > (1 - _AGREEING) * len(words):
            made = " ".join(splitter.split(others[0]))
            raise UserError(
                f"{splitter.name}: {len(others):,} of {len(words):,} words of {part.name} "
                f"have other tokens ({' '.join(others[0])!r} would be {made!r}); give the file "
                "that the data were made with"
            )
        if others:
            logger.warning(
                f"{splitter.name}: {len(others):,} of {len(words):,} words of {part.name} have "
                "other tokens there; only words that lose a type are split anew"
            )


def choose(vocabulary: Vocabulary, limits: Limits) -> Choice:
    """The types that stay on both sides, and their dictionaries.

    Raises:
        UserError: a limit below the types that have to stay.
    """
    kept: List[np.ndarray] = []
    made: List[Dictionary] = []
    for side in (0, 1):
        dictionary, splitter = vocabulary.dictionaries[side], vocabulary.splitters[side]
        if side and vocabulary.joined:
            kept.append(kept[0])
            made.append(made[0])
            continue
        training, all_data = (counts[side] for counts in vocabulary.counts)
        required = required_types(dictionary, all_data > 0, limits.keep, splitter)
        numbers = choose_types(training, required, limits, splitter)
        kept.append(numbers)
        made.append(sub_dictionary(dictionary, numbers, training[numbers]))
    return Choice((kept[0], kept[1]), (made[0], made[1]))


def parameters_with(state: State, vocabulary: Vocabulary, choice: Choice) -> int:
    """Parameters of the model with the types that stay."""
    removed = [len(d) - len(kept) for d, kept in zip(vocabulary.dictionaries, choice.kept)]
    return count_parameters(state) - sum(removed[side] * w for side, w in table_sizes(state))


def estimate(data: DataFolder, vocabulary: Vocabulary, choice: Choice) -> Tuple[Lengths, Lengths]:
    """Lengths of a sample of training sentences in the types that stay, of both sides."""
    found = []
    for side, rewriter in enumerate(choice.rewriters(vocabulary)):
        part = next(part for part in data.parts if part.training and part.side == side)
        dataset, lengths = data.sentences(part), Lengths()
        order = np.random.default_rng(1).permutation(len(dataset))[:SAMPLE]
        deque(rewrite(dataset, rewriter, part.name, lengths, sorted(order.tolist())), maxlen=0)
        found.append(lengths)
    return found[0], found[1]


def dry_run(
    data: DataFolder, vocabulary: Vocabulary, state: State, limits: Limits
) -> List[Dict[str, Any]]:
    """Rows of a table: types against parameters, bytes and lengths of sentences.

    Beside what is asked for, the types that are used at all, and where text can be split
    anew four limits between them and the types that have to stay.
    """
    used = Limits(keep=limits.keep)
    asked = [("all used types", used)]
    if (limits.max_types, limits.min_count) != (None, 1):
        asked.append(("as asked for", limits))
    elif vocabulary.splitters[0] is not None:
        most = max(len(kept) for kept in choose(vocabulary, used).kept)
        least = max(len(kept) for kept in choose(vocabulary, used._replace(min_count=NEVER)).kept)
        for share in (0.75, 0.5, 0.25, 0):
            limit = least + round(share * (most - least))
            asked.append((f"--max-types {limit}", used._replace(max_types=limit)))
    before, rows = count_parameters(state), []
    everything = Choice(
        tuple(np.arange(len(d)) for d in vocabulary.dictionaries), vocabulary.dictionaries
    )
    for name, some in [("as it is", None), *asked]:
        choice = everything if some is None else choose(vocabulary, some)
        parameters = parameters_with(state, vocabulary, choice)
        source, target = estimate(data, vocabulary, choice)
        rows.append(
            {
                "types": name,
                "source": len(choice.kept[0]),
                "target": len(choice.kept[1]),
                "parameters": parameters,
                "share": round(parameters / before, 4),
                "bytes": parameters * bytes_per_parameter(state),
                "source tokens": round(source.after / max(1, source.sentences), 2),
                "decoding steps": round(target.after / max(1, target.sentences), 2),
                "steps more": f"{target.growth:+.1%}",
            }
        )
    return rows
