"""Write a checkpoint as a sparse file: zero weights take no room.

    python src/export_sparse.py --path checkpoints/multi30k/sparse/checkpoint_best.pt \\
        --output checkpoints/multi30k/sparse/model.safetensors
    python src/generate.py data-bin/multi30k.de-en \\
        --path checkpoints/multi30k/sparse/model.safetensors --beam 5 --remove-bpe

The file holds the weights and the model's options, without the optimizer's state, each
weight matrix in the smallest of several encodings. It is read back and compared with
the checkpoint before it is kept. It is a safetensors file with checksums, and holds
no pickle. Every tool of this project and fairseq's own with --user-dir src read it in
place of a checkpoint; --finetune-from-model and --pretrained-model start from it.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.export_sparse").main())

import os  # noqa: E402
from typing import List, Optional  # noqa: E402

from .checkpoint_utils import check_equal, load_checkpoint, write_sparse  # noqa: E402
from .checkpoints.pretrained import check_finite  # noqa: E402
from .commandline.parsing import ArgumentParser, add_trust, run_writer  # noqa: E402
from .files import (
    check_output_file,  # noqa: E402
    new_file,  # noqa: E402
)


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--path", required=True, metavar="CHECKPOINT", help="checkpoint to write anew"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="sparse file to write")
    add_trust(parser, "--path")
    return parser


def run(args) -> None:
    """Check, write, report.

    Raises:
        UserError: a mistake in an option or file; nothing is written.
    """
    check_output_file(args.output, args.path)
    state = load_checkpoint(args.path, "--path", args.trust_checkpoint)
    check_finite(state["model"].items(), f"--path {args.path}")
    with new_file(args.output) as temporary:
        write_sparse(state, temporary, f"--path {args.path}")
        check_equal(temporary, state["model"], args.output)
    weights = {t.data_ptr(): t for t in state["model"].values()}.values()
    dense = sum(t.numel() * t.element_size() for t in weights)
    zeros = sum(int((t == 0).sum()) for t in weights)
    written = os.path.getsize(args.output)
    print(
        f"{args.output}: {written:,} bytes, {written / dense:.1%} of the weights' "
        f"{dense:,}; {zeros / sum(t.numel() for t in weights):.1%} of the numbers are zero"
    )


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    run_writer(get_parser(), run, arguments)
