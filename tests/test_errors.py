"""Errors are exceptions like others; at the end of a program they are one line, status 2."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra._internal.utils import run_and_report
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader

import src
from src.adapters.errors import AdapterError
from src.connectivity.errors import PruningError
from src.errors import UserError, end_program, ending_program, users_mistake
from src.files import UNREADABLE, reason
from src.sparsity.errors import SparsityError
from tests.support.training import ROOT

MISTAKES = (UserError, AdapterError, PruningError, SparsityError)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_a_lack_of_memory_is_said_in_one_line():
    assert users_mistake(MemoryError()) == "out of memory"
    line = users_mistake(MemoryError("Unable to allocate\n8.00 GiB"))
    assert line == "out of memory: Unable to allocate 8.00 GiB"
    torch_says = "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: 8"
    assert reason(RuntimeError(torch_says)) == "out of memory"
    assert not issubclass(MemoryError, UNREADABLE)


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_caught_like_other_exceptions(kind, capsys):
    try:
        raise kind("--rate 7: must be below 1")
    except Exception as error:
        caught = error
    assert str(caught) == "--rate 7: must be below 1"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_ends_a_program_in_one_line(kind, capsys):
    with pytest.raises(SystemExit) as stop, ending_program():
        raise kind("a  b.pt: is\nno checkpoint")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: a  b.pt: is no checkpoint\n"


def test_a_mistake_among_several_processes_is_said_too(tmp_path):
    """torch wraps the hook of a process that has joined others."""
    script = (
        "import torch.distributed as d, src\n"
        "from src.errors import UserError\n"
        f"d.init_process_group('gloo', init_method='file://{tmp_path}/x', rank=0, world_size=1)\n"
        "raise UserError('--rate 7: must be below 1')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: --rate 7: must be below 1"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError, Exception])
def test_faults_of_the_program_keep_their_traceback(kind, capsys):
    with pytest.raises(kind), ending_program():
        raise kind("fault")
    assert capsys.readouterr() == ("", "")


def fail(rank, kind):
    raise kind("--rate 7: must be below 1")


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_spawned_processes(kind, capfd):
    with pytest.raises(SystemExit) as stop, ending_program():
        start_processes(fail, args=(kind,), nprocs=2, start_method="fork")
    assert stop.value.code == 2
    said = capfd.readouterr().err.splitlines()
    # torch 2.14 logs that it ends the other process
    said = [line for line in said if not re.match(r"W\d{4} .*multiprocessing", line)]
    assert said == ["error: --rate 7: must be below 1"]


def kill_yourself(rank):
    os.kill(os.getpid(), signal.SIGKILL)


def leave(rank):
    sys.exit(141)


@pytest.mark.parametrize("end, status, lines", [(kill_yourself, 137, 1), (leave, 141, 0)])
def test_processes_that_end_otherwise(end, status, lines, capfd):
    with pytest.raises(SystemExit) as stop, ending_program():
        start_processes(end, nprocs=1, start_method="fork")
    assert stop.value.code == status
    said = capfd.readouterr().err
    assert said.count("\n") == said.count("error: ") == said.count("SIGKILL") == lines


class Damaged(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("train.bin: is damaged")


def test_a_mistake_in_a_worker_that_loads_data(capsys):
    with pytest.raises(SystemExit), ending_program():
        list(DataLoader(Damaged(), num_workers=1))
    assert capsys.readouterr().err == "error: train.bin: is damaged\n"


@pytest.fixture
def program(tmp_path):
    """Runs code as a program that imports a package with the same errors, and not torch."""
    (tmp_path / "src").mkdir()
    shutil.copy(ROOT / "src" / "errors.py", tmp_path / "src")
    (tmp_path / "src" / "__init__.py").write_text("from . import errors\nerrors.install()\n")

    def run(code, *options, **kwargs):
        command = [sys.executable, *options, "-c", f"import src.errors\n{code}"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=60, **kwargs
        )

    return run


def test_the_end_of_a_program(program):
    done = program("raise src.errors.UserError('--rate 7')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: --rate 7\n")
    done = program("raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    done = program("raise ValueError('fault')")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_session_goes_on_after_a_mistake(program):
    lines = "raise src.errors.UserError('--rate 7')\nprint('here')\n"
    done = program("", "-i", input=lines)
    assert done.returncode == 0 and "here" in done.stdout and "UserError: --rate 7" in done.stderr


def test_nothing_of_the_plug_in_is_needed_for_errors():
    text = Path(src.errors.__file__).read_text()
    assert "from ." not in text and "import torch" not in text and end_program.__doc__


def test_a_mistake_reaches_the_end_of_hydras_programs(capsys):
    with pytest.raises(SystemExit) as stop, ending_program():
        run_and_report(lambda: fail(0, UserError))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --rate 7: must be below 1\n"


@pytest.mark.parametrize("tool", ["train", "generate", "interactive"])
def test_fairseqs_own_tools_end_in_one_line(tool, tmp_path):
    command = [Path(sys.executable).parent / f"fairseq-{tool}", tmp_path, "--user-dir", "src"]
    command += ["--task", "SRPtranslation"]
    command += ["--path", "x.pt"] if tool != "train" else ["--arch", "srp", "--max-tokens", "9"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert line.startswith(f"error: data {tmp_path}: holds no binarized pair")
