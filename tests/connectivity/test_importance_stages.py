"""What all criteria of importance share, and whole stages with each."""

import copy

import pytest
import torch

from src.connectivity.cut import cut
from src.connectivity.groups import ChannelGroup, channel_groups
from src.connectivity.importance import (
    IMPORTANCE,
    normalized,
    score,
)
from src.connectivity.scoring import ScoringBatch
from src.errors import ending_program
from src.modules.relevance import gold_relevance
from src.training.channel_scores import score_model, scoring_samples
from tests.support.importance import (
    MODELS,
    PAD,
    alone,
    close,
    make,
    samples,
    scores_of,
    scoring,
    tokens_of,
)
from tests.support.training import RUN, TINY, run_training, stage_of

OF_WIDTHS = [name for name, criterion in IMPORTANCE.items() if not criterion.of_layers]


def head_scores(group, scores):
    """Channels' scores ``[width]`` added up by head, signs and all."""
    return scores.view(group.heads, -1).sum(1)


def head_importance(model, data, name):
    """Scores of whole heads, ``[heads]`` for each attention group."""
    attention = {n: g for n, g in channel_groups(model).items() if g.original_heads > 1}
    return score(attention, scoring(model, data), name, by_head=True)


@pytest.mark.parametrize("name", OF_WIDTHS)
def test_cut_elsewhere_changes_no_score(name):
    """Channels without weights are cut; the other groups' scores stay."""
    model, data = make("pre"), samples(2)
    groups = channel_groups(model)
    gone = {
        "encoder.layers.0.ffn": [3, 4, 20],
        "decoder.layers.0.self_attn.vo": [1, 9],
        "decoder.layers.1.encoder_attn.qk": [0, 5, 8, 15],
    }
    keep = {}
    with torch.no_grad():
        for group_name, positions in gone.items():
            group = groups[group_name]
            stays = torch.ones(group.width, dtype=torch.bool)
            stays[positions] = False
            keep[group_name] = stays.nonzero().squeeze(1)
            for piece in group.slices:
                piece.parameter.index_fill_(piece.dim, torch.tensor(positions), 0)
    before = scores_of(model, data, name)
    cut(model, keep)
    after = scores_of(model, data, name)
    for group_name, scores in before.items():
        kept = keep.get(group_name, slice(None))
        close(after[group_name], scores[kept], rtol=1e-8)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["grad", "taylor", "lrp"])
def test_cut_models_are_scored(name, kind):
    """After embedding channels and a head are cut: as the gated model was."""
    model, data = make(name), samples(2)
    groups = channel_groups(model)
    keep = {n: torch.tensor([0, 2, 3, 4, 6, 7, 11, 13, 15]) for n in ("encoder.embedding",)}
    for group_name in ("encoder.layers.1.self_attn.qk", "encoder.layers.1.self_attn.vo"):
        keep[group_name] = torch.arange(8, 16)
    for group_name, kept in keep.items():
        gate = torch.zeros(groups[group_name].width)
        gate[kept] = 1
        groups[group_name].set_connectivity(gate)
    # the rules of relevance are for open gates: a cut model's alone
    gated = {} if kind == "lrp" else scores_of(model, data, kind)
    cut(model, keep)
    found = scores_of(model, data, kind)
    for group_name, group in channel_groups(model).items():
        assert found[group_name].shape == (group.width,)
        if gated:
            kept = keep.get(group_name, slice(None))
            close(found[group_name], gated[group_name][kept], rtol=1e-8)
    for inputs, target in data:
        gold = model(**inputs)[0].gather(-1, target.unsqueeze(-1)).squeeze(-1)
        close(gold_relevance(model, inputs, target, PAD), gold[target.ne(PAD)].sum())
    heads = head_importance(model, data, kind)
    assert {n: len(s) for n, s in heads.items()} == {
        n: g.heads for n, g in channel_groups(model).items() if g.kind in ("qk", "vo")
    }
    assert len(heads["encoder.layers.1.self_attn.vo"]) == 1


def as_processes(world, run):
    """Results of ``world`` processes, played one after another.

    ``run(rank, reduce)`` is repeated until every reduction has been seen by all: a
    reduction's sum is known when all ranks have reached it.
    """
    sums = []
    while True:
        reached, results = [], []
        for rank in range(world):
            calls = 0

            def reduce(total):
                nonlocal calls
                if calls < len(sums):
                    total.copy_(sums[calls])
                elif calls == len(sums):
                    reached.append(total.clone())
                calls += 1

            results.append(run(rank, reduce))
        if not reached:
            return results
        assert len(reached) == world and len({len(t) for t in reached}) == 1
        sums.append(sum(reached))


@pytest.mark.parametrize("name", OF_WIDTHS)
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("by_head", [False, True])
def test_two_processes_score_as_one(name, number, by_head):
    """Also when one of them has no batch at all."""
    model, data = make("post"), samples(number)
    groups = channel_groups(model)
    per_example = IMPORTANCE[name].per_example

    def run(rank, reduce):
        share = scoring(model, data[rank::2])
        return score(groups, share, name, reduce, "l1", per_example, by_head=by_head)

    one = score(groups, scoring(model, data), name, alone, "l1", per_example, by_head=by_head)
    first, second = as_processes(2, run)
    assert one.keys() == first.keys() and len(one) > 4
    for group_name, scores in one.items():
        assert torch.equal(first[group_name], second[group_name])
        close(first[group_name], scores)


@pytest.mark.parametrize("name", OF_WIDTHS)
def test_scoring_leaves_nothing_behind(name):
    """Not after a failure either: the model goes on as fast, and training exactly so."""

    def failing():
        raise ZeroDivisionError

    model, data = make("post"), samples(1)
    broken = [ScoringBatch(loss=failing, tokens=1, relevance=failing)]
    scores_of(model, data, name)
    if IMPORTANCE[name].uses_batches:
        with pytest.raises(ZeroDivisionError):
            score(channel_groups(model), broken, name)
    for group in channel_groups(model).values():
        assert not group.gated and group.listener is None
        assert not group.connectivity.requires_grad


@pytest.mark.parametrize("name", ["fisher", "taylor"])
def test_half_precision_is_scored_in_wide_numbers(name):
    """Products of numbers of which float16 has no product."""
    group = ChannelGroup("ffn", 2).half()
    x = torch.full((1, 1, 2), 300.0, dtype=torch.float16)

    def loss():
        gated = group.measure(group.gate(x)) * torch.tensor([300.0, 1.0]).half()
        return gated.float().sum()

    # by the gate the gradients are a·δ, which float16 has to have
    x[..., 0] = 300.0 if name == "taylor" else 1.0
    batch = ScoringBatch(loss=loss, tokens=1, relevance=loss)
    (found,) = score({"a": group}, [batch], name).values()
    assert found.dtype == torch.float64
    assert found.tolist() == [90000, 300 if name == "taylor" else 90000]


@pytest.mark.parametrize("name", ["connectivity", "fisher", "taylor"])
def test_batches_are_added_up_in_float64(name):
    """Also where float32 would lose the smaller one."""
    group = ChannelGroup("ffn", 1)

    def batch(size):
        x = torch.full((1, 1, 1), size)
        return ScoringBatch(lambda: group.measure(group.gate(x)).sum(), 1, lambda: None)

    (found,) = score({"a": group}, [batch(2.0**25), batch(1.0)], name).values()
    sums = {"connectivity": -(2**25) - 1, "fisher": 2**50 + 1, "taylor": (2**25 + 1) / 2}
    assert found.tolist() == [sums[name]]


def test_norms_divide_each_group_by_its_size():
    model, data = make("post"), samples(1)
    plain = scores_of(model, data, "taylor")
    for norm, power in (("l1", 1), ("l2", 2)):
        for name, scores in scores_of(model, data, "taylor", norm=norm).items():
            close(scores.pow(power).sum(), torch.tensor(1.0, dtype=torch.float64))
            close(scores * (plain[name].pow(power).sum() ** (1 / power)), plain[name])
            assert torch.equal(scores.argsort(), plain[name].argsort())
    zeros = {"a": torch.zeros(3), "b": torch.tensor([3.0, -4.0])}
    assert normalized(zeros, "none") is zeros
    assert normalized(zeros, "l2")["a"].tolist() == [0, 0, 0]
    assert normalized(zeros, "l2")["b"].tolist() == pytest.approx([0.6, -0.8])


def test_random_is_drawn_with_the_seed_and_kept_by_channels():
    model = make("post")
    first, again, other = (scores_of(model, [], "random", seed=s) for s in (1, 1, 2))
    names = list(first)
    assert all(torch.equal(first[n], again[n]) for n in names)
    assert not any(torch.equal(first[n], other[n]) for n in names)
    same = [n for n in names if first[n].shape == first[names[0]].shape]
    assert len({tuple(first[n].tolist()) for n in same}) == len(same) > 1
    kept = torch.tensor([2, 3, 7, 21])
    cut(model, {"encoder.layers.1.ffn": kept})
    cut_scores = scores_of(model, [], "random", seed=1)
    assert torch.equal(cut_scores["encoder.layers.1.ffn"], first["encoder.layers.1.ffn"][kept])


def test_heads_are_scored_by_signed_sums():
    model, data = make("post"), samples()
    groups = channel_groups(model)
    heads = {
        n: head_importance(model, data, n) for n in ("taylor", "connectivity", "fisher", "weight")
    }
    signed = scores_of(model, data, "connectivity")
    norms = scores_of(model, data, "weight")
    slopes = [scores_of(model, [one], "connectivity") for one in data]
    attention = [n for n, g in groups.items() if g.kind in ("qk", "vo")]
    assert list(heads["taylor"]) == attention
    for name in attention:
        group = groups[name]
        sums = head_scores(group, signed[name])
        assert sums.tolist() == [signed[name][:8].sum(), signed[name][8:].sum()]
        close(heads["connectivity"][name], sums)
        close(heads["taylor"][name], sums.abs() / tokens_of(data))
        squares = sum(head_scores(group, s[name]).square() for s in slopes)
        close(heads["fisher"][name], squares)
        close(heads["weight"][name], head_scores(group, norms[name]))


# -- whole stages ----------------------------------------------------------------------


def stage(base, folder, *more):
    return [
        *TINY, *RUN, "--pretrained-model", base, "--compression-rate", "0.4",
        *("--pruning-stage", "0", "--pruning-period", "1", "--save-dir", folder), *more,
    ]  # fmt: skip


def ids_of(trainer):
    groups = channel_groups(trainer.get_model())
    return {name: group.channel_ids.tolist() for name, group in groups.items()}


def test_every_criterion_runs_a_stage(data, base, tmp_path):
    """One-shot with recovery in two iterations, and shrinking; all choose differently."""
    chosen = {}
    for name in OF_WIDTHS:
        more = ["--importance", name, "--importance-norm", "l2", "--no-save"]
        if IMPORTANCE[name].per_example:
            more.append("--importance-per-example")
        shot = run_training(
            [data, *stage(base, tmp_path / name, *more, "--pruning-iter", "2")]
            + ["--max-epoch", "2"]
        )
        assert stage_of(shot).done and stage_of(shot).finished_iterations == 2
        shrunk = run_training([data, *stage(base, tmp_path / f"{name}2", *more, "--srp")])
        assert stage_of(shrunk).done and stage_of(shrunk).finished_iterations == 1
        for trainer in (shot, shrunk):
            parameters = sum(p.numel() for p in trainer.get_model().parameters())
            total = sum(v.numel() for v in torch.load(base)["model"].values())
            assert parameters < 0.45 * total
        chosen[name] = str(ids_of(shrunk))
    assert len(set(chosen.values())) == len(OF_WIDTHS)


def test_options_reach_the_criterion(data, base, tmp_path):
    trainer = run_training(
        [data, *TINY, *RUN, "--pretrained-model", base, "--max-update", "1", "--no-save"]
    )
    task, model, criterion = trainer.task, trainer.get_model(), trainer.criterion
    device = torch.device("cpu")

    def scores(**options):
        for option, value in options.items():
            setattr(task.cfg, option, value)
        model.train()
        result = score_model(task, model, criterion, "train", 1, device)
        assert model.training
        return result

    plain = scores(importance="taylor")
    normed = scores(importance_norm="l2")
    each = scores(importance_norm="none", importance_per_example=True)
    for name, values in plain.items():
        close(normed[name], values / values.norm())
        assert (each[name] >= values).all() and (each[name] > values).any()
    lrp = scores(importance="lrp", importance_per_example=False)
    model.bfloat16()  # relevance is computed by a copy in float32
    rough = scores()
    assert next(model.parameters()).dtype == torch.bfloat16
    model.float()
    for name, values in scores().items():
        assert torch.equal(values, rough[name])
        torch.testing.assert_close(values, lrp[name], rtol=0.3, atol=0.3 * values.max().item())


@pytest.mark.parametrize("name", [n for n in OF_WIDTHS if IMPORTANCE[n].uses_batches])
def test_tokens_that_the_loss_leaves_out_count_nowhere(data, base, name):
    """Their gold tokens may be any; those of the others may not."""
    trainer = run_training(
        [data, *TINY, *RUN, "--pretrained-model", base, "--max-update", "1", "--no-save"]
        + ["--ignore-prefix-size", "2"]
    )
    task, model, criterion = trainer.task, trainer.get_model(), trainer.criterion
    task.cfg.importance = name
    samples = list(scoring_samples(task, "train", 1))

    def scores(column=None):
        given = copy.deepcopy(samples)
        for sample in given if column is not None else ():
            sample["target"][:, column] = 7  # no padding: sentences have four tokens or more
        device = torch.device("cpu")
        return score_model(task, model, criterion, "train", 1, device, samples=given)

    plain, outside, inside = scores(), scores(1), scores(2)
    for group, values in plain.items():
        assert torch.equal(values, outside[group])
        assert not torch.equal(values, inside[group])


@pytest.mark.parametrize(
    "options, words",
    [
        (["--importance", "magic"], ["--importance", "magic", "taylor", "lrp"]),
        (["--importance-norm", "l3"], ["--importance-norm", "l3", "none", "l1", "l2"]),
        (
            ["--importance", "weight", "--importance-per-example"],
            ["--importance-per-example", "--importance weight", "grad, lrp, taylor"],
        ),
        (
            ["--importance-per-example"],
            ["--importance-per-example", "--importance fisher"],
        ),
    ],
)
def test_bad_options_are_refused_in_one_line(data, base, tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as stop, ending_program():
        run_training([data, *stage(base, tmp_path, *options)])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in words), error
