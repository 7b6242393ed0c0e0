"""Time of a training step: SRP dense, while shrinking and in bfloat16, against fairseq.

    python benchmarks/step_time.py --arch multi30k

All variants take the same batch through fairseq's trainer, interleaved; the
figure is the ratio to fairseq's transformer with fairseq's Adam in the same round.
"""

import torch
from common import (
    arguments,
    build_trainer,
    interleave,
    ratios,
    report,
    synthetic_batch,
    temporary_data,
)

SHAPES = {
    "multi30k": (256, 512, 4, 3),
    "iwslt": (512, 1024, 4, 6),
}

TRAINING = ["--lr", "1e-4", "--adam-betas", "(0.9,0.98)", "--weight-decay", "1e-4"]
TRAINING += ["--label-smoothing", "0.1"]
SRP = ["--task", "SRPtranslation", "--arch", "srp", "--criterion", "srp"]
SRP += ["--optimizer", "srp_adam", "--weighted-layernorm"]
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
    from src.connectivity.stage import PruningStage, StagePlan

    model = trainer.get_model()
    plan = StagePlan(compression_rate=0.3, stage=0, period=1)
    trainer.task.stage = PruningStage(plan, model)
    generator = torch.Generator().manual_seed(1)
    scores = {
        name: torch.rand(group.width, generator=generator)
        for name, group in channel_groups(model).items()
    }
    trainer.task.stage.begin(scores, steps=10**6)
    trainer.task.stage.advance()

    class Endless:
        epoch = 1

        @staticmethod
        def end_of_epoch():
            return False

    trainer._epoch_itr = Endless()


def main():
    parser = arguments(__doc__, "")
    parser.add_argument("--arch", choices=SHAPES, default="multi30k")
    parser.add_argument("--tokens", type=int, default=4096, help="target tokens a batch")
    parser.add_argument("--length", type=int, default=25, help="tokens a sentence")
    parser.add_argument("--variants", default="", help="comma separated (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    common = dimensions(args.arch) + TRAINING
    variants = {
        "fairseq transformer": STOCK,
        "SRP dense": SRP,
        "SRP shrinking": SRP,
    }
    if torch.cpu._is_avx512_bf16_supported():
        variants["SRP dense, --cpu-bf16"] = SRP + ["--cpu-bf16"]
        variants["SRP shrinking, --cpu-bf16"] = SRP + ["--cpu-bf16"]
    chosen = args.variants.split(",") if args.variants else list(variants)
    with temporary_data() as data:
        steps = {}
        for name, options in variants.items():
            if name not in chosen:
                continue
            trainer = build_trainer(data, options + common)
            if "shrinking" in name:
                shrinking(trainer)
            types = len(trainer.task.source_dictionary)
            batch = synthetic_batch(args.tokens, args.length, types, types)
            steps[name] = lambda t=trainer, b=batch: t.train_step([b])
        times = interleave(steps, args.rounds)
    report(
        f"Training step, {args.arch} shape",
        ratios(times, "fairseq transformer"),
        args.output,
        tokens=args.tokens,
        length=args.length,
        rounds=args.rounds,
    )


if __name__ == "__main__":
    main()
