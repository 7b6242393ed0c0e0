"""Time and memory of a training step: SRP dense, shrinking, in bfloat16; and fairseq.

    python benchmarks/step_time.py --arch multi30k

All variants take the same batch through fairseq's trainer, each in a process of its
own, one step at a time in a new random order each round; the figure is the ratio to
fairseq's transformer with fairseq's Adam in the same round.

"tensors MB" is the most that the tensors made in a step take at once, counted by
PyTorch's profiler: exact, the same in every run, without what exists already (weights,
moments). "process MB" is the peak of the process's resident memory over all steps, as
the kernel counts it: with libraries, and what the allocator could not use again.

    python benchmarks/step_time.py --arch multi30k --device cuda

On a GPU every variant runs in float32 and with --fp16, --bf16 and --amp, all in one
process, five steps a round, after which the GPU is waited for. "ratio" is to fairseq's
transformer in the same precision, "of float32" to it in float32 (or the first of
--precisions). "tensors MB" is of the GPU's memory.
"""

import multiprocessing
import resource

import torch
from common import (
    arguments,
    build_trainer,
    check,
    interleave,
    ratios,
    report,
    synthetic_batch,
    temporary_data,
    tensor_peak,
    wait,
)

from src.modules.torch_private import has_avx512_bf16

SHAPES = {
    "multi30k": (256, 512, 4, 3),
    "iwslt": (512, 1024, 4, 6),
}

TRAINING = ["--lr", "1e-4", "--adam-betas", "(0.9,0.98)", "--weight-decay", "1e-4"]
TRAINING += ["--label-smoothing", "0.1"]
SRP = ["--task", "SRPtranslation", "--arch", "srp", "--criterion", "srp"]
SRP += ["--optimizer", "srp_adam", "--weighted-layernorm"]
BASE = "fairseq transformer"
PRECISIONS = {"float32": [], "fp16": ["--fp16"], "bf16": ["--bf16"], "amp": ["--amp"]}
STEPS_A_ROUND = {"cpu": 1, "cuda": 5}
STOCK = ["--task", "translation", "--arch", "transformer", "--optimizer", "adam"]
STOCK += ["--criterion", "label_smoothed_cross_entropy"]


def dimensions(shape: str) -> list:
    embed, ffn, heads, layers = SHAPES[shape]
    options = ["--share-decoder-input-output-embed", "--dropout", "0.3"]
    for side in ("encoder", "decoder"):
        options += [f"--{side}-embed-dim", embed, f"--{side}-ffn-embed-dim", ffn]
        options += [f"--{side}-attention-heads", heads, f"--{side}-layers", layers]
    return [str(o) for o in options]


def shrinking(trainer) -> None:
    """Put a trainer in the middle of a stage that removes half of all channels."""
    from src.connectivity.groups import channel_groups
    from src.connectivity.stage import StagePlan
    from src.training.channel_pruning import ChannelPruning

    model = trainer.get_model()
    run = ChannelPruning(StagePlan(compression_rate=0.3, stage=0, period=1), model)
    trainer.task.pruning_runs = [run]
    generator = torch.Generator().manual_seed(1)
    scores = {
        name: torch.rand(group.width, generator=generator)
        for name, group in channel_groups(model).items()
    }
    run.stage.begin(scores, steps=10**6)
    # so that no precision rounds the connectivity to 1
    run.stage.shrink_to(10**6 // 2)

    class Endless:
        epoch = 1

        @staticmethod
        def end_of_epoch():
            return False

    trainer.epoch_itr = Endless()


class Variant:
    """A trainer of one variant and its batch."""

    def __init__(self, data: str, options: list, shrinks: bool, args):
        self.device = args.device
        self.trainer = build_trainer(data, options, args.device)
        if shrinks:
            shrinking(self.trainer)
        types = len(self.trainer.task.source_dictionary)
        self.batch = synthetic_batch(args.tokens, args.length, types, types)

    def step(self) -> None:
        self.trainer.train_step([self.batch])

    def steps(self) -> None:
        """Those of a round."""
        for _ in range(STEPS_A_ROUND[self.device]):
            self.step()
        wait(self.device)

    def memory(self) -> tuple:
        """Peaks in bytes: of the tensors made in a step, of the process up to now."""
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if self.device == "cpu":
            return tensor_peak(self.step), resident
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.step()
        return torch.cuda.max_memory_allocated() - before, resident


def work(connection, threads: int, *given) -> None:
    """A process with one variant, which does what it is asked for."""
    torch.set_num_threads(threads)
    variant = Variant(*given)
    connection.send("ready")
    while (wish := connection.recv()) != "end":
        connection.send(getattr(variant, wish)())


class Remote:
    """A :class:`Variant` in a process of its own."""

    def __init__(self, *given):
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        self.process = context.Process(target=work, args=(far, *given), daemon=True)
        self.process.start()
        far.close()

    def wait(self) -> None:
        """Until it is ready."""
        self.connection.recv()

    def _ask(self, wish: str):
        self.connection.send(wish)
        return self.connection.recv()

    def steps(self) -> None:
        self._ask("steps")

    def memory(self) -> tuple:
        return self._ask("memory")

    def close(self) -> None:
        self.connection.send("end")
        self.process.join()


def rows_of(times: dict, base: tuple) -> dict:
    """Rows of :func:`common.ratios` by what they are of."""
    return {row["variant"]: row for row in ratios(times, base)}


def main():
    parser = arguments(__doc__, gpu=True)
    parser.add_argument("--arch", choices=SHAPES, default="multi30k", help="shape of the model")
    parser.add_argument("--tokens", type=int, default=4096, help="target tokens a batch")
    parser.add_argument("--length", type=int, default=25, help="tokens a sentence")
    parser.add_argument(
        "--variants",
        default="",
        help="separated by ; (default: all)",
    )
    parser.add_argument(
        "--precisions",
        default="",
        help=f"with --device cuda; those to run in (default: {','.join(PRECISIONS)})",
    )
    args = parser.parse_args()
    check(parser, args, length=4)  # a quarter of a shorter sentence is no token
    check(parser, args, tokens=args.length)

    variants = {BASE: STOCK, "SRP dense": SRP, "SRP shrinking": SRP}
    on_gpu = args.device == "cuda"
    if args.precisions and not on_gpu:
        parser.error(f"--precisions {args.precisions}: needs --device cuda; leave it out")
    chosen = args.precisions.split(",") if args.precisions else [*PRECISIONS]
    for name in chosen:
        if name not in PRECISIONS:
            parser.error(f"--precisions {name}: must be of {', '.join(PRECISIONS)}")
    precisions = {"float32": []}
    if on_gpu:
        precisions = {name: o for name, o in PRECISIONS.items() if name in chosen}
    if not on_gpu and has_avx512_bf16():
        variants["SRP dense, --cpu-bf16"] = SRP + ["--cpu-bf16"]
        variants["SRP shrinking, --cpu-bf16"] = SRP + ["--cpu-bf16"]
    if args.variants:
        chosen = [BASE, *(name.strip() for name in args.variants.split(";"))]
        unknown = [name for name in chosen if name not in variants]
        if unknown:
            parser.error(f"--variants {unknown[0]}: must be of {'; '.join(variants)}")
        variants = {name: o for name, o in variants.items() if name in chosen}
    common = dimensions(args.arch) + TRAINING
    torch.set_num_threads(args.threads)
    with temporary_data() as data:
        given = {
            (precision, name): (data, options + half + common, "shrinking" in name, args)
            for precision, half in precisions.items()
            for name, options in variants.items()
        }
        if on_gpu:
            timed = {key: Variant(*values) for key, values in given.items()}
        else:
            timed = {key: Remote(args.threads, *values) for key, values in given.items()}
            for process in timed.values():
                process.wait()
        times = interleave({key: one.steps for key, one in timed.items()}, args.rounds)
        steps = STEPS_A_ROUND[args.device]
        times = {key: [t / steps for t in found] for key, found in times.items()}
        first = next(iter(precisions))
        wide = {name: row["ratio"] for name, row in rows_of(times, (first, BASE)).items()}
        rows = []
        for precision in precisions:
            same = {key: found for key, found in times.items() if key[0] == precision}
            for key, row in rows_of(same, (precision, BASE)).items():
                tensors, resident = timed[key].memory()
                row["variant"] = key[1]
                if on_gpu:
                    row = {"precision": precision, **row, f"of {first}": wide[key]}
                row["tensors MB"] = round(tensors / 2**20)
                if not on_gpu:
                    row["process MB"] = round(resident / 2**20)
                    timed[key].close()
                rows.append(row)
    report(
        f"Training step, {args.arch} shape",
        rows,
        args.output,
        tokens=args.tokens,
        length=args.length,
        rounds=args.rounds,
        **({"steps a round": steps} if on_gpu else {}),
    )


if __name__ == "__main__":
    main()
