"""Time of the optimizer's step, freezing of selected channels included.

    python benchmarks/optimizer_time.py --arch iwslt

Gradients are random and stay as they are; nothing but the update is timed. Freezing
is that of a stage that removes half of the parameters and more: gradients of frozen
weights are zeroed before the step, their values restored after it. Interleaved;
the figure is the ratio to fairseq's Adam on the same weights in the same round.
"""

import torch
from common import arguments, build_trainer, interleave, ratios, report, temporary_data
from step_time import SHAPES, SRP, STOCK, TRAINING, dimensions, shrinking


def stepper(trainer):
    """A function that makes one update from gradients that are there already."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trainer.get_model().parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer, stage = trainer.optimizer, trainer.stage
    if stage is None:
        return optimizer.step
    freezer = stage.freezer

    def step():
        freezer.mask_gradients()
        optimizer.step()
        freezer.restore()

    return step


def main():
    parser = arguments(__doc__, "")
    parser.add_argument("--arch", choices=SHAPES, default="multi30k")
    parser.set_defaults(rounds=60)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    common = dimensions(args.arch) + TRAINING
    variants = {
        "fairseq adam": STOCK,
        "srp_adam": SRP,
        "srp_adam, freezing": SRP,
    }
    steps = {}
    with temporary_data() as data:
        for name, options in variants.items():
            trainer = build_trainer(data, options + common)
            if "freezing" in name:
                shrinking(trainer)
            steps[name] = stepper(trainer)
            parameters = sum(p.numel() for p in trainer.get_model().parameters())
        times = interleave(steps, args.rounds)
    report(
        f"Optimizer step, {args.arch} shape",
        ratios(times, "fairseq adam"),
        args.output,
        parameters=parameters,
        rounds=args.rounds,
    )


if __name__ == "__main__":
    main()
