"""Floating-point operations of a translation, from the shapes of the weights.

    python src/flops_counter.py checkpoints/multi30k/stage2/checkpoint_last.pt \\
        --source-length 50 --target-length 50

Convention: FLOPs of matrix products only, 2·m·n·k for ``[m, k] @ [k, n]`` (two
per multiply-add), as torch's ``FlopCounterMode`` counts. Embedding look-ups,
biases, softmax, layer normalization and activations are not counted. Lengths
are tokens of one sentence with its end-of-sentence token. By this convention
``transformer_iwslt_de_en`` with dictionaries of 8848 and 6632 types takes 3.56
GFLOPs (1.78 G multiply-adds) for 50 source and 50 target tokens, generated one
by one with cached keys and values.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.flops_counter").main())

from typing import List, Optional  # noqa: E402

from .checkpoints.rebuild import load_model  # noqa: E402
from .commandline.parsing import ArgumentParser, add_trust, ending_quietly, set_up_logging  # noqa: E402
from .errors import UserError  # noqa: E402
from .evaluation.flops import count_flops  # noqa: E402


def main(arguments: Optional[List[str]] = None) -> None:
    set_up_logging(sys.stderr)
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="of an SRP model or fairseq Transformer")
    for option, default, unit in (
        ("--source-length", 50, "source tokens"),
        ("--target-length", 50, "target tokens"),
        ("--beam", 1, "beam size"),
    ):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"{unit} (default: {default})"
        )
    parser.add_argument(
        "--teacher-forced",
        action="store_true",
        help="the whole target at once instead of token by token",
    )
    add_trust(parser, "CHECKPOINT")
    args = parser.parse_args(arguments)
    for name in ("source_length", "target_length", "beam"):
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(args, name)}: must be at least 1")
    if args.teacher_forced and args.beam > 1:
        raise UserError(f"--beam {args.beam}: --teacher-forced has no beam")
    with ending_quietly("nothing was counted"):
        model = load_model(args.checkpoint, args.trust_checkpoint)
        flops = count_flops(
            model, args.source_length, args.target_length, not args.teacher_forced, args.beam
        )
        how = "teacher-forced" if args.teacher_forced else f"generated, beam {args.beam}"
        print(f"source {args.source_length} tokens, target {args.target_length}, {how}")
        for part, value in flops.items():
            name = part.replace("_", " ")
            print(f"{name:<26} {value / 1e6:>12.3f} MFLOPs {value / flops['total']:>7.1%}")
