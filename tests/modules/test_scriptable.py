"""TorchScript and ONNX: models compile, and compute what they compute in Python."""

import io

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator

from src import adapters
from src.connectivity.cut import cut
from src.connectivity.errors import PruningError
from src.connectivity.groups import channel_groups
from src.modules.scriptable import scriptable
from src.sequence_generator import FastSequenceGenerator
from tests.support.cuts import random_keep
from tests.support.training import DictionaryTask, batch, build

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


def made(kinds=("embedding", "qk", "vo", "ffn"), **options):
    model = build(**options)
    cut(model, random_keep(model, kinds))
    return model


def saved_and_loaded(scripted):
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return torch.jit.load(file)


def inputs(**sizes):
    tokens, _, previous = batch(**sizes)
    return tokens, tokens.ne(1).sum(1), previous


def check_script(model):
    types = [type(module) for module in model.modules()]
    scripted = saved_and_loaded(torch.jit.script(model))
    assert [type(module) for module in model.modules()] == types
    with torch.no_grad():
        for sizes in (dict(), dict(sentences=3, source=6, target=4)):
            expected, more = model(*inputs(**sizes))
            found, other = scripted(*inputs(**sizes))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(other["attn"][0], more["attn"][0], rtol=0, atol=1e-12)


WIDTHS = ("embedding", "qk", "vo", "ffn")
MODELS = {
    "whole": ((), dict(share_decoder_input_output_embed=True)),
    "pre-norm": (
        WIDTHS,
        dict(
            **dict(encoder_normalize_before=True, decoder_normalize_before=True),
            **dict(encoder_learned_pos=True, decoder_learned_pos=True),
            **dict(weighted_layernorm=True, checkpoint_activations=True),
        ),
    ),
    "shared": (
        (*WIDTHS, "layer"),
        dict(shared=True, share_all_embeddings=True, layernorm_embedding=True),
    ),
    "narrow": (
        WIDTHS,
        dict(
            **dict(decoder_embed_dim=12, decoder_normalize_before=True, activation_fn="tanh"),
            **dict(no_decoder_final_norm=True, no_token_positional_embeddings=True),
            **dict(encoder_layerdrop=0.5, decoder_layerdrop=0.5),
        ),
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_are_scripted(case):
    kinds, options = MODELS[case]
    check_script(made(kinds, **options))


@pytest.mark.parametrize("case", MODELS)
def test_models_are_traced(case):
    kinds, options = MODELS[case]
    check_trace(made(kinds, **options))


@pytest.mark.parametrize("make", [adapters.SPLoRA, adapters.SPLoPA])
def test_adapted_models_are_scripted_and_when_fused_traced(make):
    size = {"rank": 2} if make is adapters.SPLoRA else {"block_size": 4}
    adapted = make(made(), exclude="decoder.output_projection", **size)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    check_script(adapted.eval())
    check_trace(adapters.fuse(adapted))


def test_a_scripted_model_has_the_parameters_of_its_origin():
    model = made()
    plain = scriptable(model)
    theirs = {id(p) for p in plain.parameters()}
    assert theirs == {id(p) for p in model.parameters()}
    assert not channel_groups(plain)
    loss = torch.jit.script(model)(*inputs())[0].square().sum()
    loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(*inputs())[0].square().sum().backward()
    for gradient, parameter in zip(found, model.parameters()):
        torch.testing.assert_close(gradient, parameter.grad)


def test_dropout_is_fairseqs_own_while_a_scripted_model_trains():
    scripted = torch.jit.script(made(dropout=0.5, attention_dropout=0.5, activation_dropout=0.5))
    tokens = inputs()
    assert torch.equal(scripted(*tokens)[0], scripted(*tokens)[0])
    scripted.train()
    assert not torch.equal(scripted(*tokens)[0], scripted(*tokens)[0])


def test_shrinking_models_are_refused():
    model = build()
    channel_groups(model)["encoder.layers.0.ffn"].shrink(torch.tensor([1, 3]), 0.5)
    with pytest.raises(PruningError, match="torch.jit.script: a pruning stage is under way"):
        torch.jit.script(model)
    check_trace(model)  # with the gates as they are


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, lengths, previous):
        return self.model(tokens, lengths, previous)[0]


def check_trace(model):
    logits = Logits(model).eval()
    logits(*inputs())  # fairseq's decoder keeps a mask, which no later pass makes anew
    traced = saved_and_loaded(torch.jit.trace(logits, inputs()))
    with torch.no_grad():
        for sizes in (dict(), dict(sentences=4, source=12, target=5)):
            expected = logits(*inputs(**sizes))
            torch.testing.assert_close(traced(*inputs(**sizes)), expected, rtol=0, atol=1e-12)


def test_nothing_in_a_traced_graph_is_torchs_own_library(monkeypatch):
    monkeypatch.setenv("SRP_ONEDNN", "1")
    model = made((), encoder_embed_dim=512, decoder_embed_dim=512, encoder_ffn_embed_dim=512)
    traced = torch.jit.trace(Logits(model.float()), inputs(sentences=9), check_trace=False)
    assert "mkldnn" not in str(traced.inlined_graph)


@pytest.mark.parametrize("kind, models", [(SequenceGenerator, 1), (FastSequenceGenerator, 2)])
def test_beam_search_is_scripted(kind, models):
    ensemble = [made(seed=seed, share_decoder_input_output_embed=True) for seed in range(models)]
    options = dict(beam_size=3, max_len_b=6)
    dictionary = DictionaryTask().target_dictionary
    tokens, lengths, _ = inputs()
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    expected = SequenceGenerator(ensemble, dictionary, **options)(sample)
    found = torch.jit.script(kind(ensemble, dictionary, **options))(sample)
    for sentence, other in zip(found, expected):
        assert len(sentence) == len(other) == 3
        for hypothesis, reference in zip(sentence, other):
            assert torch.equal(hypothesis["tokens"], reference["tokens"])
            torch.testing.assert_close(hypothesis["score"], reference["score"])


def test_models_are_exported_to_onnx():
    onnx = pytest.importorskip("onnx", reason="onnx isn't installed")
    file = io.BytesIO()
    model = Logits(made().float()).eval()
    torch.onnx.export(model, inputs(), file, dynamo=False)
    onnx.checker.check_model(onnx.load_model_from_string(file.getvalue()))
