"""Training with compiled layers gives what training without gives."""

import csv
import os
import shutil

import pytest
import torch
import torch._dynamo

from src.acceleration import compilation
from tests.support.training import RUN, TINY, run_training

NO_DROPOUT = ["--dropout", "0", "--attention-dropout", "0", "--activation-dropout", "0"]
STAGE = ["--weighted-layernorm", "--srp", "--compression-rate", "0.5", "--pruning-period", "1"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing is compiled yet; graphs run as they are, which takes no C++ compiler."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def compiled_graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def train(data, folder, *options):
    arguments = [data, *TINY, *RUN, *NO_DROPOUT, "--save-dir", folder, *options]
    return run_training(arguments)


def weights(folder):
    return torch.load(os.path.join(folder, "checkpoint_last.pt"))["model"]


def valid_loss(folder):
    with open(folder / "results.csv", newline="") as stream:
        return float(list(csv.DictReader(stream))[-1]["valid_loss"])


def assert_same(one, other):
    """To half a step: Adam makes a large step of the rounding of a gradient that is zero."""
    one, other = weights(one), weights(other)
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--pretrained-model", "BASE", "--attn-kd", "1", "--prob-kd", "1"],
        ["--pretrained-model", "BASE", "--adapter", "splora"],
    ],
    ids=["plain", "distilled", "adapted"],
)
def test_training(data, base, tmp_path, options):
    options = [base if option == "BASE" else option for option in options]
    options += ["--max-update", "3"]
    train(data, tmp_path / "plain", *options)
    assert compiled_graphs() == 0
    train(data, tmp_path / "compiled", *options, "--compile")
    assert compiled_graphs() > 0
    assert_same(tmp_path / "plain", tmp_path / "compiled")


def test_stage_that_cuts_and_trains_on(data, base, tmp_path):
    options = [*STAGE, "--pretrained-model", base, "--max-epoch", "2"]
    train(data, tmp_path / "plain", *options)
    train(data, tmp_path / "compiled", *options, "--compile")
    assert compiled_graphs() > 0
    assert_same(tmp_path / "plain", tmp_path / "compiled")


def test_layers_of_one_shape_share_their_code(data, tmp_path):
    counts = []
    for layers in ("2", "3"):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        options = ["--max-update", "2", "--compile", "--encoder-layers", layers]
        train(data, tmp_path / layers, *options, "--decoder-layers", layers)
        counts.append(compiled_graphs())
    assert counts[0] == counts[1] > 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor(data, tmp_path, monkeypatch):
    options = ["--encoder-layers", "1", "--decoder-layers", "1", "--max-update", "1"]
    train(data, tmp_path / "plain", *options)
    monkeypatch.setattr(compilation, "BACKEND", "inductor")
    train(data, tmp_path / "compiled", *options, "--compile")
    assert compiled_graphs() > 0
    plain, compiled = (valid_loss(tmp_path / name) for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-4)  # as written to three digits


def test_another_model_is_refused(data, tmp_path, capfd):
    with pytest.raises(SystemExit) as failure:
        run_training([data, "--arch", "transformer", *RUN, "--compile", "--save-dir", tmp_path])
    assert failure.value.code == 2
    assert "--compile: needs an --arch of this plug-in" in capfd.readouterr().err
