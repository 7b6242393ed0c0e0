"""A lexical shortlist for CTranslate2: which target types can translate a source type.

The output layer then scores only these candidates of a batch's tokens, and the most
frequent types, instead of the whole vocabulary. They come from IBM model 1 (Brown et
al., 1993, The Mathematics of Statistical Machine Translation, section 4.2): t(f|e), the
probability of a target type f given a source type e or the null word, by expectation
maximization over sentence pairs. Shortlists of this kind: Jean et al. 2015, section 3.3.
"""

import logging
from typing import Dict, Iterable, Iterator, List, NamedTuple, Sequence, Set, Tuple

import numpy as np
from fairseq.data import Dictionary

from .ctranslate2_model import vocabulary
from .errors import UserError

logger = logging.getLogger(__name__)

NAME = "vmap.txt"  # where CTranslate2 looks for it
CANDIDATES = 20  # of a source type
FREQUENT = 5  # times as many are candidates of any sentence
ITERATIONS = 5
# Longest side of a pair: long ones say little of which word translates which.
LONGEST = 100
# Pairs of a source and a target position; each takes 4 bytes while training.
CELLS = 60_000_000
# Of them in a batch.
CHUNK = 1_000_000

Sentences = Sequence[np.ndarray]


class LexicalTable(NamedTuple):
    """t(target|source) of the types that occur together, sorted by source and target.

    The null word has the number after the last source type.
    """

    source: np.ndarray
    target: np.ndarray
    probability: np.ndarray


class VocabularyMap(NamedTuple):
    """Numbers of target types.

    Attributes:
        common: candidates of any sentence.
        candidates: of a source type; one that is missing has none of its own.
    """

    common: List[int]
    candidates: Dict[int, List[int]]

    def of(self, tokens: Iterable[int]) -> Set[int]:
        """The candidates of a sentence, or of several together."""
        found = set(self.common)
        for token in set(tokens):
            found.update(self.candidates.get(token, ()))
        return found

    def mean_size(self, sentences: Sequence[Sequence[int]]) -> float:
        """Candidates of a sentence on average."""
        return sum(len(self.of(tokens)) for tokens in sentences) / len(sentences)


def read_pairs(dataset, seed: int = 1, cells: int = CELLS) -> Tuple[Sentences, Sentences]:
    """Sources and targets of a fairseq dataset of pairs, without ends of sentence.

    Of a large one a random sample, always the same; empty sides and those of more than
    ``LONGEST`` tokens are left out.

    Args:
        cells: most pairs of a source and a target position.
    """
    sizes = [np.asarray(x, np.int64) - 1 for x in (dataset.src_sizes, dataset.tgt_sizes)]
    fit = [(0 < size) & (size <= LONGEST) for size in sizes]
    chosen = np.flatnonzero(fit[0] & fit[1])
    cost = (sizes[0] + 1) * sizes[1]  # with the null word
    if cost[chosen].sum() > cells:
        chosen = np.random.default_rng(seed).permutation(chosen)
        chosen = np.sort(chosen[np.cumsum(cost[chosen]) <= cells])
    sides = [], []
    for index in chosen.tolist():
        for side, texts in zip(sides, (dataset.src, dataset.tgt)):
            side.append(np.asarray(texts[index])[:-1].astype(np.int32))
    return sides


def _padded(sentences: Sentences) -> np.ndarray:
    """``[sentences, longest]``, filled up with -1."""
    rows = np.full((len(sentences), max(map(len, sentences))), -1, np.int64)
    for row, tokens in zip(rows, sentences):
        row[: len(tokens)] = tokens
    return rows


def _batches(sources: Sentences, targets: Sentences, null: int, types: int):
    """What stands together: ``source * types + target``, or -1, as ``[B, T, 1 + S]``."""
    lengths = [np.array([len(x) for x in side]) for side in (sources, targets)]
    order = np.lexsort(lengths)
    cost = np.cumsum(((lengths[0] + 1) * lengths[1])[order])
    for part in np.split(order, np.flatnonzero(np.diff(cost // CHUNK)) + 1):
        source = _padded([sources[i] for i in part])
        target = _padded([targets[i] for i in part])
        source = np.pad(source, ((0, 0), (1, 0)), constant_values=null)
        keys = source[:, None, :] * types + target[:, :, None]
        keys[(source[:, None, :] < 0) | (target[:, :, None] < 0)] = -1
        yield keys


def _distinct(batches: Iterator[np.ndarray]) -> np.ndarray:
    """The sorted keys of all batches, each once."""
    keys, new, size = np.empty(0, np.int64), [], 0
    for batch in batches:
        new.append(np.unique(batch))
        size += len(new[-1])
        if size > max(len(keys), 4 * CHUNK):  # so that all are sorted a few times only
            keys, new, size = np.unique(np.concatenate([keys, *new])), [], 0
    keys = np.unique(np.concatenate([keys, *new]))
    return keys[keys >= 0]


def lexical_table(
    sources: Sentences,
    targets: Sentences,
    source_types: int,
    target_types: int,
    iterations: int = ITERATIONS,
) -> LexicalTable:
    """IBM model 1, from uniform probabilities.

    Args:
        sources: type numbers of each sentence, at least one, without end of sentence.
        targets: of the same sentences.
        source_types: size of the dictionary.
        target_types: size of the dictionary.
    """
    def batches():
        return _batches(sources, targets, source_types, target_types)

    keys = _distinct(batches())
    # where each cell finds its probability; one of 0 stands at the end for padding
    places = []
    for batch in batches():
        distinct, inverse = np.unique(batch, return_inverse=True)
        place = np.searchsorted(keys, distinct).astype(np.int32)
        place[distinct < 0] = len(keys)
        places.append(place[inverse].reshape(batch.shape))
    source, target = keys // target_types, keys % target_types
    words = sum(map(len, targets))
    logger.info(
        f"IBM model 1: {len(targets):,} sentence pairs, {words:,} target tokens, "
        f"{len(keys):,} pairs of types"
    )
    probability = np.full(len(keys) + 1, 1 / target_types)
    for iteration in range(iterations):
        probability[-1] = 0
        counts = np.zeros(len(keys) + 1)
        likelihood = 0.0
        for place in places:
            share = probability[place]
            total = share.sum(axis=-1, keepdims=True)
            there = total[total > 0]
            likelihood += float(np.log(there).sum())
            share /= np.where(total > 0, total, 1)
            np.add.at(counts, place.ravel(), share.ravel())
        totals = np.bincount(source, counts[:-1], minlength=source_types + 1)
        probability[:-1] = counts[:-1] / totals[source]
        # but for the lengths of the sources, which stay the same
        logger.info(f"iteration {iteration + 1}: {likelihood / words:.4f} a target token")
    return LexicalTable(source, target, probability[:-1])


def build_map(
    sources: Sentences,
    targets: Sentences,
    dictionaries: Tuple[Dictionary, Dictionary],
    number: int = CANDIDATES,
) -> VocabularyMap:
    """Candidates of each source type, and ``FREQUENT * number`` common ones.

    A symbol that both dictionaries have (a name, a number) is always a candidate of
    itself: this is also what a source type has that occurs in no pair.

    Args:
        number: most candidates of a source type, the most probable ones.
    """
    source, target = dictionaries
    table = lexical_table(sources, targets, len(source), len(target))
    order = np.lexsort((table.target, -table.probability, table.source))
    starts = np.searchsorted(table.source[order], np.arange(len(source) + 1))
    candidates = {}
    for type_, (symbol, begin, end) in enumerate(
        zip(vocabulary(source), starts[:-1], starts[1:])
    ):
        found = table.target[order[begin : min(end, begin + number)]].tolist()
        same = target.indices.get(symbol)
        if same is not None and same >= target.nspecial and same not in found:
            found.append(same)
        if found:
            candidates[type_] = found
    counts = np.bincount(np.concatenate(targets), minlength=len(target))
    frequent = np.argsort(-counts, kind="stable")[: FREQUENT * number]
    return VocabularyMap(_with_special(frequent.tolist(), target), candidates)


def _with_special(common: List[int], target: Dictionary) -> List[int]:
    """With the types that a search needs, padding among them.

    CTranslate2 goes wrong when told to suppress a type that is no candidate, and
    expects the end of sentence in the same place in every batch.
    """
    special = [target.bos(), target.pad(), target.eos(), target.unk()]
    return [*special, *(type_ for type_ in common if type_ not in special)]


def check_names(dictionaries: Tuple[Dictionary, Dictionary], what: str) -> None:
    """Refuse symbols that a line of the map can't hold.

    Args:
        what: the option, for the message.

    Raises:
        UserError: names the first one.
    """
    for side, dictionary in zip(("source", "target"), dictionaries):
        for number, symbol in enumerate(vocabulary(dictionary)):
            if not symbol or set(symbol) & set(" \t\n"):
                raise UserError(
                    f"{what}: type {number} of the {side} dictionary is {symbol!r}, and "
                    "a vocabulary map has no white space in symbols; leave the option out"
                )


def to_text(found: VocabularyMap, names: Tuple[Sequence[str], Sequence[str]]) -> str:
    """CTranslate2's form: a line with the source type, a tab, and the candidates.

    Args:
        names: symbols of the source and target types by number.
    """
    source, target = names
    lines = [("", found.common)]
    lines += [(source[type_], types) for type_, types in found.candidates.items()]
    return "".join(
        f"{symbol}\t{' '.join(target[type_] for type_ in types)}\n"
        for symbol, types in lines
    )


def from_text(
    text: str, names: Tuple[Sequence[str], Sequence[str]], target: Dictionary, what: str
) -> VocabularyMap:
    """What :func:`to_text` wrote, or another program.

    Args:
        names: symbols of the source and target types by number.
        what: option and folder, for the message.

    Raises:
        UserError: it is damaged, or of other dictionaries.
    """
    numbers = [{symbol: i for i, symbol in enumerate(side)} for side in names]
    found = VocabularyMap([], {})
    for number, line in enumerate(text.split("\n")[:-1]):
        symbol, tab, types = line.partition("\t")
        try:
            listed = [numbers[1][name] for name in types.split(" ") if name]
            if symbol:
                found.candidates[numbers[0][symbol]] = listed
            else:
                found.common.extend(listed)
        except KeyError as error:
            tab, reason = "", f"{error} is in no vocabulary"
        else:
            reason = "it has no tab"
        if not tab:
            raise UserError(
                f"{what}: line {number + 1} of its {NAME} is damaged ({reason}); export "
                "anew"
            )
    if not found.common or not text.endswith("\n"):
        raise UserError(f"{what}: its {NAME} is not complete; export anew")
    return found._replace(common=_with_special(found.common, target))
