"""Memory of training on real data, whose batches differ in shape; and fairseq's.

    python benchmarks/training_memory.py data-bin/multi30k.de-en

Every variant makes the same number of updates in a process of its own, on the CPU, without
validating or saving. "process MB" is the peak of the process's resident memory, as the
kernel counts it. "seconds" is the time of an update, of one variant after the other: a rough
figure, step_time.py compares them side by side.
"""

import multiprocessing
import os
import resource
import tempfile
import time

import torch
from common import arguments, report
from step_time import SHAPES, SRP, STOCK, TRAINING, dimensions


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
    parser = fairseq_options.get_training_parser()
    with tempfile.TemporaryDirectory() as folder:
        given = [data, *options, "--cpu", "--max-tokens", str(args.tokens), "--no-save"]
        given += ["--max-update", str(args.updates), "--disable-validation"]
        given += ["--num-workers", "0", "--log-format", "none", "--save-dir", folder]
        cfg = fairseq_options.parse_args_and_arch(parser, given)
        begin = time.perf_counter()
        train.main(convert_namespace_to_omegaconf(cfg))
        seconds = (time.perf_counter() - begin) / args.updates
    connection.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10))


def main():
    parser = arguments(__doc__, "")
    parser.add_argument("data", help="folder of binarized data")
    parser.add_argument("--arch", choices=SHAPES, default="multi30k")
    parser.add_argument("--tokens", type=int, default=4096, help="target tokens a batch")
    parser.add_argument("--updates", type=int, default=100)
    args = parser.parse_args()
    if not os.path.isdir(args.data):
        parser.error(f"data {args.data}: no such folder")
    variants = {"fairseq transformer": STOCK, "SRP dense": SRP}
    if torch.cpu._is_avx512_bf16_supported():
        variants["SRP dense, --cpu-bf16"] = SRP + ["--cpu-bf16"]
    context = multiprocessing.get_context("spawn")
    rows = []
    for name, options in variants.items():
        near, far = context.Pipe()
        given = options + dimensions(args.arch) + TRAINING
        process = context.Process(target=work, args=(far, args.data, given, args))
        process.start()
        far.close()
        seconds, peak = near.recv()
        process.join()
        row = {"variant": name, "process MB": round(peak / 2**20), "seconds": seconds}
        rows.append({**row, "ratio": round(peak / 2**20 / (rows or [row])[0]["process MB"], 2)})
        rows[-1]["seconds"] = round(seconds, 2)
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
