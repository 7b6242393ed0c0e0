"""A pruning stage inside fairseq's training loop."""

import csv
import os
from argparse import Namespace

import pytest
import torch

from src.checkpoints.pretrained import inherit_layernorm
from src.connectivity.budget import ParameterCount
from src.connectivity.cut import cut
from src.connectivity.groups import ChannelGroup, channel_groups
from src.connectivity.shrink import GEOMETRIC_END, SCHEDULES, connectivity_at
from src.modules.layer_norm import WeightedLayerNorm
from src.trainer import SRPTrainer
from src.training.channel_pruning import ChannelPruning
from src.training.channel_scores import score_model, scoring_samples
from tests.support.training import RUN, TINY, build, run_training, stage_of


def stage_options(base, rate=0.4, stage=0, period=1, **more):
    options = ["--pretrained-model", base, "--compression-rate", str(rate)]
    options += ["--pruning-stage", str(stage), "--pruning-period", str(period)]
    for name, value in more.items():
        flag = "--" + name.replace("_", "-")
        options += [flag] if value is True else [flag, str(value)]
    return options


def weights(folder, name="checkpoint_last.pt"):
    return torch.load(os.path.join(folder, name))["model"]


def parameters(state):
    shared = {"decoder.output_projection.weight"}  # tied
    return sum(
        v.numel()
        for k, v in state.items()
        if not k.endswith(("connectivity", "channel_ids", "version")) and k not in shared
    )


@pytest.mark.parametrize("decreasing", SCHEDULES)
def test_schedules(decreasing):
    ends = (2, 7, 12)  # of epochs with different numbers of updates
    values = [
        connectivity_at(decreasing, t, 12, sum(t >= end for end in ends), 3) for t in range(13)
    ]
    assert values[0] == 1 and values[-1] == 0
    assert all(a >= b for a, b in zip(values, values[1:]))
    assert all(0 < v <= 1 for v in values[:-1])
    expected = {"sa": 0.5, "sg": GEOMETRIC_END**0.5, "sc": 0.5, "ea": 2 / 3, "ec": 0.75}
    expected["eg"] = GEOMETRIC_END ** (1 / 3)
    if decreasing in expected:
        assert values[6] == pytest.approx(expected[decreasing])
    if decreasing.startswith("e"):
        moves = [t for t in range(1, 13) if values[t] != values[t - 1]]
        assert tuple(moves) == ends


@pytest.mark.parametrize("decreasing, warming_up", [("ea", 0), ("eg", 1), ("ec", 0)])
def test_connectivity_moves_at_the_ends_of_epochs(
    data, base, tmp_path, monkeypatch, decreasing, warming_up
):
    """Of a stage: epochs of 4, 2 and 2 updates, or of 2 after one of 4."""
    seen = []

    class Watching(SRPTrainer):
        def train_step(self, samples, raise_oom=False):
            output = super().train_step(samples, raise_oom)
            group = channel_groups(self.get_model())["encoder.embedding"]
            seen.append(group.connectivity.min().item())
            return output

    monkeypatch.setattr("src.trainer.SRPTrainer", Watching)
    options = stage_options(base, srp=True, period=3, decreasing=decreasing, warming_up=warming_up)
    run_training(
        [data, *TINY, *RUN, *options, "--update-freq", "1,2", "--no-save"]
        + ["--save-dir", tmp_path]
    )
    shape = SCHEDULES[decreasing][0]
    shrunk = [1, shape(1 / 3), shape(1 / 3), shape(2 / 3), shape(2 / 3), 1]  # cut
    assert seen == pytest.approx([1] * (4 if warming_up else 2) + shrunk)


class Watcher(SRPTrainer):
    """Records frozen weights and moments after every update."""

    log = []

    def train_step(self, samples, raise_oom=False):
        frozen = None
        if stage_of(self) is not None and stage_of(self).shrinking:
            frozen = [(p, m, v.clone()) for p, m, v in stage_of(self).freezer.frozen]
            before = [p.detach().clone() for p, _, _ in frozen]
        result = super().train_step(samples, raise_oom)
        if frozen and stage_of(self).shrinking:
            # moments as a checkpoint has them, whatever the optimizer makes of them
            every = [p for group in self.optimizer.param_groups for p in group["params"]]
            state = self.optimizer.state_dict()["state"]
            moments = {id(p): state[number] for number, p in enumerate(every)}
            for (p, mask, values), old in zip(frozen, before):
                Watcher.log.append(
                    dict(
                        same=torch.equal(p[mask], values[mask]),
                        others_move=bool((p[~mask] != old[~mask]).any()),
                        moments=sum(
                            s[mask].abs().sum().item()
                            for s in moments[id(p)].values()
                            if torch.is_tensor(s) and s.shape == mask.shape
                        ),
                    )
                )
        return result


@pytest.mark.parametrize("optimizer", ["srp_adam", "adam"])
def test_frozen_exactly(data, base, tmp_path, optimizer, monkeypatch):
    monkeypatch.setattr("src.trainer.SRPTrainer", Watcher)
    Watcher.log = []
    options = stage_options(base, srp=True, warming_up=1, weight_decay=0.1)
    run_training(
        [data, *TINY, *RUN, *options, "--optimizer", optimizer, "--clip-norm", "0.5"]
        + ["--update-freq", "2", "--save-dir", tmp_path, "--weighted-layernorm"]
    )
    assert len(Watcher.log) > 20
    assert all(entry["same"] for entry in Watcher.log)
    assert all(entry["moments"] == 0 for entry in Watcher.log)
    assert sum(entry["others_move"] for entry in Watcher.log) > 0.9 * len(Watcher.log)


def test_embedding_ratio_reaches_the_plan(data, base, tmp_path):
    widths = {}
    for ratio in ("0.8", "1.5"):
        options = stage_options(base, rate=0.5, embedding_ratio=ratio, no_save=True, max_epoch=1)
        trainer = run_training([data, *TINY, *RUN, *options, "--save-dir", tmp_path])
        widths[ratio] = ParameterCount(trainer.get_model()).current
    assert widths["0.8"]["encoder.embedding"] < widths["1.5"]["encoder.embedding"]
    assert widths["0.8"]["decoder.layers.0.ffn"] > widths["1.5"]["decoder.layers.0.ffn"]


def test_two_stages_through_their_checkpoints(data, base, tmp_path):
    """The README's path: stage 1, stage 2, finetuning, each from checkpoint_last.pt."""
    total = parameters(torch.load(base)["model"])
    common = [data, *TINY, *RUN]
    one = run_training(
        common
        + stage_options(base, stage=1, srp=True, period=2)
        + ["--save-dir", tmp_path / "1", "--weighted-layernorm", "--max-epoch", "2"]
    )
    widths = ParameterCount(one.get_model()).current
    assert widths["encoder.embedding"] < 16 and widths["encoder.layers.0.ffn"] == 24
    last = str(tmp_path / "1" / "checkpoint_last.pt")
    two = run_training(
        common
        + stage_options(last, stage=2, srp=True, decreasing="sg")
        + ["--save-dir", tmp_path / "2", "--weighted-layernorm"]
    )
    state = weights(tmp_path / "2")
    # a tiny model: one feed-forward unit is half a percent
    assert abs(parameters(state) - 0.4 * total) <= 0.01 * 0.4 * total
    assert parameters(state) == sum(p.numel() for p in two.get_model().parameters())
    assert all((v == 1).all() for k, v in state.items() if k.endswith("connectivity"))
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in weights(tmp_path / "2", "checkpoint_best.pt").items()
    }
    # --weighted-layernorm is forgotten, as in the README's command: it is inherited
    last = str(tmp_path / "2" / "checkpoint_last.pt")
    tuned = run_training(
        common + ["--pretrained-model", last, "--save-dir", tmp_path / "3"] + ["--max-epoch", "1"]
    )
    assert tuned.get_model().cfg.weighted_layernorm
    assert parameters(weights(tmp_path / "3")) == parameters(state)
    saved = torch.load(tmp_path / "3" / "checkpoint_last.pt")["cfg"]["model"]
    assert saved.weighted_layernorm


def test_cut_at_the_last_step_changes_nothing(data, base, tmp_path, monkeypatch):
    """Outputs right before and after the cut that ends a stage."""
    seen = {}

    class Compare(ChannelPruning):
        def cut(self, trainer):
            model, dataset = trainer.get_model().eval(), trainer.task.dataset("valid")
            sample = dataset.collater([dataset[i] for i in range(8)])["net_input"]
            for group in channel_groups(model).values():
                if group.name in self.stage.shrinking:
                    positions = self.stage.shrinking[group.name]
                    assert (group.connectivity[positions] == 0).all()
                    kept = group.connectivity[group.connectivity != 0]
                    assert (kept == 1).all()
            with torch.no_grad():
                before = model(**sample)[0]
                super().cut(trainer)
                seen["difference"] = (model(**sample)[0] - before).abs().max().item()
            model.train()

    monkeypatch.setattr("src.training.build_pruning.ChannelPruning", Compare)
    options = stage_options(base, srp=True)
    run_training([data, *TINY, *RUN, *options, "--save-dir", tmp_path])
    assert seen["difference"] < 1e-5  # float32


def test_one_shot_without_an_epoch_limit_cuts_and_stops(data, base, tmp_path):
    command = [data, *TINY, *RUN, *stage_options(base), "--save-dir", tmp_path]
    for _ in range(2):  # a second time finds its work done
        with pytest.raises(SystemExit) as stop:
            run_training(command)
        assert stop.value.code == 0
    state, dense = weights(tmp_path), torch.load(base)["model"]
    assert parameters(state) < 0.45 * parameters(dense)
    ids = state["encoder.embedding.channel_ids"].long()
    name = "encoder.embed_tokens.weight"
    assert torch.equal(state[name], dense[name][:, ids])  # nothing was trained
    assert os.path.exists(tmp_path / "checkpoint_best.pt")


def test_one_shot_is_not_validated_where_nothing_is(data, base, tmp_path, monkeypatch):
    monkeypatch.setattr("fairseq_cli.train.validate", lambda *_: pytest.fail("validated"))
    command = [data, *TINY, *RUN, *stage_options(base), "--disable-validation"]
    with pytest.raises(SystemExit) as stop:
        run_training([*command, "--save-dir", tmp_path])
    assert stop.value.code == 0
    assert parameters(weights(tmp_path)) < 0.45 * parameters(torch.load(base)["model"])


@pytest.mark.parametrize(
    "options, updates",
    [({"warming_up": 1}, 1), ({"pruning_iter": 2}, 1), ({"pruning_iter": 2, "warming_up": 1}, 2)],
)
def test_one_shot_without_an_epoch_limit_makes_its_last_cut(data, base, tmp_path, options, updates):
    """After warming up, and after recovery between iterations (epochs of updates)."""
    command = [data, *TINY, *RUN, *stage_options(base, **options), "--save-dir", tmp_path]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            run_training(command)
        assert stop.value.code == 0
    state = torch.load(tmp_path / "checkpoint_last.pt")
    small = 0.4 * parameters(torch.load(base)["model"])
    assert parameters(state["model"]) == pytest.approx(small, rel=0.01)
    assert state["extra_state"]["train_iterator"]["epoch"] == updates + 1
    with open(tmp_path / "results.csv", newline="") as stream:
        assert float(list(csv.DictReader(stream))[-1]["rate"]) == pytest.approx(0.4, rel=0.01)


def test_one_shot_then_finetuning_in_iterations(data, base, tmp_path):
    trainer = run_training(
        [data, *TINY, *RUN, *stage_options(base, pruning_iter=2, period=1)]
        + ["--save-dir", tmp_path, "--max-epoch", "2"]
    )
    assert stage_of(trainer).done
    with open(tmp_path / "results.csv", newline="") as stream:
        rates = [float(row["rate"]) for row in csv.DictReader(stream)]
    assert rates[0] == pytest.approx(0.4**0.5, rel=0.02)
    assert rates[1] == pytest.approx(0.4, rel=0.02)


def test_shrinking_in_iterations(data, base, tmp_path):
    trainer = run_training(
        [data, *TINY, *RUN, *stage_options(base, srp=True, pruning_iter=2)]
        + ["--save-dir", tmp_path]
    )
    assert stage_of(trainer).finished_iterations == 2
    assert parameters(weights(tmp_path)) == pytest.approx(
        0.4 * parameters(torch.load(base)["model"]), rel=0.01
    )


def test_best_checkpoint_is_cut_although_earlier_epochs_were_better(data, base, tmp_path):
    run_training(
        [data, *TINY, *RUN, *stage_options(base, srp=True, period=2, warming_up=1)]
        + ["--save-dir", tmp_path, "--lr", "1e-6", "--patience", "1"]
    )
    with open(tmp_path / "results.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    losses = [float(r["valid_loss"]) for r in rows]
    assert losses[-1] > min(losses)  # cutting without training made it worse
    best = weights(tmp_path, "checkpoint_best.pt")
    assert parameters(best) == int(rows[-1]["parameters"]) < int(rows[0]["parameters"])


def test_shrinking_is_no_plateau(data, base, tmp_path):
    """While channels shrink the loss rises, and the learning rate stays."""
    trainer = run_training(
        [data, *TINY, *RUN, *stage_options(base, srp=True, period=3)]
        + ["--save-dir", tmp_path, "--lr", "1e-6", "--max-epoch", "3"]
        + ["--lr-scheduler", "reduce_lr_on_plateau"]
    )
    with open(tmp_path / "results.csv", newline="") as stream:
        losses = [float(row["valid_loss"]) for row in csv.DictReader(stream)]
    assert losses[0] < losses[1] < losses[2]
    assert trainer.get_lr() == pytest.approx(1e-6)
    # from the cut on it is what it is elsewhere
    trainer.lr_step(4, losses[2] + 1)
    assert trainer.get_lr() == pytest.approx(1e-7)


def test_no_half_shrunk_model_is_kept_as_best(data, base, tmp_path):
    run_training(
        [data, *TINY, *RUN, *stage_options(base, srp=True, period=2, warming_up=1)]
        + ["--save-dir", tmp_path, "--keep-best-checkpoints", "2", "--max-epoch", "4"]
        + ["--lr", "1e-6"]
    )
    kept = [torch.load(path)["model"] for path in tmp_path.glob("checkpoint.best_loss*")]
    small = parameters(weights(tmp_path))
    assert kept and {parameters(state) for state in kept} == {small}


def test_the_cut_model_is_validated_whatever_the_interval(data, base, tmp_path):
    """Or what is kept as the best would be a half-shrunk model."""
    run_training(
        [data, *TINY, *RUN, *stage_options(base, srp=True, period=3)]
        + ["--save-dir", tmp_path, "--validate-interval", "2", "--max-epoch", "5"]
    )
    with open(tmp_path / "results.csv", newline="") as stream:
        rows = [row["num_updates"] for row in csv.DictReader(stream)]
    assert rows == ["8", "12", "16"]  # epochs of four
    best = weights(tmp_path, "checkpoint_best.pt")
    assert parameters(best) == parameters(weights(tmp_path))


def test_no_rate_ends_the_training_ahead_of_the_cut(data, base, tmp_path):
    """Nor where it is gone on with; after the cut one does."""

    def killed_in_third_epoch(trainer, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        begin(trainer, epoch)

    command = [data, *TINY, *RUN, *stage_options(base, srp=True, period=3), "--max-epoch", "5"]
    command += ["--save-dir", tmp_path, "--lr", "1e-6", "--stop-min-lr", "1e-5"]
    begin = SRPTrainer.begin_epoch
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SRPTrainer, "begin_epoch", killed_in_third_epoch)
        run_training(command)
    trainer = run_training(command)
    assert stage_of(trainer).done
    assert trainer.get_num_updates() == 12


def test_two_runs_in_one_process_do_not_share_their_best(data, base, tmp_path):
    for name, lr in (("good", "1e-3"), ("bad", "1e-9")):
        run_training(
            [data, *TINY, *RUN, "--pretrained-model", base, "--lr", lr]
            + ["--max-epoch", "1", "--save-dir", tmp_path / name]
        )
        assert os.path.exists(tmp_path / name / "checkpoint_best.pt")


@pytest.fixture(scope="module")
def cut_weighted(data, base, tmp_path_factory):
    """Folder of a stage with --weighted-layernorm."""
    folder = tmp_path_factory.mktemp("weighted")
    options = stage_options(base, srp=True, stage=1, weighted_layernorm=True)
    run_training([data, *TINY, *RUN, *options, "--save-dir", folder])
    return folder


@pytest.mark.parametrize("how", ["--finetune-from-model", "--restore-file", "resume"])
def test_layer_normalization_of_a_cut_model_is_kept(data, base, cut_weighted, tmp_path, how):
    """The option is forgotten; the first validation is of the same function."""
    last = str(cut_weighted / "checkpoint_last.pt")
    command = [data, *TINY, *RUN, "--lr", "1e-9", "--weight-decay", "0", "--dropout", "0"]
    if how == "resume":
        (tmp_path / "checkpoint_last.pt").write_bytes(open(last, "rb").read())
        command += stage_options(base, srp=True, stage=1)
    else:
        command += [how, last]
    trainer = run_training([*command, "--max-epoch", "2", "--save-dir", tmp_path])
    model = trainer.get_model()
    norms = [m for m in model.modules() if isinstance(m, WeightedLayerNorm)]
    assert norms and all(norm.weighted for norm in norms)
    assert model.cfg.weighted_layernorm
    saved = torch.load(tmp_path / "checkpoint_last.pt")["cfg"]["model"]
    assert saved.weighted_layernorm
    losses = []
    for folder in (cut_weighted, tmp_path):
        with open(folder / "results.csv", newline="") as stream:
            losses.append(float(list(csv.DictReader(stream))[-1]["valid_loss"]))
    assert losses[1] == pytest.approx(losses[0], abs=0.002)  # fairseq rounds it


@pytest.mark.parametrize("side", [None, "encoder", "decoder"])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("written", [False, True])
def test_which_layer_normalization_a_checkpoint_gives(side, asked, written, caplog):
    """A cut model its own; an uncut one computes the same with either."""
    model = build(weighted_layernorm=written)
    if side:
        cut(model, {f"{side}.embedding": torch.arange(8)})
    options = Namespace(arch="srp", encoder_embed_dim=16, weighted_layernorm=written)
    given = Namespace(weighted_layernorm=asked)
    state = {"cfg": {"model": options}, "model": model.state_dict()}
    inherit_layernorm(given, state, "cut.pt")
    assert given.weighted_layernorm == (written if side else asked or written)
    warned = "--weighted-layernorm: cut.pt was cut without it" in caplog.text
    assert warned == (side is not None and asked and not written)


def test_a_criterion_with_one_loss(data, base, tmp_path):
    run = [o for o in RUN if o not in ("--label-smoothing", "0.1")]
    run[run.index("srp")] = "cross_entropy"
    options = ["--pretrained-model", base, "--max-epoch", "1", "--save-dir", tmp_path]
    run_training([data, *TINY, *run, *options])
    with open(tmp_path / "results.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["valid_nll_loss"]) == float(row["valid_loss"]) > 0
    assert os.path.exists(tmp_path / "checkpoint_last.pt")


def test_distilled_attention_does_not_outlive_a_cut(data, base, tmp_path):
    """Its graph knows the weights in their old sizes, and nothing validates in between."""
    trainer = run_training(
        [data, *TINY, *RUN, *stage_options(base, srp=True, pruning_iter=2, period=1)]
        + ["--attn-kd", "1", "--disable-validation", "--max-epoch", "3"]
        + ["--save-dir", tmp_path]
    )
    assert stage_of(trainer).finished_iterations == 2


def test_results_are_of_the_first_validation_set(data, base, tmp_path):
    rows = []
    for name, subsets in (("one", "valid"), ("two", "valid,test")):
        run_training(
            [data, *TINY, *RUN, "--pretrained-model", base, "--max-epoch", "2"]
            + ["--valid-subset", subsets, "--save-dir", tmp_path / name]
        )
        with open(tmp_path / name / "results.csv", newline="") as stream:
            rows.append(list(csv.DictReader(stream)))
    assert len(rows[0]) == 2 and rows[0] == rows[1]


def test_skipped_batches_are_not_counted(data, base, tmp_path):
    """Shrinking ends with the last update of its epochs, not with a jump."""
    steps = []

    class Steps(SRPTrainer):
        def train_step(self, samples, raise_oom=False):
            output = super().train_step(samples, raise_oom)
            steps.append((stage_of(self).step, stage_of(self).steps))
            return output

    options = stage_options(base, srp=True, period=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.trainer.SRPTrainer", Steps)
        run_training(
            [data, *TINY, *RUN, *options, "--skip-remainder-batch", "--save-dir", tmp_path]
        )
    assert steps[-2] == (len(steps) - 1, len(steps))


@pytest.mark.parametrize("skipped", [{1}, {3}, {0, 1, 2, 3}])
def test_skipped_updates_do_not_delay_the_cut(data, base, tmp_path, monkeypatch, skipped):
    """Overflows of half precision, of which an epoch of 4 updates loses some."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # fairseq's 0 for a norm
    batches = []

    class Overflowing(SRPTrainer):
        def clip_grad_norm(self, clip_norm):
            batches.append(None)
            if len(batches) - 1 in skipped:
                raise OverflowError("too large")
            return super().clip_grad_norm(clip_norm)

    monkeypatch.setattr("src.trainer.SRPTrainer", Overflowing)
    options = stage_options(base, srp=True)
    trainer = run_training([data, *TINY, *RUN, *options, "--save-dir", tmp_path])
    assert stage_of(trainer).done and len(batches) == 4
    assert trainer.get_num_updates() == 4 - len(skipped)
    small = 0.4 * parameters(torch.load(base)["model"])
    assert parameters(weights(tmp_path)) == pytest.approx(small, rel=0.01)


def test_distillation_uses_the_unpruned_teacher(data, base, tmp_path):
    trainer = run_training(
        [data, *TINY, *RUN, *stage_options(base, srp=True), "--save-dir", tmp_path]
        + ["--prob-kd", "1", "--attn-kd", "1", "--T", "2"]
    )
    teacher = trainer.task.teacher(torch.device("cpu"))
    dense = torch.load(base)["model"]
    assert all(torch.equal(v, dense[k]) for k, v in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    student = sum(p.numel() for p in trainer.get_model().parameters())
    assert student < sum(p.numel() for p in teacher.parameters())


@pytest.mark.parametrize("kd", ["--prob-kd", "--attn-kd"])
def test_distillation_changes_training(data, base, tmp_path, kd):
    results = []
    for weight in ("0", "5"):
        folder = tmp_path / weight
        run_training(
            [data, *TINY, *RUN, "--pretrained-model", base, "--max-epoch", "1"]
            + [kd, weight, "--save-dir", folder]
        )
        results.append(weights(folder)["decoder.layers.1.encoder_attn.q_proj.weight"])
    assert not torch.equal(*results)


def test_plain_transformer_checkpoint_is_accepted(data, tmp_path):
    theirs = list(TINY)
    theirs[1] = "transformer"
    run = [o if o != "SRPtranslation" else "translation" for o in RUN]
    drop = {"--scoring-batches", "--scoring-tokens"}
    run = [o for i, o in enumerate(run) if o not in drop and run[i - 1] not in drop]
    for ours, stock in (("srp_adam", "adam"), ("srp", "label_smoothed_cross_entropy")):
        run[run.index(ours)] = stock
    run_training([data, *theirs, *run, "--max-epoch", "1", "--save-dir", tmp_path / "t"])
    plain = str(tmp_path / "t" / "checkpoint_last.pt")
    trainer = run_training(
        [data, *TINY, *RUN, *stage_options(plain, srp=True), "--save-dir", tmp_path / "s"]
    )
    assert stage_of(trainer).done
    assert parameters(weights(tmp_path / "s")) < 0.45 * parameters(weights(tmp_path / "t"))


def test_registered_parts_work_with_fairseqs_own_task(data, tmp_path):
    drop = {"--scoring-batches", "--scoring-tokens"}
    run = [o for i, o in enumerate(RUN) if o not in drop and RUN[i - 1] not in drop]
    run[run.index("SRPtranslation")] = "translation"
    trainer = run_training([data, *TINY, *run, "--max-epoch", "1", "--save-dir", tmp_path])
    assert type(trainer.task).__name__ == "TranslationTask"
    assert os.path.exists(tmp_path / "checkpoint_last.pt")


def test_scoring_leaves_out_sentences_that_the_model_cannot_take(data, base):
    trainer = run_training(
        [data, *TINY, *RUN, "--pretrained-model", base, "--max-update", "1", "--no-save"]
        + ["--scoring-batches", "1000"]
    )
    task = trainer.task
    every = [i for s in scoring_samples(task, "train", 1) for i in s["id"].tolist()]
    short = [i for s in scoring_samples(task, "train", 1, (8, 8)) for i in s["id"].tolist()]
    assert len(every) == 60 and 0 < len(short) < 60
    sizes = {i: task.dataset("train").size(i) for i in every}
    assert set(short) == {i for i in every if max(sizes[i]) <= 8}


@pytest.mark.parametrize("name", ["connectivity", "fisher"])
def test_importance_is_deterministic_and_follows_its_definition(data, base, name):
    """Against finite differences of the loss over the very same batches."""
    trainer = run_training(
        [data, *TINY, *RUN, "--pretrained-model", base, "--max-update", "1", "--no-save"]
    )
    trainer.task.cfg.importance = name
    task, model, criterion = trainer.task, trainer.get_model().double(), trainer.criterion
    device = torch.device("cpu")
    scores = score_model(task, model, criterion, "train", 1, device)
    again = score_model(task, model, criterion, "train", 1, device)
    assert all(torch.equal(scores[n], again[n]) for n in scores)
    other = score_model(task, model, criterion, "train", 2, device)
    assert any(not torch.equal(scores[n], other[n]) for n in scores)

    model.eval()
    samples = list(scoring_samples(task, "train", 1))
    assert len(samples) == 6 and all(s["ntokens"] <= 52 for s in samples)
    for group_name in (
        "encoder.embedding",
        "decoder.layers.0.ffn",
        "decoder.layers.1.encoder_attn.vo",
    ):
        group = channel_groups(model)[group_name]
        channel = 2
        slopes = []
        for sample in samples:
            losses = []
            for delta in (1e-5, -1e-5):
                c = torch.ones(group.width, dtype=torch.float64)
                c[channel] += delta
                group.set_connectivity(c)
                with torch.no_grad():
                    losses.append(criterion(model, sample)[0].item())
            slopes.append((losses[0] - losses[1]) / 2e-5)
        group.set_connectivity(torch.ones(group.width, dtype=torch.float64))
        expected = -sum(slopes) if name == "connectivity" else sum(s * s for s in slopes)
        assert scores[group_name][channel].item() == pytest.approx(expected, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [1.0, 1 - 1e-9, 0.9999, 0.5, 0.0])
def test_shrinking_channels_is_setting_their_connectivity(value, dtype):
    """What a type rounds to 1 gates nothing, as after a checkpoint is loaded."""
    group = ChannelGroup("ffn", 6).to(dtype)
    group.shrink(torch.tensor([1, 4]), value)
    found, gated = group.connectivity.clone(), group.gated
    group.refresh()
    assert gated == group.gated == (torch.tensor(value, dtype=dtype) != 1)
    expected = torch.tensor([1, value, 1, 1, value, 1], dtype=dtype)
    assert torch.equal(found, expected)
