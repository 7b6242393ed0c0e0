"""Two processes prune as one."""

import os
import subprocess
import sys
import time

import pytest
import torch

from tests.support.runs import SCRIPT
from tests.support.training import ROOT, RUN, TINY, run_training

LAUNCHER = str(ROOT / "scripts" / "cpu_distributed.py")


def command(data, base, folder, tokens):
    run = list(RUN)
    run[run.index("--max-tokens") + 1] = str(tokens)
    return [
        *(data, *TINY, *run, "--pretrained-model", base, "--save-dir", str(folder)),
        *("--srp", "--compression-rate", "0.4", "--pruning-period", "1"),
        *("--keep-decoder-layers", "1"),
        *("--max-epoch", "2", "--clip-norm", "1.0", "--dropout", "0"),
    ]


def test_two_processes_prune_as_one(data, base, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    launcher = [sys.executable, LAUNCHER, "--processes", "2", str(script)]
    environment = {**os.environ, "WEIGHTS": str(tmp_path / "rank")}

    def run_two():
        done = subprocess.run(
            launcher + command(data, base, tmp_path / "two", 100),
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]

    run_two()
    first, second = (torch.load(tmp_path / f"rank{r}") for r in "01")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)

    # going on, here from the cut and for nothing more, gives every process the same again
    run_two()
    for rank in "01":
        resumed = torch.load(tmp_path / f"rank{rank}")
        assert all(torch.equal(first[k], resumed[k]) for k in first)

    alone = run_training(command(data, base, tmp_path / "one", 200))
    one = alone.get_model().state_dict()
    assert one.keys() == first.keys() and len(one["decoder.depth.channel_ids"]) == 1
    for key in one:
        if key.endswith("channel_ids"):
            assert torch.equal(one[key], first[key]), key
    saved = torch.load(tmp_path / "two" / "checkpoint_last.pt")["model"]
    assert all(torch.equal(saved[k], first[k]) for k in first)


RANK = "import os, signal, sys, time\nrank = sys.argv[sys.argv.index('--distributed-rank') + 1]\n"


@pytest.mark.parametrize(
    "code, status, said",
    [
        ("sys.exit(3) if rank == '1' else time.sleep(60)", 3, ""),
        (
            "print('warning', rank, file=sys.stderr)\n"
            "print('error: --lr: missing', file=sys.stderr)\nsys.exit(2)",
            2,
            "error: --lr: missing\n",
        ),
        (
            "os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else 1 / 0",
            137,
            "error: rank 1 was killed (SIGKILL)\n",
        ),
        ("1 / 0 if rank == '1' else time.sleep(60)", 1, "ZeroDivisionError: division by zero\n"),
    ],
    ids=["status", "one line", "killed", "traceback"],
)
def test_failure_of_one_process_ends_all(tmp_path, code, status, said):
    (tmp_path / "rank.py").write_text(RANK + code)
    command = [sys.executable, LAUNCHER, str(tmp_path / "rank.py")]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert done.returncode == status
    lines = [line for line in done.stderr.splitlines(True) if not line.startswith("warning")]
    assert "".join(lines).endswith(said)
    assert len(lines) == said.count("\n") or "ZeroDivision" in said
    assert done.stderr.count("warning") == (2 if status == 2 else 0)


def ended(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no such signal")
@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_processes_end_with_a_launcher_that_is_killed(tmp_path, launcher):
    note = f"open({str(tmp_path)!r} + '/' + rank + '.pid', 'w').write(str(os.getpid()))\n"
    if launcher == "ours":
        (tmp_path / "rank.py").write_text(RANK + note + "time.sleep(60)\n")
        command = [sys.executable, LAUNCHER, str(tmp_path / "rank.py")]
    else:  # a parent that has started a process as torchrun does
        code = f"import os, sys, time\nsys.path.insert(0, {str(ROOT)!r})\nrank = '0'\n"
        code += "from src.training.processes import end_with_launcher\nend_with_launcher()\n"
        (tmp_path / "rank.py").write_text(f"{code}{note}time.sleep(60)\n")
        code = f"import subprocess, sys\nsubprocess.run([sys.executable, {str(tmp_path)!r} + "
        command = [sys.executable, "-c", code + "'/rank.py'])"]
    ranks = 2 if launcher == "ours" else 1
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    process = subprocess.Popen(command, env=environment)
    wait_for(lambda: len([p for p in tmp_path.glob("*.pid") if p.read_text()]) == ranks)
    process.kill()
    process.wait()
    for path in tmp_path.glob("*.pid"):
        wait_for(lambda: ended(int(path.read_text())), 10)
