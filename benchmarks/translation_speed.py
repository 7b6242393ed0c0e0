"""Translation speed of several checkpoints, side by side, in PyTorch.

    python benchmarks/translation_speed.py data-bin/multi30k.de-en \\
        checkpoints/multi30k/base/checkpoint_best.pt \\
        checkpoints/multi30k/finetuned/checkpoint_best.pt

Every model translates the same sentences once a round, in a new random order
each round; the figure is the ratio of tokens per second to the first checkpoint's
in the same round, with fairseq's beam search.
"""

import statistics

import torch
from common import arguments, interleave, report


def main():
    parser = arguments(__doc__, "")
    parser.add_argument("data", help="fairseq data folder")
    parser.add_argument("checkpoints", nargs="+", help="the first is the base")
    parser.add_argument("--subset", default="test", help="part of the data")
    parser.add_argument("--sentences", type=int, default=256, help="how many of them")
    parser.add_argument("--batch-size", type=int, default=64, help="sentences a batch")
    parser.add_argument("--beam", type=int, default=5, help="beam size")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from fairseq import checkpoint_utils
    from fairseq.dataclass.configs import GenerationConfig

    import src  # noqa: F401

    overrides = {"data": args.data, "eval_bleu": False}
    variants, tokens, sizes = {}, {}, {}
    batches = None
    for path in args.checkpoints:
        models, _, task = checkpoint_utils.load_model_ensemble_and_task(
            [path], arg_overrides=overrides
        )
        if batches is None:
            task.load_dataset(args.subset)
            dataset = task.dataset(args.subset)
            order = dataset.ordered_indices()[: args.sentences]
            batches = [
                dataset.collater([dataset[i] for i in order[start : start + args.batch_size]])
                for start in range(0, len(order), args.batch_size)
            ]
        sizes[path] = sum(p.numel() for p in models[0].parameters())
        models[0].make_generation_fast_(beamable_mm_beam_size=None, need_attn=False)
        generator = task.build_generator(models, GenerationConfig(beam=args.beam))

        def translate(path=path, task=task, generator=generator, models=models):
            tokens[path] = sum(
                len(hypotheses[0]["tokens"])
                for batch in batches
                for hypotheses in task.inference_step(generator, models, batch)
            )

        variants[path] = translate
    times = interleave(variants, args.rounds, warmup=1)
    base = args.checkpoints[0]
    rows = []
    for path, seconds in times.items():
        speed = [tokens[path] / s for s in seconds]
        quotients = [v * b / tokens[base] for v, b in zip(speed, times[base])]
        quartiles = statistics.quantiles(quotients, n=4)
        rows.append(
            {
                "checkpoint": path,
                "parameters": sizes[path],
                "tokens/s": round(statistics.median(speed)),
                "speed-up": round(statistics.median(quotients), 2),
                "quartiles": f"{quartiles[0]:.2f}-{quartiles[2]:.2f}",
            }
        )
    report(
        "Translation speed",
        rows,
        args.output,
        sentences=args.sentences,
        batch=args.batch_size,
        beam=args.beam,
        rounds=args.rounds,
    )


if __name__ == "__main__":
    main()
