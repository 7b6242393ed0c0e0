"""Average the weights of several checkpoints of a run into one checkpoint.

    python src/average_checkpoints.py --inputs checkpoints/multi30k/base \\
        --num-epoch-checkpoints 5 --output checkpoints/multi30k/base/average.pt

The options are those of fairseq's script of the same name. --inputs names
checkpoints, or with --num-epoch-checkpoints (checkpoint<epoch>.pt) and
--num-update-checkpoints (checkpoint_<epoch>_<update>.pt) the one folder whose last
N are taken. All must be of one model: the same options, shapes and, after a cut,
the same channels; where weights were pruned, with the same ones removed.

The output has the weights and the options of the model, and no optimizer state. It
loads wherever a checkpoint does: generate.py, --pretrained-model, fairseq's tools.
As --restore-file it is a start with a new optimizer (add fairseq's
--reset-dataloader to begin with epoch 1). Its number of updates is that of the
input that was trained longest; "averaged" in it lists the inputs.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.average_checkpoints").main())

import argparse  # noqa: E402
import os  # noqa: E402
from typing import List, Optional  # noqa: E402

import torch  # noqa: E402

from .checkpoints.averaging import average_checkpoints, last_checkpoints, number_of  # noqa: E402
from .commandline.parsing import ArgumentParser, add_trust, run_writer  # noqa: E402
from .errors import UserError  # noqa: E402
from .files import atomic_write, check_output_file  # noqa: E402


def chosen_inputs(args) -> List[str]:
    """The files that the command line asks for.

    Raises:
        UserError: options that don't go together, too few or missing files, or an
            output that can't be written or is one of the inputs.
    """
    by_updates = args.num_update_checkpoints is not None
    number = args.num_update_checkpoints if by_updates else args.num_epoch_checkpoints
    option = f"--num-{'update' if by_updates else 'epoch'}-checkpoints"
    paths = args.inputs
    if number is None:
        if args.checkpoint_upper_bound is not None:
            raise UserError(
                f"--checkpoint-upper-bound {args.checkpoint_upper_bound}: needs "
                "--num-epoch-checkpoints or --num-update-checkpoints"
            )
        for path in paths:
            if os.path.isdir(path):
                raise UserError(
                    f"--inputs {path}: is a folder; say how many of its checkpoints with "
                    "--num-epoch-checkpoints or --num-update-checkpoints, or name files"
                )
    else:
        if number < 1:
            raise UserError(f"{option} {number}: must be at least 1")
        if len(paths) != 1 or not os.path.isdir(paths[0]):
            raise UserError(
                f"{option} {number}: needs one folder as --inputs, not {' '.join(paths)}"
            )
        paths = last_checkpoints(paths[0], number, by_updates, args.checkpoint_upper_bound)
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"--inputs {path}: no such file; give checkpoints (.pt)")
    check_output_file(args.output, *paths, named="one of the inputs")
    return paths


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--inputs",
        required=True,
        nargs="+",
        metavar="PATH",
        help="checkpoints, or a folder",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the average")
    numbers = parser.add_mutually_exclusive_group()
    for unit in ("epoch", "update"):
        numbers.add_argument(
            f"--num-{unit}-checkpoints",
            type=int,
            metavar="N",
            help=f"take the last N checkpoints by {unit} of the folder",
        )
    parser.add_argument(
        "--checkpoint-upper-bound",
        type=int,
        metavar="N",
        help="the last epoch (or number of updates) to take",
    )
    add_trust(parser, "--inputs")
    return parser


def run(args: argparse.Namespace) -> None:
    """Average, write, report.

    Raises:
        UserError: a mistake in an option or file; nothing is written.
    """
    paths = chosen_inputs(args)
    state = average_checkpoints(paths, args.trust_checkpoint)
    with atomic_write(args.output, "wb") as stream:
        torch.save(state, stream)
    updates = sorted(state["averaged"]["num_updates"])
    print(
        f"averaged {number_of(len(paths))}, {updates[0]} to {updates[-1]} updates "
        f"({', '.join(paths)}) into {args.output}"
    )


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    run_writer(get_parser(), run, arguments)
