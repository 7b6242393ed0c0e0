"""The theorem of pruning-safety: cut equals gated with zero connectivity."""

import argparse
import copy

import pytest
import torch
from fairseq import models

from src.checkpoints.pretrained import check_structure, srp_arguments
from src.connectivity.budget import ParameterCount
from src.connectivity.cut import cut
from src.connectivity.groups import KINDS, ChannelGroup, channel_groups, tied_dimensions
from src.errors import UserError
from tests.support.cuts import VARIANTS, close_gates, logits, random_keep
from tests.support.training import DictionaryTask, batch, build


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kinds", [*[(k,) for k in KINDS], KINDS], ids="-".join)
@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_equals_gated(variant, kinds, weighted):
    options = VARIANTS[variant]
    shared = options.get("share_all_embeddings", False)
    model = build(shared=shared, weighted_layernorm=weighted, **options)
    dense = logits(model)
    keep = random_keep(model, kinds)
    close_gates(model, keep)
    gated = logits(model)
    assert (gated - dense).abs().max() > 1e-3  # the gates do something
    cut(model, keep)
    assert not any(group.gated for group in channel_groups(model).values())
    assert (logits(model) - gated).abs().max() <= 1e-10


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_in_two_stages_equals_cut_at_once(variant, weighted):
    options = VARIANTS[variant]
    shared = options.get("share_all_embeddings", False)
    model = build(shared=shared, weighted_layernorm=weighted, **options)
    other = copy.deepcopy(model)
    keep = random_keep(model, KINDS)
    cut(model, keep)
    embeddings = {n: k for n, k in keep.items() if n.endswith("embedding")}
    cut(other, embeddings)
    cut(other, {n: k for n, k in keep.items() if n not in embeddings})
    assert torch.equal(logits(model), logits(other))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_weights_load_into_a_fresh_model(variant, weighted):
    options = VARIANTS[variant]
    shared = options.get("share_all_embeddings", False)
    model = build(shared=shared, weighted_layernorm=weighted, **options)
    cut(model, random_keep(model, KINDS))
    fresh = build(shared=shared, weighted_layernorm=weighted, seed=2, **options)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(logits(fresh), logits(model))
    assert ParameterCount(fresh).current == ParameterCount(model).current


def test_every_slice_matters():
    """Without any one slice of the declaration, the cut fails or changes the outputs."""
    total = sum(len(g.slices) for g in channel_groups(build()).values())
    widths = [kind for kind in KINDS if kind != "layer"]  # slices of a layer that is gone are, too
    harmless = []
    for number in range(total):
        model = build(weighted_layernorm=True, encoder_learned_pos=True)
        keep = random_keep(model, widths)
        close_gates(model, keep)
        gated = logits(model)
        every = [(g, s) for g in channel_groups(model).values() for s in g.slices]
        group, piece = every[number]
        group.slices.remove(piece)
        try:
            cut(model, keep)
            if (logits(model) - gated).abs().max() <= 1e-10:
                harmless.append((group.name, piece.name, piece.dim))
        except RuntimeError:
            pass  # shapes no longer fit
    assert not harmless


def test_declaration_covers_every_dimension():
    """Each dimension of each parameter is tied, but for the dictionaries and tables."""
    model = build(encoder_learned_pos=True)
    tied = {id(p): dims for p, dims in tied_dimensions(channel_groups(model))}
    for name, parameter in model.named_parameters():
        free = set(range(parameter.dim())) - set(tied.get(id(parameter), {}))
        rows = "embed_tokens" in name or "embed_positions" in name
        rows = rows or "output_projection" in name
        assert free == ({0} if rows else set()), name


def test_bookkeeping_follows():
    model = build()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    cut(model, random_keep(model, KINDS))
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape
    fresh = build()
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    for module in (*model.modules(), *fresh.modules()):
        if isinstance(module, torch.nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        if isinstance(module, torch.nn.Embedding):
            assert module.weight.shape[1] == module.embedding_dim


@pytest.mark.parametrize("variant", VARIANTS)
def test_fresh_model_equals_fairseqs_transformer(variant):
    options = VARIANTS[variant]
    shared = options.get("share_all_embeddings", False)
    theirs = build("transformer", shared=shared, **options)
    ours = build("srp", shared=shared, seed=5, **options)
    ours.load_state_dict(theirs.state_dict())
    for layer in theirs.decoder.layers:
        layer.need_attn = False
    # fairseq takes one softmax in float32 whatever the model's type
    assert (logits(ours) - logits(theirs)).abs().max() <= 2e-6
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) == count
    assert ParameterCount(ours)(ParameterCount(ours).current) == count


def test_incremental_decoding_equals_teacher_forcing():
    """With and without cut, step by step with cached keys and values."""
    for keep_kinds in ((), KINDS):
        model = build(encoder_normalize_before=True)
        cut(model, random_keep(model, keep_kinds))
        src_tokens, _, previous = batch()
        previous = previous.clamp_min(4)
        with torch.no_grad():
            whole = model(src_tokens, None, previous)[0]
            encoder_out = model.encoder(src_tokens)
            state = torch.jit.annotate(dict, {})
            for step in range(previous.shape[1]):
                now = model.decoder(previous[:, : step + 1], encoder_out, incremental_state=state)[
                    0
                ]
                assert (now[:, 0] - whole[:, step]).abs().max() <= 2e-6


def test_beams_share_the_memory_of_their_sentence():
    """Its padding too: as where each has its own."""
    model, (source, *_) = build(), batch()
    order = torch.arange(5).repeat_interleave(3)
    previous = torch.randint(4, 40, (15, 4), generator=torch.Generator().manual_seed(1))
    results = []
    for beam in (1, 3):
        model.decoder.set_beam_size(beam)
        with torch.no_grad():
            memory = model.encoder.reorder_encoder_out(model.encoder(source), order)
            state = torch.jit.annotate(dict, {})
            steps = [
                model.decoder(previous[:, :n], memory, incremental_state=state)[0]
                for n in range(1, 5)
            ]
        results.append(torch.cat(steps, 1))
    assert (results[0] - results[1]).abs().max() <= 2e-6
    assert (results[0][0] - results[0][1]).abs().max() > 1e-2  # not the same beams


def test_groups_that_no_module_can_have():
    for given, words in ((("", 4), "kind '': must be a name"), (("qk", 6, 4), "over 4 heads")):
        with pytest.raises(ValueError, match=words):
            ChannelGroup(*given)


# another value of each option that decides what a model computes, or which weights it has
OTHERS = {
    **dict.fromkeys(("encoder_embed_dim", "encoder_ffn_embed_dim"), 20),
    **dict.fromkeys(("decoder_embed_dim", "decoder_ffn_embed_dim"), 20),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_normalize_before", "decoder_normalize_before"), True),
    **dict.fromkeys(("encoder_learned_pos", "decoder_learned_pos"), True),
    **dict.fromkeys(("share_decoder_input_output_embed", "share_all_embeddings"), True),
    **dict.fromkeys(("no_token_positional_embeddings", "layernorm_embedding"), True),
    **dict.fromkeys(("no_scale_embedding", "no_decoder_final_norm"), True),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), 30),
    "activation_fn": "gelu_accurate",
}
# with which they do
SIZES = dict(
    encoder_embed_dim=16, encoder_ffn_embed_dim=24, encoder_layers=2, decoder_layers=2,
    encoder_attention_heads=2, decoder_attention_heads=2,
)  # fmt: skip
NEEDED = {
    "no_decoder_final_norm": dict(decoder_normalize_before=True),
    "max_source_positions": dict(encoder_learned_pos=True),
    "max_target_positions": dict(decoder_learned_pos=True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_tells_what_its_model_computes(name):
    """Rebuilt from its options it is the same; a model of others does not take its weights."""
    usual, shared = {**SIZES, **NEEDED.get(name, {})}, name == "share_all_embeddings"
    options = {**usual, name: OTHERS[name]}
    model = build(shared=shared, **options)
    written = argparse.Namespace(arch="srp", **options)
    state = {"cfg": {"model": written}, "model": copy.deepcopy(model.state_dict())}
    rebuilt = models.build_model(srp_arguments(state), DictionaryTask(shared)).double().eval()
    rebuilt.load_state_dict(copy.deepcopy(state["model"]))
    assert torch.equal(logits(rebuilt), logits(model))
    check_structure(model, state, "model.pt")
    with pytest.raises(UserError, match=f"has .*--{name.replace('_', '-')}"):
        check_structure(build(shared=shared, **usual), state, "model.pt")


def test_a_graph_that_is_kept_does_not_know_the_old_widths_afterwards():
    """As torch.compile keeps some: its nodes hold those of the parameters."""
    model = build()
    kept = model(*batch())[0]
    cut(model, random_keep(model, KINDS))
    model(*batch())[0].sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())
    assert kept.requires_grad
