"""Time of the optimizer's step, freezing of selected channels included.

    python benchmarks/optimizer_time.py --arch iwslt

Gradients are random and stay as they are. Freezing is that of a stage that removes
half of the parameters and more. "step" is the update alone and whatever an optimizer
needs around it to keep frozen weights as they are; "norm and step" is that and the
gradient norm before it, without frozen weights, which fairseq's trainer takes in every
update. "masking" is how weights are frozen under any other optimizer: their gradients
are zeroed before the norm, their values restored after the step.

Interleaved; the figure is the ratio to fairseq's Adam doing the same on the same weights
in the same round. "srp_adam, freezing" puts weight decay off and pays for it in one step
of many, which a median does not show; with --weight-decay 10 it pays in every step.

On a GPU (--device cuda) masking is what srp_adam does, too, in one operator for all
weights, so there is no other freezing; five steps are timed in one and the GPU waited for.
"""

import torch
from common import (
    arguments,
    build_trainer,
    check,
    interleave,
    ratios,
    report,
    temporary_data,
    wait,
)
from step_time import SHAPES, SRP, STEPS_A_ROUND, STOCK, TRAINING, dimensions, shrinking

FREEZING = "srp_adam, freezing"
VARIANTS = {
    "fairseq adam": STOCK,
    "srp_adam": SRP,
    FREEZING: SRP,
    "srp_adam, masking": SRP,
}
BASE = "fairseq adam"


def steppers(trainer, masking: bool, device: str) -> dict:
    """What is timed, by its name; from gradients that are there already."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trainer.get_model().parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient.to(parameter.device)
    optimizer, runs = trainer.optimizer, trainer.pruning_runs
    stage = runs[0].stage if runs else None
    if stage is None:
        step = optimizer.step
    elif masking:

        def step():
            stage.freezer.mask_gradients()
            optimizer.step()
            stage.freezer.restore()

    else:

        def step():
            assert optimizer.freeze(stage.freezer)
            optimizer.step()

    def norm_and_step():
        trainer.clip_grad_norm(0.0)
        optimizer.step()
        if masking:
            stage.freezer.restore()

    if masking:
        runs[0]._optimizer_freezes = lambda trainer: False

    def repeated(call):
        def run():
            for _ in range(STEPS_A_ROUND[device]):
                call()
            wait(device)

        return run

    return {"step": repeated(step), "norm and step": repeated(norm_and_step)}


def main():
    parser = arguments(__doc__, gpu=True)
    parser.add_argument("--arch", choices=SHAPES, default="multi30k", help="shape of the model")
    parser.add_argument("--weight-decay", default="1e-4", help="of all variants")
    parser.set_defaults(rounds=60)
    args = parser.parse_args()
    check(parser, args)
    torch.set_num_threads(args.threads)

    common = dimensions(args.arch) + TRAINING + ["--weight-decay", args.weight_decay]
    timed = {}
    with temporary_data() as data:
        for name, options in VARIANTS.items():
            if args.device == "cuda" and name == FREEZING:
                continue
            trainer = build_trainer(data, options + common, args.device)
            if name not in (BASE, "srp_adam"):
                shrinking(trainer)
            for what, step in steppers(trainer, "masking" in name, args.device).items():
                timed[what, name] = step
            parameters = sum(p.numel() for p in trainer.get_model().parameters())
        times = interleave(timed, args.rounds)
    steps = STEPS_A_ROUND[args.device]
    times = {key: [t / steps for t in found] for key, found in times.items()}
    rows = []
    for what in ("step", "norm and step"):
        same = {name: t for (w, name), t in times.items() if w == what}
        rows += [{"timed": what, **row} for row in ratios(same, BASE)]
    report(
        f"Optimizer step, {args.arch} shape",
        rows,
        args.output,
        parameters=parameters,
        weight_decay=args.weight_decay,
        rounds=args.rounds,
    )


if __name__ == "__main__":
    main()
