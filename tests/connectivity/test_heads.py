"""Whole heads go: selected, shrunk and cut like channels, and everything follows."""

import copy
import logging

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator

from src.connectivity.budget import ParameterCount, plan_widths, scaled_widths
from src.connectivity.cut import cut
from src.connectivity.errors import PruningError
from src.connectivity.groups import attention_groups, channel_groups
from src.connectivity.selection import head_scores, select
from src.evaluation.flops import count_flops
from src.sequence_generator import FastSequenceGenerator
from tests.support.cuts import VARIANTS, close_gates, logits, random_keep, random_scores
from tests.support.exports import exported, found_deviation
from tests.support.flops import SMALL, teacher_forced
from tests.support.flops import build as dense_float
from tests.support.heads import heads
from tests.support.search import DICTIONARY, LENGTHS, assert_same, livelier, sample
from tests.support.training import batch, build

FOUR = dict(encoder_attention_heads=4, decoder_attention_heads=4)


def head_keep(model, seed=3):
    """One to all but one of the heads of each attention module."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for number, pair in enumerate(attention_groups(channel_groups(model))):
        kept = torch.randperm(pair[0].heads, generator=generator)
        kept = kept[: 1 + number % max(1, pair[0].heads - 1)].sort().values
        for group in pair:
            keep[group.name] = torch.arange(group.width).view(group.heads, -1)[kept].flatten()
    return keep


def test_one_head_stays_at_the_least():
    groups = channel_groups(build(**FOUR))
    widths = scaled_widths(groups, {"qk", "vo"}, 0.0, whole_heads=True)
    for pair in attention_groups(groups):
        assert [widths[group.name] for group in pair] == [group.head_width for group in pair]


# -- the cut ------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_equals_gated(variant):
    """Outputs and attention maps of every layer; in pieces, too."""
    options = {**FOUR, **VARIANTS[variant]}
    shared = options.get("share_all_embeddings", False)
    model = build(shared=shared, **options)
    dense, scales = logits(model), [layer.self_attn.scaling for layer in model.encoder.layers]
    for layer in model.decoder.layers:
        layer.keep_attention_map = True
    keep = head_keep(model)
    close_gates(model, keep)
    gated, maps = logits(model), [layer.attention_map for layer in model.decoder.layers]
    assert (gated - dense).abs().max() > 1e-3
    cut(model, keep)
    assert (logits(model) - gated).abs().max() <= 1e-10
    for layer, before in zip(model.decoder.layers, maps):
        # attention weights are rounded to float32 at the softmax
        assert (layer.attention_map - before).abs().max() <= 1e-6
        assert (layer.attention_map.sum(-1) - 1).abs().max() <= 1e-6
    assert len(set(heads(model))) > 1 and min(heads(model)) == 1
    assert [layer.self_attn.scaling for layer in model.encoder.layers] == scales
    for layer in (*model.encoder.layers, *model.decoder.layers):
        assert layer.self_attn.num_heads == layer.self_attn.vo.heads


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["dims last", "heads last"])
def test_heads_and_dims_go_one_after_the_other(order):
    """Gated = cut when one kind was cut before the other."""
    model = build(**FOUR, encoder_embed_dim=32, decoder_embed_dim=32)
    kinds = (head_keep, lambda m: random_keep(m, ("embedding", "qk", "vo", "ffn")))
    cut(model, kinds[order[0]](model))
    keep = kinds[order[1]](model)
    close_gates(model, keep)
    gated = logits(model)
    cut(model, keep)
    assert (logits(model) - gated).abs().max() <= 1e-10
    assert 4 > max(heads(model)) > min(heads(model)) == 1
    assert all(qk.head_width < 8 for qk, _ in attention_groups(channel_groups(model)))


def test_weights_load_into_fresh_and_into_other_models():
    model, uncut, other = build(**FOUR), build(**FOUR, seed=2), build(**FOUR, seed=3)
    whole = copy.deepcopy(uncut.state_dict())
    cut(model, head_keep(model))
    cut(other, head_keep(other, seed=5))
    for fresh in (uncut, other):
        fresh.load_state_dict(copy.deepcopy(model.state_dict()))
        assert torch.equal(logits(fresh), logits(model))
        assert heads(fresh) == heads(model)
    model.load_state_dict(whole)  # and back to all heads
    assert heads(model) == [4] * 6
    for name in list(whole):  # of fairseq's transformer: it says nothing of channels
        if name.endswith(("channel_ids", "connectivity")):
            del whole[name]
    other.load_state_dict(whole)
    assert heads(other) == [4] * 6 and torch.equal(logits(other), logits(model))


def test_heads_that_are_not_alike_are_refused():
    model = build(**FOUR)
    before, state = logits(model), copy.deepcopy(model.state_dict())
    keep = head_keep(model)
    for name in ("encoder.layers.0.self_attn.qk", "decoder.layers.1.encoder_attn.vo"):
        with pytest.raises(RuntimeError, match=name):
            cut(model, {name: keep[name]})
    uneven = torch.tensor([0, 1, 2, 4, 5])
    with pytest.raises(RuntimeError, match="different widths, \\[3, 2\\]"):
        cut(model, dict.fromkeys(("encoder.layers.0.self_attn.qk",), uneven))
    assert torch.equal(logits(model), before)  # nothing was cut
    state["decoder.layers.0.self_attn.vo.channel_ids"] = torch.arange(8, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"\[0, 1, 2, 3\].*\[0, 1\]"):
        model.load_state_dict(state)
    with pytest.raises(AttributeError):
        model.encoder.layers[0].self_attn.num_heads = 2


# -- budget and selection ---------------------------------------------------------


def medium(narrow=False, **options):
    """One unit is far less than 0.5 % of the parameters."""
    sizes = dict(encoder_embed_dim=64, encoder_ffn_embed_dim=192, **FOUR)
    if narrow:
        sizes.update(decoder_embed_dim=48, decoder_ffn_embed_dim=96)
    return build(**sizes, **options)


def prune(model, rate, stage, whole_heads=True, scores=None, seed=1):
    widths = plan_widths(model, rate, stage, whole_heads)
    scores = scores or random_scores(model, seed)
    cut(model, select(model, scores, widths, whole_heads))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("rate", [0.9966, 0.97, 0.8, 0.55, 0.3, 0.12])
def test_rate_is_met(rate, narrow, staged):
    model = medium(narrow)
    total = sum(p.numel() for p in model.parameters())
    if staged:
        prune(model, rate, 1, False)
    now = prune(model, rate, 2 if staged else 0)
    assert abs(now - rate * total) <= 0.005 * rate * total
    count = ParameterCount(model)
    assert now == count(count.current)
    for name, group in count.groups.items():
        if group.kind in ("qk", "vo"):
            assert group.head_width == group.original_width // 4, name
            assert group.heads >= 1
    assert (sum(heads(model)) < 24) == (rate < 0.97)
    assert (min(heads(model)) == 1) == (rate < 0.5)


@pytest.mark.parametrize("first", [True, False], ids=["heads first", "dims first"])
def test_rate_is_met_after_the_other_kind(first):
    """Dims of the heads that are left, heads as wide as they are, both once more."""
    model = medium()
    total = sum(p.numel() for p in model.parameters())
    for number, rate in enumerate((0.7, 0.5, 0.35, 0.25)):
        groups = attention_groups(channel_groups(model))
        before = [(qk.heads, qk.head_width, vo.head_width) for qk, vo in groups]
        whole_heads = first == (number % 2 == 0)
        now = prune(model, rate, 0, whole_heads, seed=number)
        assert abs(now - rate * total) <= 0.005 * rate * total
        after = [(qk.heads, qk.head_width, vo.head_width) for qk, vo in groups]
        assert after != before
        kept = slice(1, 3) if whole_heads else slice(0, 1)
        assert [a[kept] for a in after] == [b[kept] for b in before]


def test_unequal_heads_of_both_kinds_of_widths_scale_to_one_share():
    """The module that lost most heads loses fewest dims afterwards."""
    model = medium()
    groups = channel_groups(model)
    qk, vo = groups["encoder.layers.0.self_attn.qk"], groups["encoder.layers.0.self_attn.vo"]
    cut(model, {g.name: torch.arange(16) for g in (qk, vo)})
    widths = plan_widths(model, 0.4, 0)
    others = {widths[n] for n, g in groups.items() if g.kind == "qk" and g is not qk}
    assert len(others) == 1 and widths[qk.name] == qk.width < others.pop()


def test_head_scores_are_sums_and_the_largest_stay():
    torch.manual_seed(1)
    queries, values = torch.randn(4 * 3).double(), torch.randn(4 * 5).double()
    expected = torch.stack(
        [queries[3 * h : 3 * h + 3].sum() + values[5 * h : 5 * h + 5].sum() for h in range(4)]
    )
    torch.testing.assert_close(head_scores(queries, values, 4), expected)

    model = medium()
    scores = random_scores(model)
    groups = channel_groups(model)
    keep = select(model, scores, plan_widths(model, 0.5, 0, True), True)
    kept, gone = [], []
    for qk, vo in attention_groups(groups):
        mine = head_scores(scores[qk.name], scores[vo.name], 4)
        positions = keep.get(qk.name, torch.arange(64))
        assert torch.equal(positions, keep.get(vo.name, torch.arange(64)))
        stays = torch.bincount(positions // 16, minlength=4)
        assert set(stays.tolist()) <= {0, 16}
        kept += mine[stays > 0].tolist() if stays.count_nonzero() > 1 else []
        gone += mine[stays == 0].tolist()
    # all modules cost alike here; the last head of a module stays in any case
    assert gone and min(kept) > max(gone)


def test_modules_are_ranked_together_and_keep_one_head():
    model = medium()
    scores = random_scores(model)
    pairs = attention_groups(channel_groups(model))
    for group in pairs[3]:
        scores[group.name] += 10
    for group in pairs[0]:
        scores[group.name] -= 10
    keep = select(model, scores, plan_widths(model, 0.6, 0, True), True)
    assert pairs[3][0].name not in keep and pairs[0][0].name in keep
    prune(model, 0.6, 0, scores=scores)
    assert heads(model)[3] == 4 and heads(model)[0] == 1
    equal = medium()
    zeros = {n: torch.zeros(g.width) for n, g in channel_groups(equal).items()}
    prune(equal, 0.6, 0, scores=zeros)
    found = heads(equal)  # of equals the last goes first
    assert found == sorted(found, reverse=True)
    ids = channel_groups(equal)["decoder.layers.0.self_attn.qk"].channel_ids
    assert torch.equal(ids, torch.arange(len(ids), dtype=torch.int32))


def test_heads_of_different_size_compare_by_parameter():
    """Decoder heads are smaller: of equal scores the larger ones go first."""
    model = medium(narrow=True)
    groups = channel_groups(model)
    scores = random_scores(model)
    for pair in attention_groups(groups):
        for group in pair:
            scores[group.name] = torch.full((group.width,), 1 / group.width)
    prune(model, 0.7, 0, scores=scores)
    found = heads(model)
    assert sum(found[:2]) < 8 and found[2:] == [4] * 4


def test_unreachable_rate_is_refused():
    with pytest.raises(PruningError, match="one head per attention module.*leave out prune_heads"):
        plan_widths(medium(), 0.005, 0, True)
    with pytest.raises(PruningError, match="prune_heads or start with stage 1"):
        plan_widths(medium(), 0.15, 2, True)


# -- translation, FLOPs, export ----------------------------------------------------


def halves(**options):
    """A model with closed heads, and its copy without them."""
    gated = livelier(build(**FOUR, encoder_learned_pos=True, **options))
    keep = head_keep(gated)
    small = copy.deepcopy(gated)
    close_gates(gated, keep)
    cut(small, keep)
    return gated, small


@pytest.mark.parametrize("before", [False, True], ids=["post-norm", "pre-norm"])
def test_both_searches_translate_as_before_the_cut(before):
    gated, small = halves(encoder_normalize_before=before, decoder_normalize_before=before)
    assert_same([small], beam_size=5)
    for kind in (SequenceGenerator, FastSequenceGenerator):
        results = []
        for model in (gated, small):
            generator = kind([model], DICTIONARY, beam_size=5, **LENGTHS)
            results.append(generator.generate([model], sample()))
        for one, other in zip(*results, strict=True):
            assert [h["tokens"].tolist() for h in one] == [h["tokens"].tolist() for h in other]
            for a, b in zip(one, other):
                torch.testing.assert_close(a["score"], b["score"], rtol=1e-6, atol=1e-6)


def test_step_by_step_equals_teacher_forcing_and_head_weights_are_there():
    _, model = halves()
    source, _, previous = batch()
    previous = previous.clamp_min(4)
    with torch.no_grad():
        whole = model(source, None, previous)[0]
        encoded, state = model.encoder(source), torch.jit.annotate(dict, {})
        for step in range(previous.shape[1]):
            now = model.decoder(previous[:, : step + 1], encoded, incremental_state=state)
            assert (now[0][:, 0] - whole[:, step]).abs().max() <= 2e-6
        layer = model.decoder.layers[0]
        memory = encoded["encoder_out"][0]
        queries = torch.randn(7, 5, 16).double()
        _, each = layer.encoder_attn(queries, memory, memory, need_head_weights=True)
        _, mean = layer.encoder_attn(queries, memory, memory)
    assert each.shape == (layer.encoder_attn.num_heads, 5, 7, 9)
    torch.testing.assert_close(each.mean(0), mean)


def test_flops_are_what_torch_counts():
    model = dense_float(**SMALL)
    dense = count_flops(model, 13, 9, incremental=False)
    cut(model, head_keep(model))
    counted = count_flops(model, 13, 9, incremental=False)
    assert counted["total"] == teacher_forced(model, 13, 9).get_total_flops()
    present = [layer.self_attn.num_heads for layer in model.encoder.layers]
    for part in ("encoder_projections", "encoder_scores"):
        assert counted[part] * 4 * 2 == dense[part] * sum(present)


@pytest.mark.parametrize("variant", ["post-norm", "pre-norm", "narrow decoder"])
def test_export_is_the_same_function(variant, tmp_path, caplog):
    model = build(**FOUR, weighted_layernorm=True, **VARIANTS[variant])
    cut(model, random_keep(model, ("embedding", "ffn")))
    cut(model, head_keep(model))
    assert len(set(heads(model)[2:])) > 1
    with caplog.at_level(logging.WARNING):
        found = found_deviation(exported(model, tmp_path), model)
    assert found.largest <= 1e-5 and found.tokens > 200
    assert "zeros among them" in caplog.text and "attention modules have" in caplog.text
