"""IBM model 1 against plain loops, and the pairs it is learnt from."""

import random
import types
from collections import defaultdict

import numpy as np
import pytest
import torch

from src.deployment import ibm_model1 as lexical_translation
from src.deployment.ibm_model1 import lexical_table, read_pairs


def arrays(sentences):
    return [np.array(x, np.int32) for x in sentences]


def random_corpus(pairs, source_types, target_types, longest, seed=1):
    generator = random.Random(seed)
    return tuple(
        arrays(
            [generator.randrange(size) for _ in range(generator.randint(1, longest))]
            for _ in range(pairs)
        )
        for size in (source_types, target_types)
    )


# -- IBM model 1 -----------------------------------------------------------------------


def plain_ibm_1(sources, targets, null, iterations):
    """As in Brown et al. 1993, a loop for each word."""
    probability = defaultdict(lambda: 1.0)
    for _ in range(iterations):
        counts, totals = defaultdict(float), defaultdict(float)
        for source, target in zip(sources, targets):
            source = [null, *source.tolist()]
            for t in target.tolist():
                total = sum(probability[s, t] for s in source)
                for s in source:
                    counts[s, t] += probability[s, t] / total
                    totals[s] += probability[s, t] / total
        probability = {(s, t): c / totals[s] for (s, t), c in counts.items()}
    return probability


@pytest.mark.parametrize("chunk", [40, 10**6])
def test_the_probabilities_of_a_plain_loop(chunk, monkeypatch):
    """Also in batches with padding, and where a word stands twice in a sentence."""
    monkeypatch.setattr(lexical_translation, "CHUNK", chunk)
    sources, targets = random_corpus(60, 12, 9, 8)
    table = lexical_table(sources, targets, 12, 9, iterations=4)
    found = {(s, t): p for s, t, p in zip(*(column.tolist() for column in table))}
    assert found == pytest.approx(plain_ibm_1(sources, targets, 12, 4), abs=1e-12)
    assert sorted(found) == list(found)  # in order


def test_one_iteration_by_hand():
    """das Haus - the house, das - the: of "das" half and third, and the whole second."""
    das, haus, null, the, house = 0, 1, 2, 0, 1
    sources, targets = arrays([[das, haus], [das]]), arrays([[the, house], [the]])
    table = lexical_table(sources, targets, 2, 2, iterations=1)
    found = {(s, t): p for s, t, p in zip(*table)}
    # each of three words gets 1/3 in the first pair, each of two 1/2 in the second
    assert found == pytest.approx(
        {
            (das, the): 5 / 7,
            (das, house): 2 / 7,
            (haus, the): 1 / 2,
            (haus, house): 1 / 2,
            (null, the): 5 / 7,
            (null, house): 2 / 7,
        }
    )


# -- the training pairs ----------------------------------------------------------------


def dataset_of(sources, targets):
    both = [[torch.tensor([*x, 2]) for x in side] for side in (sources, targets)]
    return types.SimpleNamespace(
        src=both[0],
        tgt=both[1],
        src_sizes=np.array([len(x) for x in both[0]]),
        tgt_sizes=np.array([len(x) for x in both[1]]),
    )


def test_which_pairs_are_read():
    sources = [[5, 6], [], [7] * 101, [8], [9] * 100]
    targets = [[4], [5], [6], [], [7]]
    found = read_pairs(dataset_of(sources, targets))
    assert [x.tolist() for x in found[0]] == [[5, 6], [9] * 100]
    assert [x.tolist() for x in found[1]] == [[4], [7]]


def test_a_sample_of_a_large_set():
    sources, targets = random_corpus(400, 30, 30, 9)
    dataset = dataset_of(sources, targets)
    samples = [read_pairs(dataset, seed, cells=2000) for seed in (1, 1, 2)]
    size = [sum((len(s) + 1) * len(t) for s, t in zip(*sample)) for sample in samples]
    assert 1800 < size[0] == size[1] <= 2000 and 1800 < size[2] <= 2000
    first, again, other = (
        [(s.tolist(), t.tolist()) for s, t in zip(*sample)] for sample in samples
    )
    assert first == again != other
    whole = [(s.tolist(), t.tolist()) for s, t in zip(sources, targets)]
    assert all(pair in whole for pair in first)
