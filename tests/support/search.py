"""Searches that are compared."""

import torch
from fairseq.sequence_generator import SequenceGenerator

from src.sequence_generator import FastSequenceGenerator
from tests.support.training import DictionaryTask, batch
from tests.support.translation import (  # noqa: F401  fixtures among them
    checkpoints,
    corpus,
    hypotheses,
    random_cut,
    translate,
)

DICTIONARY = DictionaryTask().target_dictionary


LENGTHS = {"max_len_a": 0, "max_len_b": 14}


def sample(sentences=7, seed=1):
    source, _, previous = batch(sentences=sentences, seed=seed)
    return {
        "id": torch.arange(sentences),
        "net_input": {"src_tokens": source, "src_lengths": source.ne(1).sum(1)},
        "target": torch.cat([previous, torch.full((sentences, 1), 2)], dim=1),
    }


def livelier(model):
    """The end of a sentence is likely at some steps and unlikely at others."""
    with torch.no_grad():
        model.decoder.output_projection.weight[DICTIONARY.eos()] *= 3
    return model


def assert_same(models, prefix=None, inputs=None, reference=SequenceGenerator, **options):
    """Both searches on the same batch: tokens equal, scores to rounding."""
    options = {**LENGTHS, **options}
    inputs = inputs or sample()
    results = []
    for kind in (reference, FastSequenceGenerator):
        generator = kind(models, DICTIONARY, **options)
        results.append(generator.generate(models, inputs, prefix_tokens=prefix))
    assert generator.fallback is None
    for expected, found in zip(*results, strict=True):
        assert [h["tokens"].tolist() for h in expected] == [h["tokens"].tolist() for h in found]
        for one, other in zip(expected, found):
            torch.testing.assert_close(one["score"], other["score"].to(one["score"]))
            torch.testing.assert_close(
                one["positional_scores"],
                other["positional_scores"].to(one["score"]),
                rtol=1e-5,
                atol=1e-5,
            )
    return results[1]
