"""Memory of training on real data, whose batches differ in shape; and fairseq's.

    python benchmarks/training_memory.py data-bin/multi30k.de-en

Every variant makes the same number of updates in a process of its own, on the CPU, without
validating or saving; shrinking is a stage that scores the channels of an untrained model
and removes most of them, later than these updates. "process MB" is the peak of the process's
resident memory, as the kernel counts it. "seconds" is the time of an update, with a share of
the scoring where there is one, of one variant after the other: a rough figure, step_time.py
compares them side by side.
"""

import contextlib
import multiprocessing
import os
import resource
import tempfile
import time

import torch
from common import arguments, build_trainer, check, report
from step_time import SHAPES, SRP, STOCK, TRAINING, dimensions

from src.modules.torch_private import has_avx512_bf16

# longer than any measurement, so that nothing is cut while it lasts
STAGE = ["--srp", "--compression-rate", "0.2", "--pruning-stage", "0", "--pruning-period", "1000"]


class EnoughError(Exception):
    """The updates to measure are made."""


def ending(trainer: type, updates: int) -> type:
    """``trainer``, which stops after so many updates, whatever a stage still needs."""

    class Ending(trainer):
        def train_step(self, *args, **kwargs):
            output = super().train_step(*args, **kwargs)
            if self.get_num_updates() >= updates:
                raise EnoughError
            return output

    return Ending


def work(connection, data: str, options: list, args) -> None:
    """A training in this process; sends seconds an update and the peak in bytes."""
    torch.set_num_threads(args.threads)
    from fairseq import options as fairseq_options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.trainer import Trainer
    from fairseq_cli import train

    import src  # noqa: F401  registers the plug-in

    if "SRPtranslation" not in options:
        train.Trainer = Trainer  # fairseq's own again
    train.Trainer = ending(train.Trainer, args.updates)
    parser = fairseq_options.get_training_parser()
    with tempfile.TemporaryDirectory() as folder:
        given = [data, *options, "--cpu", "--max-tokens", str(args.tokens), "--no-save"]
        given += ["--disable-validation"]
        given += ["--num-workers", "0", "--log-format", "none", "--save-dir", folder]
        cfg = fairseq_options.parse_args_and_arch(parser, given)
        begin = time.perf_counter()
        with contextlib.suppress(EnoughError):
            train.main(convert_namespace_to_omegaconf(cfg))
        seconds = (time.perf_counter() - begin) / args.updates
    connection.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10))


def measure(*given) -> tuple:
    """What :func:`work` sends, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=work, args=(far, *given))
    process.start()
    far.close()
    measured = near.recv()
    process.join()
    return measured


def main():
    parser = arguments(__doc__, rounds=None)
    parser.add_argument("data", help="folder of binarized data")
    parser.add_argument("--arch", choices=SHAPES, default="multi30k", help="shape of the model")
    parser.add_argument("--tokens", type=int, default=4096, help="target tokens a batch")
    parser.add_argument("--updates", type=int, default=100, help="updates of each variant")
    args = parser.parse_args()
    check(parser, args, tokens=1, updates=1)
    if not os.path.isdir(args.data):
        parser.error(f"data {args.data}: no such folder")
    variants = {"fairseq transformer": STOCK, "SRP dense": SRP, "SRP shrinking": SRP + STAGE}
    if has_avx512_bf16():
        bf16 = ["--cpu-bf16"]
        variants["SRP dense, --cpu-bf16"] = SRP + bf16
        variants["SRP shrinking, --cpu-bf16"] = SRP + STAGE + bf16
    common = dimensions(args.arch) + TRAINING
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "untrained.pt")
        trainer = build_trainer(args.data, SRP + common)
        trainer.consolidate_optimizer()
        trainer.save_checkpoint(model, {"train_iterator": {"epoch": 1}})
        del trainer
        for name, options in variants.items():
            given = options + common
            if "--srp" in options:
                given += ["--pretrained-model", model]
            seconds, peak = measure(args.data, given, args)
            row = {"variant": name, "process MB": round(peak / 2**20)}
            ratio = row["process MB"] / (rows or [row])[0]["process MB"]
            rows.append({**row, "seconds": round(seconds, 2), "ratio": round(ratio, 2)})
    torch.set_num_threads(args.threads)
    report(
        f"Memory of training, {args.arch} shape",
        rows,
        args.output,
        data=os.path.basename(os.path.normpath(args.data)),
        updates=args.updates,
        tokens=args.tokens,
    )


if __name__ == "__main__":
    main()
