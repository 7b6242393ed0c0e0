"""The benchmarks' own logic: what they compare, and what they refuse; nothing is timed."""

import argparse
import importlib
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

sys.path[:0] = [str(ROOT / "benchmarks")]

import importance  # noqa: E402
import translation_speed  # noqa: E402


class Task:
    """A task that scores whatever sentences it is given."""

    def __init__(self):
        self.cfg = SimpleNamespace(scoring_batches=3, scoring_tokens=8)

    def scoring_samples(self, split, seed, limits=None):
        assert (split, seed) == ("train", 1)
        yield from range(self.cfg.scoring_batches)

    def score(self, model, criterion, split, seed, device):
        return list(self.scoring_samples(split, seed, None))


def test_samples_have_no_common_sentences(monkeypatch):
    from src.connectivity import budget, selection

    monkeypatch.setattr(budget, "plan_widths", lambda *_: None)
    monkeypatch.setattr(selection, "select", lambda model, scores, plan: scores)
    task = Task()
    found = [importance.selected(None, task, None, 0.5, 2, sample) for sample in (0, 1)]
    assert found == [[0, 1, 2], [3, 4, 5]] and task.cfg.scoring_batches == 3
    assert importance.batches_in(task, 6, 8) == 6


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


@pytest.mark.parametrize(
    "script, options, message",
    [
        ("adapters", "--rounds 1", "--rounds 1: must be at least 2"),
        ("adapters", "--shapes 64", "--shapes 64: must be INPUTSxOUTPUTS, as 512x2048"),
        ("compression_rates", "--rates 0.5,2", "--rates 2: must be between 0 and 1"),
        ("compression_speed", "--rates half", "--rates half: is no number"),
        ("compression_speed", "--batch-size 0", "--batch-size 0: must be at least 1"),
        ("importance", "d --path p --rates 0.5", "--rates 0.5: must be STAGE:RATE"),
        ("importance", "d --path p --samples 3", "--samples 3: must be BATCHESxTOKENS"),
        ("importance", "d --path p", "--path p: no such checkpoint"),
        ("optimizer_time", "--rounds 1", "--rounds 1: must be at least 2"),
        ("precision", "--seeds 1", "--seeds 1: must be at least 2"),
        ("precision", "--data no", "--data no: no such folder"),
        ("sparse_files", "--size 1", "--size 1: must be at least 10"),
        ("sparse_layers", "--rounds 0", "--rounds 0: must be at least 2"),
        ("step_time", "--tokens 9", "--tokens 9: must be at least 25"),
        ("training_memory", "d --updates 0", "--updates 0: must be at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_timed(
    script, options, message, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *options.split()])
    with pytest.raises(SystemExit) as stop:
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
    with pytest.raises(SystemExit):
        importlib.import_module(script).main()
    monkeypatch.undo()
    formatter = parsers[0]._get_formatter()
    for action in parsers[0]._actions:
        told = formatter._expand_help(action) if action.help else ""
        assert told, action.option_strings
        if action.default not in (None, "", False, argparse.SUPPRESS):
            assert f"default: {action.default}" in told, action.option_strings
