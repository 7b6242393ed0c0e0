"""Write the adapters of a checkpoint to a small file, or fuse them with its weights.

    python src/export_adapters.py --path checkpoints/multi30k/adapted/checkpoint_best.pt \\
        --output checkpoints/multi30k/adapted/adapters.pt
    python src/generate.py data-bin/multi30k.de-en \\
        --path checkpoints/multi30k/stage2/checkpoint_last.pt \\
        --adapter-path checkpoints/multi30k/adapted/adapters.pt --remove-bpe

The file holds what was learned (adapters and the biases of adapted layers), one bit
for each channel of the uncut model, and a fingerprint of the base. It applies to the
checkpoint that was the --pretrained-model of the training, also where adapters and
widths were pruned together, and where that is a model of fairseq's transformer.

With --fuse the output is a checkpoint instead, in which the updates are added to the
weights: a plain cut model for every tool that reads one, without optimizer state.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.export_adapters").main())

import os  # noqa: E402
from typing import List, Optional  # noqa: E402

import torch  # noqa: E402

from .adapters import adapted_layers, report  # noqa: E402
from .checkpoint_utils import load_checkpoint  # noqa: E402
from .checkpoints import adapters as adaptation  # noqa: E402
from .checkpoints.averaging import without_weights  # noqa: E402
from .checkpoints.pretrained import check_not_shrinking  # noqa: E402
from .checkpoints.rebuild import model_of  # noqa: E402
from .checkpoints.zeros import fuse_adapters  # noqa: E402
from .commandline.parsing import ArgumentParser, add_trust, run_writer  # noqa: E402
from .errors import UserError  # noqa: E402
from .files import (
    atomic_write,  # noqa: E402
    check_output_file,  # noqa: E402
)


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--path", required=True, metavar="CHECKPOINT", help="checkpoint with adapters"
    )
    parser.add_argument("--output", required=True, metavar="FILE.pt", help="file to write")
    parser.add_argument(
        "--fuse",
        action="store_true",
        help="write a whole checkpoint with the updates added to the weights",
    )
    add_trust(parser, "--path")
    return parser


def run(args) -> None:
    """Check, write, report.

    Raises:
        UserError: a mistake in an option or file; nothing is written.
    """
    check_output_file(args.output, args.path)
    state = load_checkpoint(args.path, "--path", args.trust_checkpoint)
    model = model_of(state, f"--path {args.path}")
    layers = adapted_layers(model)
    if not layers:
        raise UserError(
            f"--path {args.path}: has no adapters; give a checkpoint trained with --adapter"
        )
    check_not_shrinking(model, f"--path {args.path}")
    total = report(model)[-1]  # before they are fused
    if args.fuse:
        head = without_weights(state)
        with atomic_write(args.output, "wb") as stream:
            fused = fuse_adapters(model, f"--path {args.path}")
            torch.save({**head, "model": fused.state_dict()}, stream)
        done = "fused"
    else:
        adaptation.write_adapters(model, args.output, state)
        done = "written"
    print(
        f"adapters of {len(layers)} layers {done}: {args.output}, "
        f"{os.path.getsize(args.output):,} bytes; learned {total['adapter']:,} adapter "
        f"parameters and {total['biases']:,} biases ({total['mask_bits']:,} mask bits), "
        f"{total['percent']:.2f} % of the "
        f"{total['base']:,} that full finetuning learns and stores"
    )


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    run_writer(get_parser(), run, arguments)
