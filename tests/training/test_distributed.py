"""Two processes prune as one."""

import os
import subprocess
import sys

import torch

from tests.support.runs import SCRIPT
from tests.support.training import ROOT, RUN, TINY, run_training


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
    launcher = [sys.executable, str(ROOT / "scripts" / "cpu_distributed.py")]
    launcher += ["--processes", "2", str(script)]
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


def test_failure_of_one_process_ends_all(tmp_path):
    script = tmp_path / "fail.py"
    script.write_text(
        "import sys, time\n"
        "rank = sys.argv[sys.argv.index('--distributed-rank') + 1]\n"
        "sys.exit(3) if rank == '1' else time.sleep(60)\n"
    )
    launcher = str(ROOT / "scripts" / "cpu_distributed.py")
    done = subprocess.run([sys.executable, launcher, str(script)], timeout=30)
    assert done.returncode == 3
