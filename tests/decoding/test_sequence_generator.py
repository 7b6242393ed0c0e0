# ruff: noqa: F811  (fixtures are imported)
"""The fast beam search gives the hypotheses of fairseq's."""

import logging
import math

import numpy as np
import pytest
import torch
from fairseq import search
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.sequence_generator import SequenceGenerator

from src import sequence_generator
from src.connectivity.cut import cut
from src.connectivity.groups import channel_groups
from src.decoding import cache as decoder_cache
from src.decoding import hypotheses as hypotheses_module
from src.decoding.hypotheses import BeamHypotheses, largest, top
from src.sequence_generator import FastSequenceGenerator
from tests.support.search import DICTIONARY, LENGTHS, assert_same, livelier, sample
from tests.support.training import batch, build
from tests.support.translation import (  # noqa: F401  fixtures among them
    checkpoints,
    corpus,
    hypotheses,
    random_cut,
    translate,
)


def lively(**options):
    """A model whose hypotheses have many lengths."""
    return livelier(build(encoder_learned_pos=True, decoder_learned_pos=True, **options))


MODELS = {
    "post-norm": {},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "tied": {"share_decoder_input_output_embed": True},
    "embedding norm": {"layernorm_embedding": True, "no_scale_embedding": True},
    "learned positions": {"encoder_learned_pos": True, "decoder_learned_pos": True},
    "no positions": {"no_token_positional_embeddings": True},
    "gelu": {"activation_fn": "gelu"},
    "other encoder": {"encoder_embed_dim": 8, "encoder_attention_heads": 4},
    "fairseq's": {"arch": "transformer"},
}


BEAMS = pytest.mark.parametrize("beam", [1, 4])


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model(name, beam):
    model = livelier(build(**MODELS[name]))
    assert_same([model], beam_size=beam)


@pytest.mark.parametrize("beam, lengths", [(1, 3), (5, 6)])
def test_sentences_end_at_different_steps(beam, lengths):
    found = assert_same([lively()], beam_size=beam)
    assert len({len(h["tokens"]) for beams in found for h in beams}) >= lengths


@BEAMS
@pytest.mark.parametrize("padding", [0, 20])
def test_sentences_without_words(beam, padding):
    inputs = sample()
    source = inputs["net_input"]["src_tokens"]
    source[3, :-1] = DICTIONARY.pad()
    source = torch.cat([source.new_full((len(source), padding), 1), source], dim=1)
    inputs["net_input"]["src_tokens"] = source
    inputs["net_input"]["src_lengths"] = source.ne(1).sum(1)
    assert_same([lively()], inputs=inputs, beam_size=beam)
    alone = {"src_tokens": source[3:4, -1:], "src_lengths": torch.tensor([1])}
    alone = {"id": torch.arange(1), "net_input": alone}
    assert_same([lively()], inputs=alone, beam_size=beam)


@BEAMS
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_cut_and_gated_models(weighted, before, beam):
    model = build(
        weighted_layernorm=weighted,
        encoder_normalize_before=before,
        decoder_normalize_before=before,
    )
    keep = random_cut(livelier(model))
    for name, group in channel_groups(model).items():
        gate = torch.rand(group.width, generator=torch.Generator().manual_seed(2))
        gate[keep.get(name, torch.arange(0))] += 0.5  # layers: in between
        group.set_connectivity(gate)
    assert_same([model], beam_size=beam)  # half shrunk
    for group in channel_groups(model).values():
        group.set_connectivity(torch.ones(group.width))
    cut(model, keep)
    assert_same([model], beam_size=beam)


@BEAMS
def test_models_without_some_heads(beam):
    model = lively()
    keep = {}
    for name, group in channel_groups(model).items():
        gone = group.width // group.heads if group.kind in ("qk", "vo") else 0
        keep[name] = torch.arange(gone, group.width)
    cut(model, keep)
    assert {layer.self_attn.num_heads for layer in model.decoder.layers} == {1}
    assert_same([model], beam_size=beam)


@pytest.mark.parametrize(
    "options",
    [
        {"len_penalty": 0.3},
        {"unk_penalty": 1.5},
        {"unk_penalty": -30.0},
        {"normalize_scores": False},
        {"temperature": 1.7},
        {"min_len": 6},
        {"min_len": 14},
        {"max_len_a": 0.4, "max_len_b": 1},
        {"max_len_b": 1},
        {"tokens_to_suppress": ["en3", "en7"]},
        {"eos": 9},
    ],
    ids=str,
)
def test_every_option_of_a_beam_of_one(options):
    assert_same([lively()], beam_size=1, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 2, "len_penalty": 0.3},
        {"beam_size": 5, "len_penalty": 2.0, "unk_penalty": 1.5},
        {"beam_size": 3, "normalize_scores": False},
        {"beam_size": 3, "temperature": 1.7},
        {"beam_size": 3, "min_len": 6},
        {"beam_size": 3, "min_len": 14},
        {"beam_size": 4, "max_len_a": 0.4, "max_len_b": 1},
        {"beam_size": 4, "max_len": 5},
        {"beam_size": 4, "tokens_to_suppress": ["en3", "en7"]},
        {"beam_size": 3, "eos": 9},
    ],
    ids=str,
)
def test_every_option(options):
    assert_same([lively()], **options)


@BEAMS
def test_an_ensemble(beam):
    assert_same([lively(seed=1), lively(seed=2)], beam_size=beam)


@BEAMS
@pytest.mark.parametrize("length", [1, 3, 8])
def test_prefixes(length, beam):
    inputs = sample()
    # the second sentence's prefix is padded, the third's ends with eos
    inputs["target"][1, 1:] = DICTIONARY.pad()
    inputs["target"][2, 2:] = DICTIONARY.pad()
    inputs["target"][2, 1] = DICTIONARY.eos()
    prefix = inputs["target"][:, :length]
    found = assert_same([lively()], prefix, inputs, beam_size=beam)
    for forced, beams in zip(prefix.tolist(), found):
        wanted = [token for token in forced if token != DICTIONARY.pad()]
        assert beams[0]["tokens"].tolist()[: len(wanted)] == wanted


@BEAMS
def test_prefixes_beyond_the_longest_hypothesis(beam):
    prefix = sample()["target"][:, :6].clamp(min=4)  # without padding and end
    found = assert_same([lively()], prefix, beam_size=beam, max_len_b=3)
    assert {len(h["tokens"]) for beams in found for h in beams} == {4}


@BEAMS
def test_another_token_to_begin_with(beam):
    model, first = lively(), []
    for kind in (SequenceGenerator, FastSequenceGenerator):
        generator = kind([model], DICTIONARY, beam_size=beam, **LENGTHS)
        for token in (DICTIONARY.eos(), 7):
            found = generator.generate([model], sample(), bos_token=token)
            first.append([beams[0]["tokens"].tolist() for beams in found])
    assert first[0] == first[2] != first[1] == first[3]


class _BlocksWhatWasGenerated(SequenceGenerator):
    """fairseq's search with its blocker shown the tokens without the padding."""

    def __init__(self, *args, no_repeat_ngram_size, **kwargs):
        super().__init__(*args, **kwargs)

        class Blocker(NGramRepeatBlock):
            def forward(self, tokens, lprobs, bsz, beam_size, step):
                shown = tokens[:, : step + 1]
                return super().forward(shown, lprobs, bsz, beam_size, step)

        self.repeat_ngram_blocker = Blocker(no_repeat_ngram_size)


@BEAMS
@pytest.mark.parametrize("size", [2, 3])
def test_no_ngram_is_repeated(size, beam):
    model = lively()
    found = assert_same(
        [model],
        beam_size=beam,
        min_len=10,
        no_repeat_ngram_size=size,
        reference=_BlocksWhatWasGenerated,
    )
    free = assert_same([model], beam_size=beam, min_len=10)

    def repeats(tokens):
        ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
        return len(ngrams) - len(set(ngrams))

    assert not any(repeats(h["tokens"].tolist()) for beams in found for h in beams)
    assert any(repeats(h["tokens"].tolist()) for beams in free for h in beams)


@pytest.mark.parametrize("beam", [1, 5])
def test_fewer_tokens_that_can_come_than_are_asked_for(beam):
    """Those that can't come are among the best then, the end of sentence too."""
    others = [s for s in DICTIONARY.symbols[DICTIONARY.nspecial :] if s not in ("en3", "en4")]
    assert_same(
        [lively()],
        beam_size=beam,
        min_len=3,
        max_len_b=5,
        no_repeat_ngram_size=2,
        unk_penalty=100.0,
        tokens_to_suppress=others,
        reference=_BlocksWhatWasGenerated,
    )


def test_a_beam_beyond_twice_the_slots(monkeypatch):
    monkeypatch.setattr(decoder_cache, "_SLOTS", 2)
    monkeypatch.setattr(decoder_cache, "_EXPECTED", 0)
    assert_same([lively()], beam_size=8)


def test_a_beam_that_is_no_short_list_to_sort():
    assert_same([lively()], beam_size=12)


@BEAMS
def test_caches_that_grow_and_small_blocks(beam, monkeypatch):
    monkeypatch.setattr(decoder_cache, "_SLOTS", 3)
    monkeypatch.setattr(decoder_cache, "_EXPECTED", 0)
    monkeypatch.setattr(hypotheses_module, "_BLOCK", 3)
    assert_same([lively()], beam_size=beam, min_len=9)


def test_room_for_what_is_expected(monkeypatch):
    """For every hypothesis of a beam some more tokens than the source has."""
    widths = []

    class Cache(decoder_cache.BeamCache):
        def __init__(self, *given):
            super().__init__(*given)
            widths.append(self.mask.shape[-1])

    monkeypatch.setattr("src.decoding.step.BeamCache", Cache)
    length = sample()["net_input"]["src_tokens"].shape[1]
    for beam, slots in ((2, 64), (16, 16 * math.ceil(1.2 * length))):
        assert_same([lively()], beam_size=beam)
        assert widths.pop() == slots


@pytest.mark.parametrize("largest", [1, 7 * 16, 3 * 7 * 16])
def test_attention_in_pieces(largest, monkeypatch):
    monkeypatch.setattr(decoder_cache, "_LARGEST", largest)
    assert_same([lively()], beam_size=1, min_len=9)


def test_freed_memory_stays_for_the_next_batch(monkeypatch):
    """One keeper for all batches, told of each."""
    kept = []

    class Keeper:
        def __init__(self):
            kept.append(0)

        def after_step(self):
            kept[-1] += 1

    monkeypatch.setattr(sequence_generator, "HeapKeeper", Keeper)
    model = lively()
    generator = FastSequenceGenerator([model], DICTIONARY, **LENGTHS)
    assert not kept  # nor is anything set before it is used
    for seed in (1, 2, 3):
        generator.generate([model], sample(seed=seed))
    assert kept == [3]


@BEAMS
@pytest.mark.parametrize("share", [1, 1000])
def test_when_finished_sentences_leave_does_not_matter(share, beam, monkeypatch):
    monkeypatch.setattr(hypotheses_module, "_DEAD_SHARE", share)
    assert_same([lively()], beam_size=beam)


@pytest.mark.parametrize("width", [5, 640, 1000])
def test_top_is_topk(width):
    generator = torch.Generator().manual_seed(width)
    for k in (1, 2, 5):
        scores = torch.randn(9, width, generator=generator)
        scores[0] = -float("inf")
        scores[1, : width - 2] = -float("inf")
        values, index = top(scores, k)
        torch.testing.assert_close(values, scores.topk(k, dim=1).values, rtol=0, atol=0)
        torch.testing.assert_close(values, scores.gather(1, index), rtol=0, atol=0)
        assert all(len(set(row)) == k for row in index.tolist())


def test_largest_is_the_maximum():
    scores = torch.randn(9, 640, generator=torch.Generator().manual_seed(1))
    scores[0, 3:] = scores[1] = -float("inf")
    values, index = largest(scores)
    assert values.tolist() == scores.amax(dim=1).tolist()
    assert scores[torch.arange(9), torch.from_numpy(index)].tolist() == values.tolist()


def test_an_end_that_cannot_come_ends_nothing():
    """With few tokens that can come, one that can't is among the best."""
    found = BeamHypotheses(1, eos=2, normalize=lambda n: n, beam=2, device="cpu")
    scores = np.array([[-1.0, -np.inf, -np.inf, -np.inf]])
    tokens, beams = np.array([[5, 2, 0, 1]]), np.zeros((1, 4), int)
    found.advance(0, scores, tokens, beams, last=False)
    assert found.results() == [[]]


@BEAMS
def test_results_are_ordinary_tensors(beam):
    """``fairseq-generate`` writes into them."""
    model = lively().float()
    generator = FastSequenceGenerator([model], DICTIONARY, beam_size=beam, **LENGTHS)
    for beams in generator.generate([model], sample()):
        for value in (value for h in beams for value in h.values()):
            assert not value.is_inference()
            value.add_(1)


def test_weights_that_change_are_noticed():
    model = lively()
    generator = FastSequenceGenerator([model], DICTIONARY, beam_size=3, **LENGTHS)
    first = generator.generate([model], sample())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    second = generator.generate([model], sample())
    fresh = FastSequenceGenerator([model], DICTIONARY, beam_size=3, **LENGTHS)
    fresh = fresh.generate([model], sample())
    scores = [[float(h[0]["score"]) for h in r] for r in (first, second, fresh)]
    assert scores[1] == scores[2] != scores[0]


@pytest.mark.parametrize("arch", ["srp", "transformer"])
def test_weights_that_a_fused_optimizer_changes_are_noticed(arch):
    """It leaves their version as it was."""
    model = livelier(build(arch=arch)).float()
    generator = FastSequenceGenerator([model], DICTIONARY, beam_size=3, **LENGTHS)
    first = generator.generate([model], sample())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model.train()
    model(*batch())[0].square().sum().backward()
    optimizer.step()
    model.eval()
    second = generator.generate([model], sample())
    fresh = FastSequenceGenerator([model], DICTIONARY, beam_size=3, **LENGTHS)
    fresh = fresh.generate([model], sample())
    scores = [[float(h[0]["score"]) for h in r] for r in (first, second, fresh)]
    assert scores[1] == scores[2] != scores[0]


class _Unigrams(torch.nn.Module):
    """What stands for a language model: the same scores after every token."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.scores = torch.nn.Parameter(torch.randn(len(DICTIONARY), generator=generator))

    def forward(self, tokens):
        return (self.scores.expand(*tokens.shape, -1),)

    def get_normalized_probs(self, output, log_probs, sample=None):
        return output[0].log_softmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {"search_strategy": search.Sampling(DICTIONARY)},
        {"search_strategy": search.DiverseBeamSearch(DICTIONARY, 2, 0.5)},
        {"match_source_len": True},
        {"lm_model": _Unigrams(), "lm_weight": 1.0},
        {"beam_size": 30},
    ],
    ids=["sampling", "diverse", "match-source-len", "language model", "beam"],
)
def test_the_rest_is_left_to_fairseq(options, caplog):
    caplog.set_level(logging.INFO, logger=sequence_generator.__name__)
    model = lively().float()
    results = []
    for kind in (SequenceGenerator, FastSequenceGenerator):
        torch.manual_seed(5)
        generator = kind([model], DICTIONARY, **{**LENGTHS, "beam_size": 4, **options})
        found = generator.generate([model], sample())
        results.append([h["tokens"].tolist() for beams in found for h in beams])
    assert results[0] == results[1]
    assert "fairseq's own search" in caplog.text


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"decoder_output_dim": 12}, "extra projections"),
        ({"adaptive_softmax_cutoff": "10,20"}, "adaptive softmax"),
        ({"scale_heads": True}, "layers are not a plain"),
        ({"no_cross_attention": True}, "layers are not a plain"),
        ({"no_cross_attention": True, "cross_self_attention": True}, "not a plain"),
    ],
    ids=str,
)
def test_other_transformers_are_left_to_fairseq(options, reason):
    model, found = build(arch="transformer", **options), []
    for kind in (SequenceGenerator, FastSequenceGenerator):
        generator = kind([model], DICTIONARY, beam_size=3, **LENGTHS)
        results = generator.generate([model], sample())
        found.append([h["tokens"].tolist() for beams in results for h in beams])
    assert found[0] == found[1]
    assert reason in generator.fallback


def test_dropout_that_is_retained_is_left_to_fairseq():
    model = lively(dropout=0.3)
    assert FastSequenceGenerator([model], DICTIONARY).fallback is None
    model.make_generation_fast_(retain_dropout=True)
    assert "--retain-dropout" in FastSequenceGenerator([model], DICTIONARY).fallback


def test_diverse_beams_of_any_sentences_of_a_set():
    """fairseq takes the numbers of sentences for rows of the batch."""
    model = lively().float()
    strategy = search.DiverseBeamSearch(DICTIONARY, 2, 0.5)
    options = {**LENGTHS, "beam_size": 4, "search_strategy": strategy}
    generator = FastSequenceGenerator([model], DICTIONARY, **options)
    inputs = sample()
    expected = generator.generate([model], inputs)
    found = generator.generate([model], {**inputs, "id": inputs["id"] + 100})
    for one, other in zip(expected, found, strict=True):
        assert [h["tokens"].tolist() for h in one] == [h["tokens"].tolist() for h in other]


def test_bfloat16_in_fairseqs_search_too():
    model, scores = lively().float(), []
    options = {**LENGTHS, "search_strategy": search.DiverseSiblingsSearch(DICTIONARY, 0.1)}
    for low in (False, True):
        generator = FastSequenceGenerator([model], DICTIONARY, bfloat16=low, **options)
        found = generator.generate([model], sample())
        scores.append(torch.stack([beams[0]["score"].float() for beams in found]))
    assert 0 < (scores[0] - scores[1]).abs().max() < 0.1


@BEAMS
def test_bfloat16_stays_close(beam):
    model = lively().float()
    scores = []
    for low in (False, True):
        generator = FastSequenceGenerator(
            [model], DICTIONARY, beam_size=beam, bfloat16=low, **LENGTHS
        )
        found = generator.generate([model], sample(), prefix_tokens=sample()["target"])
        scores.append(torch.stack([beams[0]["score"] for beams in found]))
    difference = (scores[0] - scores[1]).abs() / scores[0].abs()
    assert 0 < difference.max() < 0.05


@pytest.mark.parametrize("options", [("--nbest", "3"), ("--beam", "1")], ids=str)
def test_generate_with_either_search(options, corpus, checkpoints, caplog):
    fast = translate(corpus, checkpoints.cut, *options)
    assert "fairseq's own search" not in caplog.text
    stock = translate(corpus, checkpoints.cut, *options, "--fairseq-search")
    assert hypotheses(fast) == hypotheses(stock)
    assert hypotheses(fast, "H") == hypotheses(stock, "H")
