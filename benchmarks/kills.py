"""Trainings that are killed at random moments end as if they had not been.

    python benchmarks/kills.py --kills 50
    python benchmarks/kills.py compress --kills 10

Stages over widths and layers, weight pruning and adapters train a tiny model, or compress.py
takes all its steps with it, once without a break. Then processes of the same command are killed
(SIGKILL) after a random time, one after the other, until one comes to its end; in every third
start a second process of the command is started beside it, which must be refused in one line.
Weights and optimizer must be the same bit for bit, and no checkpoint may be damaged. Ends with
status 1 if anything is not so.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # sums in one order; and before torch is imported

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import common
import torch

from src import compress, errors, finetuning, pruning, train  # noqa: E402
from src.checkpoint_utils import damage  # noqa: E402

WEIGHTS = """
pruning: {approach: {weight_compression_pytorch: {pruners: [{start_step: 2, end_step: 14,
  update_frequency_on_step: 3, target_sparsity: 0.8, pattern: 4x1, prune_type: snip_momentum}]}}}
"""
MODEL = ["--arch", "srp", "--dropout", "0.1", "--encoder-layers", "2", "--decoder-layers", "2"]
for _side in ("encoder", "decoder"):
    MODEL += [f"--{_side}-embed-dim", "16", f"--{_side}-ffn-embed-dim", "32"]
    MODEL += [f"--{_side}-attention-heads", "2"]
RUN = [
    *("--task", "SRPtranslation", "--criterion", "srp", "--optimizer", "srp_adam", "--lr", "1e-3"),
    *("--max-tokens", "200", "--cpu", "--num-workers", "0", "--no-progress-bar"),
    *("--clip-norm", "1", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "5"),
    *("--scoring-batches", "4", "--scoring-tokens", "100", "--save-interval-updates", "3"),
    *("--keep-interval-updates", "1", "--no-epoch-checkpoints"),
]
STAGE = ["--srp", "--pruning-iter", "2", "--warming-up", "1", "--max-epoch", "3", "--prob-kd", "1"]
KINDS = {
    "widths": (pruning, [*STAGE, "--compression-rate", "0.4"]),
    "layers": (pruning, [*STAGE, "--keep-decoder-layers", "1", "--attn-kd", "1"]),
    "weights": (finetuning, ["--sparsity-config", "WEIGHTS", "--max-epoch", "3"]),
    "adapters": (finetuning, ["--adapter", "splora", "--adapter-rank", "2", "--max-epoch", "3"]),
}
PIPELINE = "compress"
COMPRESS = ["--quick", "--compression-rate", "0.4"]


class Process:
    """A command in a process that is forked from this one, so that it starts at once."""

    def __init__(self, tool, arguments: List[str], log: Path):
        self.log, self.status = log, None
        log.unlink(missing_ok=True)
        self.pid = os.fork()
        if not self.pid:
            self._run(tool, arguments)

    def _run(self, tool, arguments: List[str]) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(descriptor, number)
        status: Optional[int] = 1
        try:
            sys.argv = [f"{tool.__name__}.py", *arguments]
            with errors.ending_program():
                tool.main()
            status = 0
        except SystemExit as end:
            status = end.code
        finally:
            os._exit(status or 0)

    def wait(self, seconds: float = 600) -> Optional[int]:
        """The status, negative for a signal; None if it runs on."""
        end = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                break
            else:
                time.sleep(0.005)
        return self.status

    def trains(self) -> bool:
        """Wait until it trains; False if it has ended by then."""
        while self.wait(0.01) is None:
            said = self.log.read_text() if self.log.exists() else ""
            if "begin training epoch" in said or "-plan: " in said:
                return True
        return False

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


class State(NamedTuple):
    """What a run ends with."""

    weights: Dict
    optimizer: Dict
    updates: int


def final_state(folder: Path) -> State:
    if (folder / "result.json").exists():  # of compress.py
        (trained,) = folder.glob("*-finetune")
        (compressed,) = folder.glob("*-model/model.pt")
        state = final_state(trained)
        return state._replace(weights=torch.load(compressed)["model"])
    state = torch.load(folder / "checkpoint_last.pt")
    updates = state["optimizer_history"][-1]["num_updates"]
    return State(state["model"], state["last_optimizer_state"]["state"], updates)


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def refused(first: Process, start, folder: Path) -> bool:
    """Whether a second process ends in one line, for the folder's sake.

    The first is stopped meanwhile, so that it can't come to its end before.
    """
    os.kill(first.pid, signal.SIGSTOP)
    process = start(folder, "second")
    status = process.wait()
    os.kill(first.pid, signal.SIGCONT)
    lines = [x for x in process.log.read_text().splitlines() if x.startswith("error: ")]
    said = len(lines) == 1 and f"{folder}: another process" in lines[0]
    return status == errors.STATUS and said


def campaign(kind: str, base: str, data: str, folder: Path, kills: int, draw) -> Dict:
    """A row of the table for one kind of run."""
    tool, options = KINDS.get(kind, (compress, COMPRESS))
    config = folder / "weights.yaml"
    config.write_text(WEIGHTS)
    options = [str(config) if option == "WEIGHTS" else option for option in options]

    def start(where: Path, log: str = "log") -> Process:
        if kind == PIPELINE:
            command = [data, "--path", base, *options, "--output", str(where), "--", "--cpu"]
        else:
            command = [data, *MODEL, *RUN, *options, "--pretrained-model", base]
            command += ["--save-dir", str(where)]
        return Process(tool, command, folder / log)

    begun = time.monotonic()
    whole = start(folder / "whole")
    if whole.wait() != 0:
        raise SystemExit(f"{kind}: {whole.log.read_text()[-2000:]}")
    seconds, expected = time.monotonic() - begun, final_state(folder / "whole")
    killed = writers = runs = damaged = wrong = 0
    identical = True
    while killed < kills:
        runs += 1
        where = folder / f"run{runs}"
        starts = 0
        while True:
            process = start(where)
            if starts % 3 == 1 and process.trains():
                writers += 1
                wrong += not refused(process, start, where)
            starts += 1
            last = killed >= kills or starts > 6
            if process.wait(600 if last else draw.uniform(0.1, 0.9) * seconds) is None:
                process.kill()
                killed += 1
                continue
            if process.status:
                raise SystemExit(f"{kind}: {process.log.read_text()[-2000:]}")
            break
        found = final_state(where)
        identical &= all(same(a, b) for a, b in zip(found, expected))
        damaged += sum(damage(str(path)) is not None for path in where.rglob("*.pt"))
    return {
        "run": kind,
        "updates": expected.updates,
        "runs": runs,
        "kills": killed,
        "second writers": writers,
        "not refused": wrong,
        "damaged checkpoints": damaged,
        "bit-identical": "yes" if identical else "NO",
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*KINDS, PIPELINE]
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help=f"of {', '.join(names)} (default: the trainings)"
    )
    parser.add_argument("--kills", type=int, default=50, help="of all runs together (default: 50)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    parser.add_argument(
        "--output", default="", help="write OUTPUT.md and OUTPUT.json (default: print only)"
    )
    args = parser.parse_args()
    kinds = args.kinds or list(KINDS)
    for kind in kinds:
        if kind not in names:
            parser.error(f"KIND {kind}: must be one of {', '.join(names)}")
    common.check(parser, args, kills=len(kinds))
    torch.set_num_threads(1)
    draw = random.Random(args.seed)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common.write_synthetic_data(folder, types=60, sentences=60)
        for path in list(folder.glob("valid.*")):
            shutil.copy(path, folder / path.name.replace("valid", "test"))
        process = Process(
            train,
            [name, *MODEL, *RUN, "--max-epoch", "2", "--save-dir", f"{name}/base"],
            folder / "log",
        )
        if process.wait() != 0:
            raise SystemExit(process.log.read_text()[-2000:])
        for number, kind in enumerate(kinds):
            place = folder / kind
            place.mkdir()
            share = (args.kills + number) // len(kinds)
            base = f"{name}/base/checkpoint_last.pt"
            rows.append(campaign(kind, base, name, place, share, draw))
            print(rows[-1], file=sys.stderr, flush=True)
    common.report("Trainings killed at random moments", rows, args.output, seed=args.seed)
    good = all(
        row["bit-identical"] == "yes" and not row["not refused"] and not row["damaged checkpoints"]
        for row in rows
    )
    return not good


if __name__ == "__main__":
    sys.exit(main())
