"""IBM model 1: which target type translates which source type, from sentence pairs.

Brown et al., 1993, The Mathematics of Statistical Machine Translation, section 4.2:
t(f|e) is the probability of a target type f given a source type e, or given the null
word, found by expectation maximization.
"""

import logging
from typing import Iterator, NamedTuple, Sequence, Tuple

import numpy as np

logger = logging.getLogger(__name__)

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
    """What stands together, ``source * types + target``, target token by target token.

    Yields:
        These numbers, and how many each target token has: its source tokens and null.
    """
    lengths = [np.array([len(x) for x in side]) for side in (sources, targets)]
    order = np.lexsort(lengths)
    cost = np.cumsum(((lengths[0] + 1) * lengths[1])[order])
    for part in np.split(order, np.flatnonzero(np.diff(cost // CHUNK)) + 1):
        source = _padded([sources[i] for i in part])
        target = _padded([targets[i] for i in part])
        source = np.pad(source, ((0, 0), (1, 0)), constant_values=null)
        keys = source[:, None, :] * types + target[:, :, None]  # [B, T, 1 + S]
        there = (source >= 0)[:, None, :] & (target >= 0)[:, :, None]
        yield keys[there], there.sum(-1)[target >= 0]


def _unique(keys: np.ndarray) -> np.ndarray:
    """Sorted; several times faster than ``np.unique``, which hashes."""
    keys = np.sort(keys)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])]


def _distinct(batches: Iterator[Tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The sorted keys of all batches, each once."""
    keys, new, size = np.empty(0, np.int64), [], 0
    for batch, _ in batches:
        new.append(_unique(batch))
        size += len(new[-1])
        if size > max(len(keys), 4 * CHUNK):  # so that all are sorted a few times only
            keys, new, size = _unique(np.concatenate([keys, *new])), [], 0
    return _unique(np.concatenate([keys, *new]))


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
    # where each position finds its probability, and where target tokens begin
    places = []
    for batch, spans in batches():
        distinct, inverse = np.unique(batch, return_inverse=True)
        place = np.searchsorted(keys, distinct).astype(np.int32)[inverse]
        places.append((place, np.cumsum(spans) - spans, spans))
    source, target = (x.astype(np.int32) for x in np.divmod(keys, target_types))
    words = sum(map(len, targets))
    logger.info(
        f"IBM model 1: {len(targets):,} sentence pairs, {words:,} target tokens, "
        f"{len(keys):,} pairs of types"
    )
    probability = np.full(len(keys), 1 / target_types)
    for iteration in range(iterations):
        counts = np.zeros(len(keys))
        likelihood = 0.0
        for place, starts, spans in places:
            share = probability[place]
            total = np.add.reduceat(share, starts)
            likelihood += float(np.log(total).sum())
            share /= np.repeat(total, spans)
            np.add.at(counts, place, share)
        totals = np.bincount(source, counts, minlength=source_types + 1)
        probability = counts / totals[source]
        # up to a constant, the lengths of the sources
        logger.info(
            f"iteration {iteration + 1}: log-likelihood {likelihood / words:.4f} a target token"
        )
    return LexicalTable(source, target, probability)
