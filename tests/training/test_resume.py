"""A run that was stopped at any moment ends as if it had not been."""

import os
import random
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch

from src.checkpoint_utils import damage
from src.errors import UserError
from src.files import atomic_write
from src.trainer import SRPTrainer
from src.training.processes import claim_folder
from tests.support.runs import assert_identical, final_state, stop_at
from tests.support.training import ROOT, RUN, TINY, run_training, stage_of


def stage(data, base, folder):
    """Warm-up, two shrinking iterations with a cut each, and finetuning after."""
    return [
        *(data, *TINY, *RUN, "--pretrained-model", base, "--save-dir", folder),
        *("--srp", "--compression-rate", "0.4", "--pruning-iter", "2"),
        *("--warming-up", "1", "--pruning-period", "1", "--max-epoch", "4"),
        *("--save-interval-updates", "2", "--keep-interval-updates", "2"),
        *("--prob-kd", "1", "--clip-norm", "1.0", "--weighted-layernorm"),
        *("--no-epoch-checkpoints", "--lr-scheduler", "inverse_sqrt"),
        *("--warmup-updates", "4"),
    ]


@pytest.fixture(scope="module")
def uninterrupted(data, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer = run_training(stage(data, base, folder))
    return final_state(folder), trainer.get_num_updates()


def test_updates_that_are_just_enough_are_so_within_an_epoch(data, base, tmp_path, monkeypatch):
    """What is left of the epoch is not all of it."""
    command = [data, *TINY, *RUN, "--pretrained-model", base, "--save-dir", tmp_path]
    command += ["--srp", "--compression-rate", "0.4", "--max-update", "4"]
    command += ["--save-interval-updates", "2"]
    stop_at(3, command, monkeypatch)
    trainer = run_training(command)
    assert stage_of(trainer).done and trainer.get_num_updates() == 4


WEIGHTS = """
pruning: {approach: {weight_compression_pytorch: {pruners: [
  {start_step: 2, end_step: 12, update_frequency_on_step: 2, target_sparsity: 0.5, pattern: 4x1}
]}}}
"""


@pytest.mark.parametrize(
    "first, pruning",
    [
        (["--srp", "--compression-rate", "0.4", "--pruning-period", "4"],) * 2,
        (["--srp", "--keep-decoder-layers", "1", "--pruning-period", "4"],) * 2,
        (["--sparsity-config", "CONFIG"],) * 2,
        ([], ["--sparsity-config", "CONFIG"]),
    ],
    ids=["widths", "layers", "weights", "weights from here"],
)
def test_limits_that_end_a_run_before_its_pruning_are_refused_within_an_epoch(
    data, base, tmp_path, monkeypatch, first, pruning
):
    config = tmp_path / "weights.yaml"
    config.write_text(WEIGHTS)
    command = [data, *TINY, *RUN, "--pretrained-model", base, "--save-dir", tmp_path]
    command += ["--save-interval-updates", "2", "--max-epoch", "4"]
    first, pruning = ([config if o == "CONFIG" else o for o in part] for part in (first, pruning))
    stop_at(3, [*command, *first], monkeypatch)
    before = (tmp_path / "checkpoint_last.pt").read_bytes()
    for limit in (["--max-update", "8"], ["--stop-time-hours", "1e-07"]):
        with pytest.raises(UserError, match=f"{limit[0]} {limit[1]}"):
            run_training([*command, *pruning, *limit])
        assert (tmp_path / "checkpoint_last.pt").read_bytes() == before
    limit = ["--max-update", "14" if "--sparsity-config" in pruning else "16"]
    trainer = run_training([*command, *pruning, *limit])
    assert not any(run.unfinished for run in trainer.pruning_runs)


def test_a_limit_of_time_says_what_it_leaves_unfinished(data, base, tmp_path, caplog, monkeypatch):
    command = [data, *TINY, *RUN, "--pretrained-model", base, "--save-dir", tmp_path]
    command += ["--srp", "--compression-rate", "0.4", "--stop-time-hours", "1"]

    class Slow(SRPTrainer):
        def cumulative_training_time(self):
            return 3599 + 2 * self.get_num_updates()

    monkeypatch.setattr("src.trainer.SRPTrainer", Slow)
    trainer = run_training(command)
    assert trainer.get_num_updates() == 1 and not stage_of(trainer).done
    assert "--stop-time-hours 1: ends the run before its pruning is done" in caplog.text


def test_a_second_training_in_a_folder_is_refused_until_the_first_ends(data, tmp_path):
    code = f"import fcntl, os\nfcntl.flock(os.open({str(tmp_path)!r}, 0), fcntl.LOCK_EX)\n"
    command = [sys.executable, "-c", code + "print(flush=True)\ninput()"]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    first.stdout.readline()
    command = [data, *TINY, *RUN, "--max-epoch", "1", "--save-dir", tmp_path]
    with pytest.raises(UserError, match=f"--save-dir {tmp_path}: another process trains there"):
        run_training(command)
    assert os.listdir(tmp_path) == []
    first.kill()
    first.wait()
    run_training(command)
    assert claim_folder(str(tmp_path / "none")) is None


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45, 0.6, 0.8, 0.99])
def test_stopped_run_resumes_bit_identically(
    data, base, tmp_path, uninterrupted, monkeypatch, share
):
    """Stopped in warm-up, in either iteration, and after the last cut."""
    expected, updates = uninterrupted
    stop_at(int(share * updates), stage(data, base, tmp_path), monkeypatch)
    run_training(stage(data, base, tmp_path))
    assert_identical(final_state(tmp_path), expected)


def test_batches_are_shuffled_after_a_curriculum_whatever_process_began_it(
    data, base, tmp_path, monkeypatch
):
    seen = []

    class Recorded(SRPTrainer):
        def train_step(self, samples, raise_oom=False):
            seen.append((self.epoch_itr.epoch, samples[0]["id"].tolist()))
            return super().train_step(samples, raise_oom)

    monkeypatch.setattr("src.trainer.SRPTrainer", Recorded)
    command = [data, *TINY, *RUN, "--pretrained-model", base, "--curriculum", "1"]
    run_training([*command, "--save-dir", tmp_path / "whole", "--max-epoch", "3"])
    whole, _ = seen[:], seen.clear()
    orders = [[ids for e, ids in whole if e == epoch] for epoch in (1, 2, 3)]
    assert len({str(order) for order in orders}) == 3
    assert len({str(sorted(order)) for order in orders}) == 1

    for last in ("1", "2", "3"):
        run_training([*command, "--save-dir", tmp_path / "parts", "--max-epoch", last])
    assert seen == whole


def test_killed_process_resumes_bit_identically(data, base, tmp_path, uninterrupted):
    """SIGKILL at random moments, whatever the process is doing."""
    command = [sys.executable, str(ROOT / "src" / "pruning.py")]
    command += [str(o) for o in stage(data, base, tmp_path)]
    generator = random.Random(4)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.time()
    reached = set()
    for attempt in range(40):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            if attempt < 3:
                # at least one checkpoint further each time, then at any moment
                known = dict(reached=sorted(os.listdir(tmp_path)))
                while process.poll() is None and time.time() - started < 240:
                    if sorted(os.listdir(tmp_path)) != known["reached"]:
                        break
                    time.sleep(0.01)
                time.sleep(generator.random())
                process.send_signal(signal.SIGKILL)
                process.wait()
                reached.add(attempt)
                continue
            output = process.communicate(timeout=240)[0].decode()
            assert process.returncode == 0, output[-2000:]
            break
        finally:
            process.kill()
    assert len(reached) == 3
    assert_identical(final_state(tmp_path), uninterrupted[0])
    for name in os.listdir(tmp_path):
        if name.endswith(".pt"):
            assert damage(os.path.join(tmp_path, name)) is None


def test_truncated_last_checkpoint_is_reported_and_the_previous_used(
    data, base, tmp_path, uninterrupted, caplog, monkeypatch
):
    command = stage(data, base, tmp_path)
    stop_at(uninterrupted[1] // 2 + 1, command, monkeypatch)
    last = tmp_path / "checkpoint_last.pt"
    with open(last, "r+b") as stream:
        stream.truncate(os.path.getsize(last) // 2)
    run_training(command)
    assert any("truncated" in r.message for r in caplog.records)
    assert_identical(final_state(tmp_path), uninterrupted[0])


def test_flipped_bit_is_noticed(base, tmp_path):
    content = bytearray(open(base, "rb").read())
    with zipfile.ZipFile(base) as archive:  # between its parts there is padding
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    content[largest.header_offset + largest.file_size // 2 + 100] ^= 4
    path = tmp_path / "flipped.pt"
    path.write_bytes(content)
    assert damage(base) is None
    assert damage(str(path))


def test_no_other_checkpoint_left(data, base, tmp_path, capsys):
    (tmp_path / "checkpoint_last.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="checkpoint_last.pt: it is truncated"):
        run_training(stage(data, base, tmp_path))


def test_file_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(RuntimeError):
        with atomic_write(str(path)) as stream:
            stream.write("half")
            raise RuntimeError
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]
    with atomic_write(str(path)) as stream:
        stream.write("after")
    assert path.read_text() == "after"


def test_patience_goes_on_counting(data, base, tmp_path):
    run = [data, *TINY, *RUN, "--pretrained-model", base, "--no-epoch-checkpoints"]
    run += ["--patience", "3", "--lr", "1e-30"]  # of which nothing gets better
    for folder, parts in (("whole", "9"), ("parts", "39")):
        for last in parts:
            run_training([*run, "--save-dir", tmp_path / folder, "--max-epoch", last])
    whole, parts = (
        torch.load(tmp_path / folder / "checkpoint_last.pt")["extra_state"]
        for folder in ("whole", "parts")
    )
    assert whole["train_iterator"]["epoch"] == parts["train_iterator"]["epoch"] == 5
    assert whole["patience"] == parts["patience"]


@pytest.mark.parametrize("options", [[], ["--no-save-optimizer-state"]])
def test_a_run_that_goes_on_with_a_new_optimizer_says_so(data, tmp_path, caplog, options):
    command = [data, *TINY, *RUN, *options, "--save-dir", tmp_path, "--max-epoch"]
    run_training([*command, "1"])
    trainer = run_training([*command, "2"])
    assert trainer.get_num_updates() == (4 if options else 8)
    said = f"checkpoint {tmp_path}/checkpoint_last.pt: holds no state of the optimizer"
    assert (said in caplog.text) == bool(options)
