"""The benchmarks' own logic: what they compare, and what they refuse; nothing is timed."""

import argparse
import contextlib
import importlib
import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.support.pretended_gpu import pretended_gpu
from tests.support.training import ROOT

sys.path[:0] = [str(ROOT / "benchmarks")]

import common  # noqa: E402
import importance  # noqa: E402
import translation_speed  # noqa: E402

from src.errors import UserError, ending_program


class Task:
    """A task with as many batches as are asked for."""

    def __init__(self):
        self.cfg = SimpleNamespace(scoring_batches=3, scoring_tokens=8)


def test_samples_have_no_common_sentences(monkeypatch):
    from src.connectivity import budget, selection
    from src.training import channel_scores

    def scoring_samples(task, split, seed, limits=None):
        assert (split, seed) == ("train", 1)
        yield from range(task.cfg.scoring_batches)

    monkeypatch.setattr(channel_scores, "scoring_samples", scoring_samples)
    monkeypatch.setattr(channel_scores, "score_model", lambda *_, samples: samples)
    monkeypatch.setattr(budget, "plan_widths", lambda *_: None)
    monkeypatch.setattr(selection, "select", lambda model, scores, plan: scores)
    task = Task()
    found = [importance.selected(None, task, None, 0.5, 2, sample) for sample in (0, 1)]
    assert found == [[0, 1, 2], [3, 4, 5]] and task.cfg.scoring_batches == 3
    assert importance.batches_in(task, 6, 8) == 6


def test_conditions_say_how_fast_products_are():
    """In each library; the ratios of most benchmarks depend on it."""
    rates = common.product_rates(rounds=1)
    assert {"GFLOP/s PyTorch float32", "GFLOP/s bfloat16"} <= set(rates)
    assert all(float(rate) > 0 for both in rates.values() for rate in both.split("/"))
    assert set(rates) <= set(common.machine())


def test_names_of_checkpoints():
    """However they are given, and with the folder that tells them apart."""
    root = str(ROOT)
    paths = [f"{root}/a/base/best.pt", "a/cut/best.pt"]
    cases = (
        (paths, root, ["base/best.pt", "cut/best.pt"]),
        (paths[1:], root, ["cut/best.pt"]),
        (["a/cut/best.pt", "a/cut/last.pt"], root, ["cut/best.pt", "cut/last.pt"]),
    )
    for given, folder, expected in cases:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert list(translation_speed.short_names(given).values()) == expected


def test_damaged_files_are_judged_by_what_readers_make_of_them(tmp_path):
    from damage.kind import attempt, digest, outcome

    held = {"weights": [torch.ones(3), torch.zeros(2, dtype=torch.int8)], "note": "é"}
    path = str(tmp_path / "file")

    def refuse(path, room=0):
        torch.ones(room // 4)
        raise UserError(f"{path}: is damaged\nhere")

    readers = {
        "same": lambda path: held,
        "other": lambda path: {**held, "note": "e"},
        "refused": refuse,
        "memory": lambda path: refuse(path, 300 * 2**20),
        "traceback": lambda path: {}["none"],
        "crash": lambda path: os.kill(os.getpid(), signal.SIGKILL),
    }
    for expected, read in readers.items():
        assert outcome(attempt(read, path), digest(held), size=100) == expected
    assert attempt(refuse, path)["refused"] == f"{path}: is damaged here"
    assert digest(held) != digest({**held, "weights": [-torch.ones(3), held["weights"][1]]})


@pytest.mark.parametrize(
    "script, options, message",
    [
        ("adapters", "--rounds 1", "--rounds 1: must be at least 2"),
        ("adapters", "--shapes 64", "--shapes 64: must be INPUTSxOUTPUTS, as 512x2048"),
        ("checkpoint_shapes", "mbert", "SHAPE mbert: must be one of"),
        ("compression_rates", "--rates 0.5,2", "--rates 2: must be between 0 and 1"),
        ("compression_speed", "--rates half", "--rates half: is no number"),
        ("compression_speed", "--depths 3+4", "--depths 3+4: must be as 3+1, at most 3+3"),
        ("compression_speed", "--depths 3", "--depths 3: must be as 3+1, at most 3+3"),
        ("compression_speed", "--batch-size 0", "--batch-size 0: must be at least 1"),
        ("damaged_files", "sparce", "KIND sparce: must be one of"),
        ("damaged_files", "--files 0", "--files 0: must be at least 1"),
        ("importance", "d --path p --rates 0.5", "--rates 0.5: must be STAGE:RATE"),
        ("importance", "d --path p --samples 3", "--samples 3: must be BATCHESxTOKENS"),
        ("importance", "d --path p", "--path p: no such checkpoint"),
        ("kills", "--kills 3", "--kills 3: must be at least 4"),
        ("kills", "width", "KIND width: must be one of"),
        ("optimizer_time", "--rounds 1", "--rounds 1: must be at least 2"),
        ("precision", "--seeds 1", "--seeds 1: must be at least 2"),
        ("precision", "--data no", "--data no: no such folder"),
        ("sparse_files", "--size 1", "--size 1: must be at least 10"),
        ("sparse_layers", "--rounds 0", "--rounds 0: must be at least 2"),
        ("step_time", "--tokens 9", "--tokens 9: must be at least 25"),
        ("step_time", "--precisions bf16", "--precisions bf16: needs --device cuda; leave it"),
        ("training_memory", "d --updates 0", "--updates 0: must be at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_timed(script, options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *options.split()])
    with pytest.raises(SystemExit) as stop, ending_program():
        importlib.import_module(script).main()
    assert stop.value.code == 2 and f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script", sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"common"})
)
def test_help_says_what_options_are_and_their_defaults(script, monkeypatch, capsys):
    """Of every option; the default of one that has none is said to be something else."""
    parsers = []

    def parse_args(parser, *_):
        parsers.append(parser)
        parser.exit()

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(SystemExit), ending_program():
        importlib.import_module(script).main()
    monkeypatch.undo()
    formatter = parsers[0]._get_formatter()
    for action in parsers[0]._actions:
        told = formatter._expand_help(action) if action.help else ""
        assert told, action.option_strings
        if action.default not in (None, "", False, argparse.SUPPRESS):
            assert f"default: {action.default}" in told, action.option_strings


def run_on_gpu(script, options, monkeypatch, capsys):
    """Rows of a benchmark's table, by a real GPU or a pretended one."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--device", "cuda", *map(str, options)])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    real = torch.cuda.is_available()
    with contextlib.nullcontext() if real else pretended_gpu(monkeypatch):
        importlib.import_module(script).main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


@pytest.mark.filterwarnings("ignore")  # torch's of CUDA calls that fairseq makes
def test_training_steps_on_a_gpu(monkeypatch, capsys):
    step_time = importlib.import_module("step_time")
    monkeypatch.setitem(step_time.SHAPES, "multi30k", (16, 24, 2, 1))
    options = ["--rounds", "2", "--tokens", "50", "--precisions", "float32,fp16"]
    rows = run_on_gpu("step_time", options, monkeypatch, capsys)
    variants = ["fairseq transformer", "SRP dense", "SRP shrinking"]
    expected = [[p, v] for p in ("float32", "fp16") for v in variants]
    assert [row[:2] for row in rows] == expected
    assert all(float(row[3]) == 1 for row in rows[::3])  # each beside its own precision
    assert float(rows[0][5]) == 1 and all(float(row[5]) > 0 for row in rows)

    rows = run_on_gpu("optimizer_time", ["--rounds", "2"], monkeypatch, capsys)
    assert [row[1] for row in rows] == ["fairseq adam", "srp_adam", "srp_adam, masking"] * 2


@pytest.mark.filterwarnings("ignore")
def test_translation_on_a_gpu(data, base, monkeypatch, capsys):
    engines = ["--engines", "pytorch,pytorch-fp16,fairseq-search", "--rounds", "2"]
    options = [data, base, "--sentences", "2", *engines]
    rows = run_on_gpu("translation_speed", options, monkeypatch, capsys)
    names = ["fairseq", "fairseq-fp16", "pytorch", "pytorch-fp16", "fairseq-search"]
    assert [row[2] for row in rows] == names
    exact = [row[6] for row in rows if row[2] != "fairseq-fp16" and row[2] != "pytorch-fp16"]
    assert exact == ["100.0%"] * 3

    compression_speed = importlib.import_module("compression_speed")
    monkeypatch.setitem(compression_speed.SHAPES, "srp_multi30k_de_en", (16, 24, 2, 2, 60, 60))
    options = [
        "--rates",
        "0.5",
        "--depths",
        "2+2,2+1",
        "--sentences",
        "4",
        "--length",
        "5",
        *engines,
    ]
    rows = run_on_gpu("compression_speed", options, monkeypatch, capsys)
    assert [row[:3] for row in rows] == [
        ["fairseq transformer", "2+2", "1"],
        *(
            [name, layers, rate]
            for name in names[2:]
            for layers in ("2+2", "2+1")
            for rate in ("1", "0.5")
        ),
    ]


@pytest.mark.parametrize(
    "script, options, message",
    [
        ("step_time", "", "--device cuda: PyTorch finds no GPU; leave it out"),
        ("compression_speed", "", "--device cuda: PyTorch finds no GPU; leave it out"),
        ("step_time", "--precisions fp8", "--precisions fp8: must be of float32, fp16"),
        (
            "compression_speed",
            "--engines ctranslate2-int8",
            "--engines ctranslate2-int8: on cuda must be of pytorch, pytorch-fp16",
        ),
    ],
)
def test_refusals_on_a_gpu(script, options, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(options))
    monkeypatch.setattr(sys, "argv", [script, "--device", "cuda", *options.split()])
    with pytest.raises(SystemExit) as stop, ending_program():
        importlib.import_module(script).main()
    assert stop.value.code == 2 and f"error: {message}" in capsys.readouterr().err
