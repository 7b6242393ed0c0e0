"""Small models, batches and scores for the tests of importance."""

import torch
import torch.nn.functional as F

from src.connectivity.groups import channel_groups
from src.connectivity.importance import score
from src.connectivity.scoring import ScoringBatch
from src.modules.relevance import gold_relevance
from tests.support.training import batch, build

PAD = 1
SITES = ("grad", "taylor", "lrp")
MODELS = {
    "post": {},
    "pre": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "weighted": {"weighted_layernorm": True, "encoder_normalize_before": True},
    "shared": {"share_all_embeddings": True, "layernorm_embedding": True},
}


def make(name, **options):
    return build(shared=name == "shared", **{**MODELS[name], **options})


def samples(number=3, sentences=4):
    """(inputs, target [B, T]) with padding on both sides."""
    made = []
    for seed in range(number):
        source, _, previous = batch(max(sentences, 3), seed=seed)
        generator = torch.Generator().manual_seed(100 + seed)
        target = torch.randint(4, 40, previous.shape, generator=generator)
        target[previous.eq(PAD)] = PAD
        inputs = {"src_tokens": source, "src_lengths": None, "prev_output_tokens": previous}
        made.append((inputs, target))
    return made


def loss_of(model, inputs, target):
    logits = model(**inputs)[0]
    return F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=PAD, reduction="sum"
    )


def scoring(model, data):
    return [
        ScoringBatch(
            loss=lambda i=inputs, t=target: loss_of(model, i, t),
            tokens=int(target.ne(PAD).sum()),
            relevance=lambda i=inputs, t=target: gold_relevance(model, i, t, PAD),
        )
        for inputs, target in data
    ]


def alone(total):
    """One process: there is nothing to add."""


def scores_of(model, data, name, **options):
    return score(channel_groups(model), scoring(model, data), name, **options)


def tokens_of(data):
    return sum(int(target.ne(PAD).sum()) for _, target in data)


def close(a, b, rtol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-13)
