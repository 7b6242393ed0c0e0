"""Parameters asked for and achieved, in two stages and at once.

    python benchmarks/compression_rates.py

Models are built and really cut (channels chosen at random) for each rate.
"""

import argparse

import torch
from common import arguments, check, numbers, report

SHAPES = {
    # embedding, feed-forward, heads, layers, source and target types
    "srp_multi30k_de_en": (256, 512, 4, 3, 4536, 3480),
    "srp_iwslt_de_en": (512, 1024, 4, 6, 8848, 6632),
}


class Task:
    """The dictionaries that building a model needs."""

    def __init__(self, source: int, target: int):
        from fairseq.data import Dictionary

        for side, types in (("source", source), ("target", target)):
            dictionary = Dictionary()
            for i in range(types - dictionary.nspecial):
                dictionary.add_symbol(f"w{i}")
            setattr(self, f"{side}_dictionary", dictionary)


def build(arch: str):
    from fairseq import models

    import src  # noqa: F401

    task = Task(*SHAPES[arch][4:])
    options = argparse.Namespace(arch=arch, _name=arch, share_decoder_input_output_embed=True)
    return models.build_model(options, task)


def prune(model, rate: float, stage: int) -> int:
    from src.connectivity.budget import plan_widths
    from src.connectivity.cut import cut
    from src.connectivity.groups import channel_groups
    from src.connectivity.selection import select

    generator = torch.Generator().manual_seed(1)
    scores = {
        name: torch.rand(group.width, generator=generator)
        for name, group in channel_groups(model).items()
    }
    cut(model, select(model, scores, plan_widths(model, rate, stage)))
    return sum(p.numel() for p in model.parameters())


def main():
    parser = arguments(__doc__, rounds=None)
    parser.add_argument("--rates", default="0.5,0.2,0.1,0.05", help="compression rates")
    args = parser.parse_args()
    check(parser, args)
    rates = numbers(parser, "--rates", args.rates)
    rows = []
    for arch in SHAPES:
        total = sum(p.numel() for p in build(arch).parameters())
        for rate in rates:
            model = build(arch)
            after_stage_1 = prune(model, rate, 1)
            two = prune(model, rate, 2)
            one = prune(build(arch), rate, 0)
            rows.append(
                {
                    "arch": arch,
                    "uncut": f"{total:,}",
                    "asked": rate,
                    "after stage 1": f"{after_stage_1:,}",
                    "after stage 2": f"{two:,}",
                    "achieved": f"{two / total:.5f}",
                    "off": f"{two / total / rate - 1:+.3%}",
                    "at once": f"{one / total:.5f}",
                }
            )
    report("Compression rates asked for and achieved", rows, args.output)


if __name__ == "__main__":
    main()
