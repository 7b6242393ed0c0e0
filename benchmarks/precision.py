"""Does training in lower precision reach the validation loss of float32?

    bash scripts/demo_preprocess.sh
    python benchmarks/precision.py --seeds 3

Trains the demo's base model in both precisions with several seeds. The difference
that precision makes is to be judged beside the difference that the seed makes.
On a GPU (--device cuda) the precisions are float32, --fp16, --bf16 and --amp.
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from common import ROOT, arguments, check, report

OPTIONS = [
    *("--arch", "srp_demo_de_en", "--share-decoder-input-output-embed"),
    *("--task", "SRPtranslation", "--optimizer", "srp_adam"),
    *("--adam-betas", "(0.9, 0.98)", "--clip-norm", "0.0", "--dropout", "0.1"),
    *("--weight-decay", "0.0001", "--criterion", "srp", "--label-smoothing", "0.1"),
    *("--max-tokens", "2048", "--lr", "3e-3", "--lr-scheduler", "inverse_sqrt"),
    *("--warmup-updates", "200", "--no-save", "--log-format", "none"),
]
PRECISIONS = {
    "cpu": ("float32", "--cpu-bf16"),
    "cuda": ("float32", "--fp16", "--bf16", "--amp"),
}


def last_loss(args, seed: int, precision: str) -> float:
    """Validation loss after training, in bits per token."""
    options = [*OPTIONS, *(["--cpu"] if args.device == "cpu" else [])]
    options += [precision] if precision.startswith("--") else []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, ROOT / "src" / "train.py", args.data, *options]
            + ["--max-epoch", str(args.epochs), "--seed", str(seed), "--save-dir", folder],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
            stdout=subprocess.DEVNULL,
        )
        with open(Path(folder) / "results.csv", encoding="utf-8") as stream:
            return float(list(csv.DictReader(stream))[-1]["valid_loss"])


def main():
    parser = arguments(__doc__, rounds=None, gpu=True)
    default = str(ROOT / "data-bin" / "demo.de-en")
    parser.add_argument("--data", default=default, help="fairseq data folder")
    parser.add_argument("--epochs", type=int, default=6, help="of each training")
    parser.add_argument("--seeds", type=int, default=3, help="number of them")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    args = parser.parse_args()
    check(parser, args, epochs=1, seeds=2, jobs=1)  # a deviation needs two
    if not os.path.isdir(args.data):
        parser.error(f"--data {args.data}: no such folder; run scripts/demo_preprocess.sh")
    torch.set_num_threads(args.threads)
    rows, seeds = [], range(1, args.seeds + 1)
    names = [name for name in PRECISIONS[args.device] for _ in seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        found = pool.map(partial(last_loss, args), [*seeds] * len(names), names)
    found = list(found)
    for name in PRECISIONS[args.device]:
        losses, found = found[: args.seeds], found[args.seeds :]
        rows.append(
            {
                "precision": name,
                **{f"seed {seed}": loss for seed, loss in zip(seeds, losses)},
                "mean": round(statistics.mean(losses), 4),
                "deviation": round(statistics.stdev(losses), 4),
            }
        )
    report(
        "Validation loss of the demo's base model",
        rows,
        args.output,
        epochs=args.epochs,
        data="demo corpus",
    )


if __name__ == "__main__":
    main()
