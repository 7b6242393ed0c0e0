"""Whole layers as channels: gates, cuts, choice, budget."""

import copy

import pytest
import torch

from src.connectivity.budget import ParameterCount
from src.connectivity.cut import cut, cut_optimizer_state
from src.connectivity.errors import PruningError
from src.connectivity.freeze import Freezer
from src.connectivity.groups import KINDS, channel_groups
from src.connectivity.layers import widths_in_uncut
from src.connectivity.stage import PruningStage, StagePlan
from src.criterions.srp import attention_loss
from tests.support.cuts import VARIANTS, close_gates, logits, random_keep
from tests.support.importance import alone, samples, scores_of, scoring
from tests.support.training import batch, build

DEEP = {"encoder_layers": 3, "decoder_layers": 3}
SIZES = {"encoder_embed_dim": 64, "encoder_ffn_embed_dim": 128}
CRITERIA = ("ablation", "connectivity", "fisher", "grad", "lrp", "random", "taylor", "weight")


def deep(variant="post-norm", **more):
    options = {**DEEP, **VARIANTS[variant], **more}
    return build(shared=options.get("share_all_embeddings", False), **options)


def depth(model, side="decoder"):
    return channel_groups(model)[f"{side}.depth"]


def keep(encoder, decoder):
    return {"encoder.depth": torch.tensor(encoder), "decoder.depth": torch.tensor(decoder)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_cut_equal_layers_gated(variant):
    model = deep(variant)
    last = len(model.decoder.layers) - 1
    kept = keep([0, 2], [last])
    close_gates(model, kept)
    gated = logits(model)
    cut(model, kept)
    assert [len(side.layers) for side in (model.encoder, model.decoder)] == [2, 1]
    assert (model.encoder.num_layers, model.decoder.num_layers) == (2, 1)
    assert (logits(model) - gated).abs().max() <= 1e-10
    assert depth(model).channel_ids.tolist() == [last]
    fresh = deep(variant, seed=7)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(logits(fresh), logits(model))
    assert widths_in_uncut(fresh) == widths_in_uncut(model)


@pytest.mark.parametrize("variant", ["post-norm", "pre-norm"])
def test_a_layer_is_mixed_with_its_input_by_its_connectivity(variant):
    model = deep(variant)
    layer, x = model.encoder.layers[1], torch.randn(9, 5, 16, dtype=torch.float64)
    whole = layer(x, None)
    depth(model, "encoder").set_connectivity(torch.tensor([0.5, 1.0, 0.25]))
    assert torch.equal(layer(x, None), whole)  # bit for bit
    depth(model, "encoder").set_connectivity(torch.tensor([1.0, 0.25, 1.0]))
    torch.testing.assert_close(layer(x, None), x + 0.25 * (whole - x))
    depth(model, "encoder").shrink(torch.tensor([1]), 0.0)
    layer.fc1.forward = lambda _: pytest.fail("is computed")
    assert torch.equal(layer(x, None), x)


def test_shrinking_is_setting_the_gates():
    ours, other = deep(), deep()
    for level in (0.7, 0.3, 0.0):
        depth(ours).shrink(torch.tensor([0, 2]), level)
        depth(other).set_connectivity(torch.tensor([level, 1, level], dtype=torch.float64))
        assert torch.equal(logits(ours), logits(other))


def test_every_layer_of_the_declaration_matters():
    """Forgotten, another one goes in its place, or none can."""
    for number in range(6):
        model = deep()
        kept = keep([1], [1])
        close_gates(model, kept)
        gated = logits(model)
        side, position = ("encoder", "decoder")[number // 3], number % 3
        del depth(model, side).layers[position]
        try:
            cut(model, kept)
            assert (logits(model) - gated).abs().max() > 1e-6 or position == 2
            assert position < 2 or len(getattr(model, side).layers) == 1
        except (IndexError, RuntimeError):
            pass


def test_what_is_within_a_layer_goes_with_it():
    model = deep()
    gone = model.encoder.layers[1], model.decoder.layers[0]
    parameters = {id(p) for layer in gone for p in layer.parameters()}
    cut(model, {**random_keep(model, KINDS), **keep([0, 2], [1, 2])})
    modules = {id(m) for layer in gone for m in layer.modules()}
    for group in channel_groups(model).values():
        assert not modules & {id(piece.module) for piece in group.slices}
    assert not parameters & {id(p) for p in model.parameters()}


def test_frozen_whole_and_gone_from_the_optimizer():
    model = deep()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    logits_sum = model(*batch())[0].sum()
    logits_sum.backward()
    optimizer.step()
    freezer = Freezer(model, {"decoder.depth": torch.tensor([1])})
    going = list(model.decoder.layers[1].parameters())
    assert {id(p) for p in freezer.parameters} == {id(p) for p in going}
    assert all(freezer.mask(p).all() for p in going)
    freezer.clear_moments(optimizer)
    assert all(not optimizer.state[p]["exp_avg"].any() for p in going)
    cut_optimizer_state(optimizer, cut(model, {"decoder.depth": torch.tensor([0, 2])}))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == list(map(id, model.parameters()))
    assert {id(p) for p in optimizer.state} == set(map(id, model.parameters()))


def test_the_count_is_of_the_uncut_model_whatever_is_gone():
    model = deep(**SIZES)
    whole = ParameterCount(model)
    assert whole.uncut == whole(whole.current) == sum(p.numel() for p in model.parameters())
    planned = ParameterCount(model, keep([0, 1], [2]))
    cut(model, keep([0, 1], [2]))
    assert ParameterCount(model).share == planned.share < 0.7
    cut(model, random_keep(model, ("embedding", "qk", "vo", "ffn")))
    count = ParameterCount(model)
    assert count.uncut == whole.uncut
    assert count(count.current) == sum(p.numel() for p in model.parameters())
    widths = widths_in_uncut(model)
    assert widths["decoder.depth"] == [1, 3] and widths["decoder.layers.0.ffn"] == [0, 128]
    assert 0 < widths["decoder.layers.2.ffn"][0] < 128
    assert widths.keys() == widths_in_uncut(deep(**SIZES)).keys()


# -- choice --------------------------------------------------------------------------------


def loss(model, data):
    with torch.no_grad():
        return sum(b().item() for b in scoring(model, data))


def test_ablation_takes_out_what_costs_least_and_measures_again():
    model, data = deep(encoder_layers=4), samples()
    kept = {"encoder.depth": [0, 1, 2, 3], "decoder.depth": [0, 1, 2]}
    order = []
    for _ in range(3):  # by hand: cut, measure, go on from the best
        tried = []
        for name, present in kept.items():
            if len(present) > {"encoder.depth": 2, "decoder.depth": 2}[name]:
                for number in present:
                    other = copy.deepcopy(model)
                    rest = {n: torch.tensor([x for x in p if (n, x) != (name, number)])
                            for n, p in kept.items()}  # fmt: skip
                    cut(other, rest)
                    tried.append((loss(other, data), name, number))
        _, name, number = min(tried)
        kept[name].remove(number)
        order.append((name, number))
    stay = dict.fromkeys(kept, 2)
    found = scores_of(model, data, "ablation", layers=stay)
    assert found.keys() == kept.keys()
    for turn, (name, number) in enumerate(order):
        assert found[name][number] == turn
    assert all((found[n][p] == 3).all() for n, p in kept.items())
    assert not any(group.gated for group in channel_groups(model).values())


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("variant", ["post-norm", "pre-norm"])
def test_every_criterion_ranks_layers(variant, criterion):
    model, data = deep(variant), samples()
    scores = scores_of(model, data, criterion)
    for side in ("encoder", "decoder"):
        found = scores[f"{side}.depth"]
        assert found.shape == (3,) and torch.isfinite(found).all() and found.any()
    if criterion == "connectivity":  # the derivative, numerically
        gates = torch.tensor([1.0, 1 - 2.0**-12, 1.0])
        whole = loss(model, data)
        depth(model).set_connectivity(gates)
        slope = (whole - loss(model, data)) / 2.0**-12
        assert -scores["decoder.depth"][1].item() == pytest.approx(slope, rel=1e-2)


# -- stages --------------------------------------------------------------------------------


def run_stage(model, plan, data):
    stage = PruningStage(plan, model)
    stage.check()
    seen = []
    while not stage.done:
        groups = channel_groups(model)
        scores = stage.measure(groups, scoring(model, data), plan.importance, alone)
        stage.begin(scores, 0)
        if stage.ready:
            stage.cut()
        seen.append(
            (depth(model, "encoder").width, depth(model).width, ParameterCount(model).share)
        )
    return seen


def test_layers_alone_and_with_widths():
    data = samples()
    alone_, both = deep(**SIZES), deep(**SIZES)
    plan = dict(stage=0, keep_encoder_layers=2, keep_decoder_layers=1)
    ((*layers, share),) = run_stage(alone_, StagePlan(1.0, **plan), data)
    assert layers == [2, 1] and 0.45 < share < 0.5
    assert all(g.width == g.original_width for g in channel_groups(alone_).values()
               if g.kind != "layer")  # fmt: skip
    ((*layers, share),) = run_stage(both, StagePlan(0.3, **plan), data)
    assert layers == [2, 1] and share == pytest.approx(0.3, rel=0.005)
    assert depth(both).channel_ids.tolist() == depth(alone_).channel_ids.tolist()


def test_layers_go_first_over_iterations():
    plan = StagePlan(0.2, 0, iterations=3, keep_encoder_layers=2, keep_decoder_layers=1)
    seen = run_stage(deep(**SIZES), plan, samples())
    assert [row[:2] for row in seen] == [(2, 2), (2, 1), (2, 1)]
    assert seen[-1][2] == pytest.approx(0.2, rel=0.005)


def test_layers_in_stage_2_after_stage_1():
    model, data = deep(**SIZES), samples()
    run_stage(model, StagePlan(0.3, 1), data)
    seen = run_stage(model, StagePlan(0.3, 2, keep_decoder_layers=2), data)
    assert seen[-1][:2] == (3, 2) and seen[-1][2] == pytest.approx(0.3, rel=0.005)


@pytest.mark.parametrize(
    "rate, encoder, decoder, words",
    [
        (0.5, 4, None, "keep_encoder_layers 4: the model has 3"),
        (0.9, 3, 1, "compression_rate 0.9: the layers that stay have at most 0.6122"),
        (0.001, 1, 1, "compression_rate 0.001: at least"),
        (1.0, 3, 3, "keep_encoder_layers 3 keep_decoder_layers 3: nothing is left to cut"),
    ],
)
def test_numbers_of_layers_that_are_refused(rate, encoder, decoder, words):
    plan = StagePlan(rate, 0, keep_encoder_layers=encoder, keep_decoder_layers=decoder)
    with pytest.raises(PruningError, match=words):
        PruningStage(plan, deep(**SIZES)).check()


def test_attention_is_distilled_from_the_same_layer_of_the_teacher():
    teacher, student = deep(), deep(seed=5)
    present = torch.ones(5, 7, dtype=torch.bool)
    for model in (teacher, student):
        for layer in model.decoder.layers:
            layer.keep_attention_map = True
        logits(model)
    close_gates(student, {"decoder.depth": torch.tensor([0, 1])})
    logits(student)
    gated = attention_loss(student.decoder, teacher.decoder, present)
    cut(student, {"decoder.depth": torch.tensor([0, 1])})
    logits(student)
    first = attention_loss(student.decoder, teacher.decoder, present)
    assert first == pytest.approx(gated.item()) and first > 0
    cut(student, {"decoder.depth": torch.tensor([1])})
    logits(student)
    second = attention_loss(student.decoder, teacher.decoder, present)
    its = teacher.decoder.layers[1].attention_map
    mine = student.decoder.layers[0].attention_map
    expected = torch.xlogy(its, its / mine.clamp_min(1e-300)).sum()  # padding has 0 in both
    assert second.item() == pytest.approx(expected.item(), rel=1e-4)
