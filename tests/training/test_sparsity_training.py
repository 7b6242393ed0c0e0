"""Weight-level pruning inside fairseq's training, --sparsity-config."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from fairseq.optim.fp16_optimizer import FP16Optimizer

from src.checkpoints.averaging import average_checkpoints
from src.errors import UserError
from src.training.weight_pruning import WeightPruning
from tests.support.runs import SCRIPT, assert_identical, final_state, in_precision, stop_at
from tests.support.training import ROOT, RUN, TINY, run_training, weights_of

LSTM = [
    *("--arch", "lstm", "--encoder-embed-dim", "16", "--encoder-hidden-size", "16"),
    *("--decoder-embed-dim", "16", "--decoder-hidden-size", "16"),
    *("--decoder-out-embed-dim", "16"),
]
CONFIG = """
version: 1.0
model: {name: "tiny", framework: "pytorch"}
pruning:
  approach:
    weight_compression_pytorch:
      start_step: 3
      end_step: END
      target_sparsity: 0.6
      not_to_prune_names: ["output_projection"]
      pruners:
        - !Pruner
            pattern: "PATTERN"
            update_frequency_on_step: 4
            prune_type: "TYPE"
            sparsity_decay_type: "exp"
"""


def write_config(folder, end=14, pattern="4x1", kind="snip_momentum", text=CONFIG):
    path = folder / "sparsity.yaml"
    text = text.replace("END", str(end)).replace("PATTERN", pattern)
    path.write_text(text.replace("TYPE", kind))
    return path


def command(data, folder, config, arch=TINY, **options):
    given = {"max-epoch": 4, "save-dir": folder, "sparsity-config": config, **options}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [data, *arch, *RUN, *flags]


@pytest.mark.parametrize("arch", [TINY, ["--arch", "transformer", *TINY[2:]], LSTM])
def test_any_model_reaches_its_target_and_keeps_its_zeros(data, tmp_path, arch):
    config = write_config(tmp_path)
    trainer = run_training(command(data, tmp_path, config, arch))
    pruning = weights_of(trainer).pruning
    owned = removed = 0
    parameters = dict(trainer.get_model().named_parameters())
    assert len(pruning.masks) >= 3
    for name, mask in pruning.masks.items():
        assert (parameters[name][~mask] == 0).all()
        for value in trainer.optimizer.optimizer.state[parameters[name]].values():
            if value.shape == mask.shape:
                assert (value[~mask] == 0).all()
        owned, removed = owned + mask.numel(), removed + int((~mask).sum())
    assert abs(removed - 0.6 * owned) <= 4
    assert trainer.get_num_updates() == pruning.step == 16
    saved = torch.load(tmp_path / "checkpoint_last.pt")["model"]
    assert all((saved[n][~m] == 0).all() for n, m in pruning.masks.items())
    # the weights that are left have gone on learning since the last prune
    assert all((parameters[n][m] != 0).float().mean() > 0.9 for n, m in pruning.masks.items())
    second, last = (str(tmp_path / f"checkpoint{n}.pt") for n in (2, "_last"))
    for inputs in ([second, last], [last, second]):
        with pytest.raises(UserError, match=f"{last}: weights of .* were removed there"):
            average_checkpoints(inputs)
    mean = average_checkpoints([last, last])["model"]
    assert all((mean[n][~m] == 0).all() for n, m in pruning.masks.items())


@pytest.mark.parametrize("kind, stop", [("snip_momentum", 2), ("random", 9)])
def test_stopped_run_resumes_bit_identically(data, tmp_path, monkeypatch, kind, stop):
    config = write_config(tmp_path, kind=kind)
    options = {"save-interval-updates": 2, "keep-interval-updates": 1, "clip-norm": 1.0}
    run_training(command(data, tmp_path / "whole", config, **options))
    again = command(data, tmp_path / "parts", config, **options)
    stop_at(stop, again, monkeypatch)
    run_training(again)
    assert_identical(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


@pytest.mark.parametrize("stop", [None, 14, 22])
def test_best_is_of_a_model_that_is_pruned_to_the_end(data, tmp_path, monkeypatch, stop):
    """Also where the unpruned one was better, and the run was stopped on the way."""
    text = CONFIG.replace("start_step: 3", "start_step: 13").replace("0.6", "0.95")
    config = write_config(tmp_path, 13, kind="random", text=text)
    arguments = command(data, tmp_path, config, **{"max-epoch": 7, "lr": 0.05})
    if stop is not None:
        stop_at(stop, arguments, monkeypatch)
    run_training(arguments)
    rows = pd.read_csv(tmp_path / "results.csv").set_index("num_updates")
    losses = rows["valid_loss"].groupby(level=0).last()
    expected = losses.loc[16:].idxmin()
    assert losses.idxmin() < 13 and expected < 22 < losses.index[-1]
    best = torch.load(tmp_path / "checkpoint_best.pt")
    assert best["optimizer_history"][-1]["num_updates"] == expected


def test_a_dense_run_before_is_not_counted(data, tmp_path):
    """Steps begin with the configuration, in a folder with an earlier run too."""
    config, folder = write_config(tmp_path), tmp_path / "run"
    run_training([data, *TINY, *RUN, "--max-epoch", "3", "--save-dir", folder])
    for limit, value, left in (("max-epoch", 5, 8), ("max-update", 22, 10)):
        with pytest.raises(UserError, match=f"after {left}; train longer or lower end"):
            options = {"max-epoch": 9, limit: value}
            run_training(command(data, folder, config, **options))
    trainer = run_training(command(data, folder, config, **{"max-epoch": 6}))
    pruning = weights_of(trainer)
    assert (trainer.get_num_updates(), pruning.steps, pruning.unfinished) == (24, 12, False)


def test_masks_go_on_with_the_optimizer(data, tmp_path):
    config = write_config(tmp_path)
    before = weights_of(run_training(command(data, tmp_path, config)))
    arguments = [*command(data, tmp_path, config), "--reset-dataloader"]
    trainer = run_training(arguments)
    pruning = weights_of(trainer)
    assert pruning.steps == trainer.get_num_updates() == 32
    parameters = dict(trainer.get_model().named_parameters())
    for name, mask in pruning.pruning.masks.items():
        assert torch.equal(mask, before.pruning.masks[name])
        assert (parameters[name][~mask] == 0).all()
    # a new optimizer is a new run
    arguments += ["--reset-optimizer", "--reset-lr-scheduler", "--reset-meters"]
    assert weights_of(run_training(arguments)).steps == 16


def test_accumulated_batches_are_one_step(data, tmp_path, monkeypatch):
    config = write_config(tmp_path, end=6)
    options = {"update-freq": 2, "save-interval-updates": 1, "keep-interval-updates": 1}
    arguments = command(data, tmp_path, config, **options)
    stop_at(1, arguments, monkeypatch)  # within the first epoch
    trainer = run_training(arguments)
    assert weights_of(trainer).steps == trainer.get_num_updates() == 8


def test_two_processes_hold_the_same_masks(data, tmp_path):
    """Also where each drops layers of its own."""
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    launcher = [sys.executable, str(ROOT / "scripts" / "cpu_distributed.py")]
    launcher += ["--processes", "2", str(script)]
    config = write_config(tmp_path)
    arguments = command(data, tmp_path / "two", config, **{"encoder-layerdrop": 0.4})
    arguments[arguments.index("--max-tokens") + 1] = "100"
    done = subprocess.run(
        launcher + arguments,
        env={**os.environ, "WEIGHTS": str(tmp_path / "rank")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}") for rank in "01")
    assert all(torch.equal(first[name], second[name]) for name in first)
    zeros = sum(int((value == 0).sum()) for value in first.values() if value.dim() == 2)
    assert zeros > 1000


def test_float32_copies_lose_the_weights_too(data, tmp_path):
    config = write_config(tmp_path)
    trainer = run_training(command(data, tmp_path, config), main=in_precision("bf16"))
    assert isinstance(trainer.optimizer, FP16Optimizer)
    pruning = weights_of(trainer).pruning
    names = {id(p): n for n, p in trainer.get_model().named_parameters()}
    copies = zip(trainer.optimizer.fp16_params, trainer.optimizer.fp32_params)
    found = 0
    for parameter, copy in copies:
        mask = pruning.masks.get(names[id(parameter)])
        if mask is not None:
            found += 1
            assert (copy[~mask] == 0).all() and (parameter[~mask] == 0).all()
            moments = trainer.optimizer.optimizer.state[copy]
            assert (moments["exp_avg"][~mask] == 0).all()
    assert found == len(pruning.masks) > 5


def test_scores_are_of_the_true_gradients(data, tmp_path, monkeypatch):
    """Float32 copies get their gradients unscaled: momentum scores agree."""
    seen = []
    original = WeightPruning.after_step

    def after_step(self, trainer, updated):
        if self.steps == 1:
            (pruner,) = self.pruning.pruners
            state = pruner.scores.state
            seen.append({name: value.clone().float() for name, value in state.items()})
        original(self, trainer, updated)

    monkeypatch.setattr(WeightPruning, "after_step", after_step)
    options = {"dropout": 0, "max-update": 14}
    config = write_config(tmp_path)
    run_training(command(data, tmp_path / "float", config, **options))
    run_training(command(data, tmp_path / "half", config, **options), main=in_precision("bf16"))
    exact, half = seen
    for name in exact:
        assert torch.allclose(exact[name].sum(), half[name].sum(), rtol=0.1), name


def test_distils_from_the_dense_model(data, base, tmp_path):
    config = write_config(tmp_path)
    options = {"prob-kd": 1, "teacher-model": base}
    arch = ["--arch", "transformer", *TINY[2:]]
    trainer = run_training(command(data, tmp_path / "a", config, arch, **options))
    assert trainer.task._teacher is not None
    run_training([data, *LSTM, *RUN, "--max-epoch", "1", "--save-dir", tmp_path / "lstm"])
    options["teacher-model"] = tmp_path / "lstm" / "checkpoint_last.pt"
    trainer = run_training(command(data, tmp_path / "b", config, LSTM, **options))
    assert type(trainer.task._teacher).__name__ == "LSTMModel"


def test_validation_tells_the_sparsity(data, tmp_path):
    run_training(command(data, tmp_path, write_config(tmp_path)))
    rows = (tmp_path / "results.csv").read_text().splitlines()
    column = rows[0].split(",").index("sparsity")
    values = [float(row.split(",")[column]) for row in rows[1:]]
    assert values == sorted(values) and 0 < values[0] < values[-1]
    assert abs(values[-1] - 0.6) < 0.01
    # best is chosen among models that are pruned to the end
    best = torch.load(tmp_path / "checkpoint_best.pt")
    assert best["optimizer_history"][-1]["num_updates"] == 16


@pytest.mark.parametrize(
    "options, text, message",
    [
        ({"sparsity-config": "/no/such.yaml"}, CONFIG, "--sparsity-config /no/such.yaml: no"),
        ({"compression-rate": 0.5, "pretrained-model": "x.pt"}, CONFIG, "channels first"),
        ({"adapter": "splora", "pretrained-model": "x.pt"}, CONFIG, "prune first"),
        ({"max-update": 10}, CONFIG, "--max-update 10 ends the training after 10"),
        ({"max-epoch": 2}, CONFIG, "--max-epoch 2 ends the training after 8"),
        (
            {"max-epoch": 3, "save-interval": 2},
            CONFIG,
            "--max-epoch 3, of which --save-interval 2 saves 2, ends the training after 8",
        ),
        (
            {"max-epoch": 4},
            CONFIG.replace("start_step: 3", "start_step: 500"),
            "start_step 500: the last pruning comes after 500 updates with this file, "
            "--max-epoch 4 ends the training after 16",
        ),
        ({"attn-kd": 1, "model": LSTM}, CONFIG, "needs an --arch of this plug-in"),
        ({}, CONFIG.replace("exp", "sqrt"), "sparsity_decay_type"),
        ({}, CONFIG.replace("target_sparsity: 0.6", "target: 0.6"), "target: unknown key"),
        ({}, CONFIG.replace("output_projection", "."), "matches no layer"),
    ],
)
def test_refused_in_one_line(data, tmp_path, capsys, options, text, message):
    config = write_config(tmp_path, end=500 if "500" in text else 14, text=text)
    arch, options = options.get("model", TINY), {**options}
    options.pop("model", None)
    with pytest.raises(UserError) as refusal:
        run_training(command(data, tmp_path / "run", config, arch, **options))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("run/*.pt"))


def test_another_configuration_is_refused_on_resume(data, tmp_path):
    config = write_config(tmp_path)
    run_training(command(data, tmp_path / "run", config))
    longer = {"max-epoch": 6}
    config = write_config(tmp_path, pattern="2:4", text=CONFIG.replace("0.6", "0.5"))
    with pytest.raises(UserError, match="does not fit the run to go on with"):
        run_training(command(data, tmp_path / "run", config, **longer))
    config = write_config(tmp_path, text=CONFIG.replace("0.6", "0.8"))
    with pytest.raises(UserError, match="target_sparsity: 0.8 is more .* end_step 14"):
        run_training(command(data, tmp_path / "run", config, **longer))
    config = write_config(tmp_path, 22, text=CONFIG.replace("0.6", "0.8"))
    trainer = run_training(command(data, tmp_path / "run", config, **longer))
    assert abs(weights_of(trainer).sparsity - 0.8) < 0.01
