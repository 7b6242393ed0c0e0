"""The average of checkpoints: the true mean of one model's weights, or a refusal."""
# ruff: noqa: F811  (fixtures are imported)

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from fairseq_cli import generate as fairseq_generate

from src import average_checkpoints as command
from src import checkpoint_utils
from src.checkpoints import averaging, fallback
from src.checkpoints.averaging import average_checkpoints
from src.connectivity.groups import channel_groups
from tests.support.averages import assert_same, average, by_updates, edited, weights
from tests.support.training import RUN, TINY, run_training, stage_of
from tests.support.translation import (
    SEARCH,
    USER_DIR,
    hypotheses,
    quiet_logging,
    run_tool,
    translate,
)


def set_model(change):
    """An edit: every floating tensor becomes ``change(name, tensor)``, ties kept."""

    def edit(state):
        changed = {}
        for name, value in state["model"].items():
            if value.is_floating_point() and not name.endswith(".connectivity"):
                new = changed.setdefault(value.data_ptr(), change(name, value))
                state["model"][name] = new

    return edit


@pytest.mark.parametrize("copies", [1, 3, 7])
def test_copies_of_a_model_average_to_it(pruned, tmp_path, copies):
    for dtype in (torch.float32, torch.float16):
        convert = set_model(lambda name, value, dtype=dtype: value.to(dtype))
        model = edited(pruned / "checkpoint5.pt", tmp_path / "model.pt", convert)
        inputs = [shutil.copy(model, tmp_path / f"{c}.pt") for c in range(copies)]
        state = average(tmp_path / "average.pt", "--inputs", *inputs)
        assert_same(state["model"], weights(model))


def test_equals_the_mean_of_stacked_weights(pruned, tmp_path):
    for numbers in ([4, 5], [3, 4, 5]):
        inputs = [pruned / f"checkpoint{n}.pt" for n in numbers]
        state = average(tmp_path / "average.pt", "--inputs", *inputs)
        states = [weights(path) for path in inputs]
        moved = 0
        for name, mean in state["model"].items():
            stacked = torch.stack([s[name].double() for s in states])
            assert torch.equal(mean, stacked.mean(0).to(mean.dtype)), name
            moved += not torch.equal(mean, states[0][name])
        assert moved > 20


def test_is_the_true_mean_rounded_once(base, tmp_path):
    """Where sums in float32 are far off: numbers of all sizes that cancel."""
    generator = torch.Generator().manual_seed(1)

    def numbers(name, value):
        size = 10.0 ** torch.randint(-6, 7, value.shape, generator=generator)
        return torch.randn(value.shape, generator=generator) * size

    inputs = [edited(base, tmp_path / f"{n}.pt", set_model(numbers)) for n in range(7)]
    mean = average_checkpoints(inputs)["model"]["encoder.embed_tokens.weight"]
    values = torch.stack([weights(p)["encoder.embed_tokens.weight"] for p in inputs])
    expected = [math.fsum(column) / 7 for column in values.flatten(1).t().tolist()]
    expected = torch.from_numpy(np.array(expected, dtype=np.float32)).view_as(mean)
    assert torch.equal(mean, expected)
    assert not torch.equal(values.mean(0), expected)


def test_ties_survive_and_the_file_is_as_small_as_the_weights(pruned, base, tmp_path):
    for path in (base, pruned / "checkpoint5.pt"):
        output = tmp_path / "average.pt"
        model = average(output, "--inputs", path, path)["model"]
        tied = "decoder.embed_tokens.weight", "decoder.output_projection.weight"
        assert model[tied[0]].data_ptr() == model[tied[1]].data_ptr()
        torch.save(torch.load(path)["model"], tmp_path / "weights.pt")
        assert os.path.getsize(output) < (tmp_path / "weights.pt").stat().st_size + 25_000
        assert os.path.getsize(output) < os.path.getsize(path) / 2


def test_one_input_is_in_memory_at_a_time(pruned, monkeypatch):
    """Each input's weights and optimizer state are freed before the next is read."""
    import weakref

    alive = []

    def recorded(path, *args):
        assert not any(tensor() is not None for tensor in alive)
        state = checkpoint_utils.load_checkpoint(path, *args)
        optimizer = state["last_optimizer_state"]["state"]
        alive.extend(weakref.ref(t) for t in state["model"].values())
        alive.extend(weakref.ref(s["exp_avg"]) for s in optimizer.values())
        return state

    monkeypatch.setattr(averaging, "load_checkpoint", recorded)
    average_checkpoints([str(pruned / f"checkpoint{n}.pt") for n in (5, 4, 3)])
    assert len(alive) > 300


# -- selection ----------------------------------------------------------------------


def test_the_last_epochs_and_updates(tmp_path):
    for name in ("9", "10", "11", "_last", "_best", "_average"):
        (tmp_path / f"checkpoint{name}.pt").touch()
    (tmp_path / "checkpoint12.pt.tmp").touch()
    for name in ("2_30", "2_200", "10_1000"):
        (tmp_path / f"checkpoint_{name}.pt").touch()

    def chosen(*args, **kwargs):
        found = command.last_checkpoints(str(tmp_path), *args, **kwargs)
        return [os.path.basename(path)[10:-3] for path in found]

    assert chosen(2, by_updates=False) == ["11", "10"]
    assert chosen(3, by_updates=False) == ["11", "10", "9"]
    assert chosen(2, by_updates=False, upper_bound=10) == ["10", "9"]
    assert chosen(2, by_updates=True) == ["_10_1000", "_2_200"]
    assert chosen(1, by_updates=True, upper_bound=999) == ["_2_200"]


def test_a_folder_is_its_last_checkpoints(pruned, tmp_path, capsys):
    state = average(
        tmp_path / "a.pt", "--inputs", pruned, "--num-epoch-checkpoints", "2",
        "--checkpoint-upper-bound", "4",
    )  # fmt: skip
    line = capsys.readouterr().out.strip()
    names = [str(pruned / f"checkpoint{n}.pt") for n in (4, 3)]
    assert line.count("\n") == 0 and all(n in line for n in names)
    assert_same(state["model"], average(tmp_path / "b.pt", "--inputs", *names)["model"])
    last = by_updates(pruned)[-2:]
    state = average(tmp_path / "a.pt", "--inputs", pruned, "--num-update-checkpoints", "2")
    assert_same(state["model"], average(tmp_path / "b.pt", "--inputs", *last)["model"])


# -- what reads an average ----------------------------------------------------------


def test_the_output_has_the_latest_inputs_options_and_names_all(pruned, tmp_path):
    inputs = [str(pruned / f"checkpoint{n}.pt") for n in (3, 5, 4)]
    state = average(tmp_path / "average.pt", "--inputs", *inputs)
    latest = torch.load(inputs[1])
    updates = [torch.load(p)["optimizer_history"][-1]["num_updates"] for p in inputs]
    assert state["averaged"] == {"inputs": inputs, "num_updates": updates}
    assert state["optimizer_history"][-1]["num_updates"] == max(updates)
    assert state["cfg"] == latest["cfg"]
    assert "last_optimizer_state" not in state
    kept = {"train_iterator", "SRPTranslationTask", "dictionaries"}
    assert set(state["extra_state"]) == kept


def test_generate_and_fairseq_generate_read_it(corpus, checkpoints, tmp_path):
    """The mean of two models as far on either side of a third translates as that one."""

    def shifted(sign):
        generator = torch.Generator().manual_seed(1)
        return set_model(lambda n, t: t + sign * 0.125 * torch.randn(t.shape, generator=generator))

    inputs = [edited(checkpoints.cut, tmp_path / f"{s}.pt", shifted(s)) for s in (-1, 1)]
    output, report = str(tmp_path / "average.pt"), tmp_path / "report.json"
    average(output, "--inputs", *inputs)
    expected = hypotheses(translate(corpus, checkpoints.cut))
    assert hypotheses(translate(corpus, output, "--report", str(report))) == expected
    # its updates are an input's, whose validation report.py would take for its own
    assert json.loads(report.read_text())["num_updates"] is None
    stock = [corpus, "--path", output, *SEARCH, "--remove-bpe", "--user-dir", USER_DIR]
    stock += ["--required-batch-size-multiple", "1"]
    assert hypotheses(run_tool(fairseq_generate.cli_main, stock)) == expected


def test_restoring_it_anew_is_finetuning_from_it(data, pruned, tmp_path):
    """And neither prunes again, or starts in the old run's epochs."""
    output = tmp_path / "average.pt"
    average(output, "--inputs", pruned, "--num-epoch-checkpoints", "3")
    run = [data, *TINY, *RUN, "--max-epoch", "1", "--weighted-layernorm"]
    finetuned = run_training([*run, "--pretrained-model", output, "--save-dir", tmp_path / "f"])
    resets = ["--reset-optimizer", "--reset-lr-scheduler", "--reset-meters"]
    resets.append("--reset-dataloader")
    restored = run_training([*run, "--restore-file", output, *resets, "--save-dir", tmp_path / "r"])
    assert restored.get_num_updates() == finetuned.get_num_updates() > 0
    assert_same(restored.get_model().state_dict(), finetuned.get_model().state_dict())


def test_restored_in_its_own_run_it_goes_on_after_the_cut(data, base, pruned, tmp_path):
    output = tmp_path / "average.pt"
    state = average(output, "--inputs", pruned, "--num-epoch-checkpoints", "2")
    again = run_training(
        [
            *(data, *TINY, *RUN, "--pretrained-model", base, "--save-dir", tmp_path),
            *("--srp", "--compression-rate", "0.5", "--warming-up", "1"),
            *("--max-epoch", "6", "--weighted-layernorm", "--restore-file", output),
        ]
    )
    assert stage_of(again).done
    assert [path.name for path in tmp_path.glob("checkpoint?.pt")] == ["checkpoint6.pt"]
    for name, group in channel_groups(again.get_model()).items():
        assert torch.equal(group.channel_ids, state["model"][f"{name}.channel_ids"])


def test_an_interrupted_write_leaves_the_old_file(pruned, tmp_path, monkeypatch):
    output = tmp_path / "average.pt"
    output.write_text("old")

    def fails(state, stream):
        stream.write(b"new")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"), quiet_logging():
        average(output, "--inputs", pruned / "checkpoint5.pt")
    assert output.read_text() == "old"
    assert os.listdir(tmp_path) == ["average.pt"]


def test_a_damaged_run_does_not_go_on_from_an_average(pruned, tmp_path):
    last, older = tmp_path / "checkpoint_last.pt", tmp_path / "checkpoint1.pt"
    for path in (last, older):
        shutil.copy(pruned / "checkpoint5.pt", path)
    mean = str(tmp_path / "checkpoint_average.pt")
    average(mean, "--inputs", str(older), str(last))
    assert fallback.previous_checkpoint(str(last), str(pruned)) == str(older)
