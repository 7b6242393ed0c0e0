"""The commands of the README, as processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.checkpoint_utils import damage
from tests.support.runs import final_state
from tests.support.training import ROOT, RUN, TINY

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(command, cwd=ROOT):
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def weights(folder):
    return torch.load(Path(folder) / "checkpoint_last.pt")["model"]


@pytest.mark.parametrize("stage", [False, True])
def test_entry_points_equal_fairseq_train(data, base, tmp_path, stage):
    """Same flags, same weights, bit by bit; training and a pruning stage."""
    extra = ["--max-epoch", "1"]
    if stage:
        extra += ["--pretrained-model", base, "--srp", "--compression-rate", "0.4"]
    script = "pruning.py" if stage else "train.py"
    ours = [sys.executable, "src/" + script, data, *TINY, *RUN, *extra]
    stock = [
        Path(sys.executable).parent / "fairseq-train",
        *(data, *TINY, *RUN, *extra, "--user-dir", "src"),
    ]
    run([*ours, "--save-dir", tmp_path / "ours"])
    run([*stock, "--save-dir", tmp_path / "stock"])
    one, two = weights(tmp_path / "ours"), weights(tmp_path / "stock")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("user_dir", [["--user-dir", "../src"], ["--user-dir={link}"]])
def test_from_the_scripts_folder_with_workers(data, tmp_path, user_dir):
    """Paths as the SRP README prints them or of a link, data loaded by worker processes."""
    (tmp_path / "plugin").symlink_to(ROOT / "src")
    user_dir = [part.format(link=tmp_path / "plugin") for part in user_dir]
    command = [sys.executable, "../src/train.py", data, *user_dir]
    command += [*TINY, *RUN, "--max-epoch", "1", "--num-workers", "2"]
    run([*command, "--save-dir", tmp_path], cwd=ROOT / "scripts")
    assert (tmp_path / "checkpoint_last.pt").exists()


@pytest.mark.parametrize("gone", ["| head -1", "> /dev/full", ">&-"])
def test_training_goes_on_without_standard_output(data, tmp_path, gone):
    command = [sys.executable, str(ROOT / "src" / "train.py"), data, *TINY, *RUN]
    command += ["--max-epoch", "2", "--log-interval", "1", "--save-dir", str(tmp_path)]
    line = " ".join(f"'{part}'" for part in command)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} {gone}"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "the log can't be" in line]
    assert len(warnings) == (gone != ">&-") and "Traceback" not in done.stderr
    assert damage(str(tmp_path / "checkpoint_last.pt")) is None
    assert final_state(tmp_path)["updates"] == 8


@pytest.mark.parametrize("script", ["train.py", "pruning.py", "finetuning.py"])
def test_help_teaches_the_options(script):
    text = run([sys.executable, "src/" + script, "--help"])
    for option in (
        "--compression-rate",
        "--importance",
        "--weighted-layernorm",
        "--prob-kd",
        "--adam-betas",
        "--save-dir",
    ):
        assert option in text


@pytest.mark.parametrize("script", ["generate.py", "distill_data.py"])
def test_help_of_translation(script):
    text = run([sys.executable, "src/" + script, "--help"])
    for option in ("--adapter-path", "--cpu-bf16", "--sparse-inference", "--source-lang", "--beam"):
        assert option in text
    for option in ("--compression-rate", "--teacher-model", "--adapter-rank", "--eval-bleu"):
        assert option not in text  # for training


def test_a_python_without_the_libraries_is_told_in_one_line():
    command = [sys.executable, "-S", "src/train.py"]  # -S: without installed packages
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch is not installed for")
    assert done.stderr.count("\n") == 1 and "make setup" in done.stderr
