"""A file that can't be written: one line, no traceback, what was there before stays."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from src import average_checkpoints, distill_data, export, export_sparse, generate
from src.checkpoint_utils import DurablePathManager
from src.errors import UserError, ending_program
from src.files import atomic_write
from tests.support.training import ROOT, RUN, TINY, run_training
from tests.support.translation import quiet_logging


@contextmanager
def files_of_at_most(size):
    """Writes beyond so many bytes of a file fail, as all do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys, tool, arguments, *words, size):
    """Run a tool that can't write; the error's line."""
    with (
        pytest.raises(SystemExit) as stopped,
        ending_program(),
        quiet_logging(),
        files_of_at_most(size),
    ):
        tool([str(a) for a in arguments])
    assert stopped.value.code == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert all(word in errors[0] for word in (*words, "File too large")), errors[0]


def write_text(stream):
    stream.write("long " * 1000)


@pytest.mark.parametrize(
    "mode, write",
    [
        ("w", write_text),
        ("wb", lambda stream: torch.save({"weight": torch.zeros(1000)}, stream)),
    ],
)
def test_what_was_there_before_stays(tmp_path, mode, write):
    path = tmp_path / "file"
    path.write_text("before")
    message = f"{path}: can't be written .File too large.; what was there before"
    with pytest.raises(UserError, match=message), files_of_at_most(1000):
        with atomic_write(str(path), mode) as stream:
            write(stream)
    assert contents(tmp_path) == {"file": b"before"}


def test_other_errors_stay_as_they_are(tmp_path):
    """Of what a block reads, for example."""
    with pytest.raises(FileNotFoundError):
        with atomic_write(str(tmp_path / "file")):
            open(tmp_path / "other")
    with pytest.raises(UserError, match="nowhere/file: can't be written .No such file"):
        with atomic_write(str(tmp_path / "nowhere" / "file")):
            pass


def test_a_copy_is_complete_or_not_there(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * 5000)
    target.write_text("before")
    copy = str(source), str(target)
    assert not DurablePathManager.copy(*copy)
    with pytest.raises(UserError, match="target: can't be written"), files_of_at_most(4000):
        DurablePathManager.copy(*copy, overwrite=True)
    assert contents(tmp_path) == {"source": b"x" * 5000, "target": b"before"}
    assert DurablePathManager.copy(*copy, overwrite=True)
    assert target.read_bytes() == b"x" * 5000


def test_a_training_ends_and_goes_on_later(data, tmp_path):
    def train(epochs):
        command = [data, *TINY, *RUN, "--max-epoch", epochs, "--save-dir", tmp_path]
        return run_training(command)

    updates = train(1).get_num_updates()
    before = contents(tmp_path)
    message = f"{tmp_path}/checkpoint2.pt: can't be written .File too large."
    with pytest.raises(UserError, match=message), files_of_at_most(100_000):
        train(2)
    rows = {"results.csv": None}  # a validation more
    assert {**contents(tmp_path), **rows} == {**before, **rows}
    assert train(2).get_num_updates() == 2 * updates


TOOLS = {
    "average": (average_checkpoints.main, ["--inputs", "{base}"], "file", 10_000),
    "sparse file": (export_sparse.main, ["--path", "{base}"], "file", 10_000),
    "engine": (export.main, ["{data}", "--path", "{base}"], "file", 10_000),
    "distilled": (
        distill_data.main,
        ["{data}", "--path", "{base}", "--cpu"],
        "file.part/translations.txt",
        200,
    ),
    "report": (generate.main, ["{data}", "--path", "{base}", "--cpu"], "file", 100),
}


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_ends_in_one_line(data, base, tmp_path, capsys, name):
    tool, arguments, named, size = TOOLS[name]
    output = tmp_path / "file"
    option = "--report" if name == "report" else "--output"
    arguments = [a.format(data=data, base=base) for a in (*arguments, option, str(output))]
    refused(capsys, tool, arguments, str(tmp_path / named), "can't be written", size=size)
    left = {"file.part"} if name == "distilled" else set()
    assert set(os.listdir(tmp_path)) == left
    with quiet_logging():
        tool(arguments)  # with room it goes through
    assert os.listdir(tmp_path) == ["file"]


def test_output_of_a_tool_on_a_full_disk():
    code = "from src.commandline import parsing as cli\nwith cli.ending_quietly(''): print('hypothesis')"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 2
    error = b"error: the output can't be written (No space left on device)"
    assert ended.stderr.splitlines()[-1] == error


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_step_without_memory_names_what_makes_it_smaller(data, tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("src.tasks.srp_translation.SRPTranslationTask.train_step", fail)
    words = "^--max-tokens 200: update 1 is out of memory; give less"
    with pytest.raises(UserError, match=words):
        run_training([data, *TINY, *RUN, "--save-dir", tmp_path])
