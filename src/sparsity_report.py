"""How sparse a checkpoint is: density per layer, blocks, bytes.

    python src/sparsity_report.py --path checkpoints/multi30k/sparse/checkpoint_last.pt
    python src/sparsity_report.py --path checkpoints/multi30k/sparse/checkpoint_last.pt \\
        --pattern 4x1 --output reports

Reads a checkpoint of an SRP model, cut or not, or of fairseq's Transformer, and
counts the zeros in its weights; whatever put them there. The table has a row for
each layer whose weights can be pruned (linear layers and convolutions), one over all
of these, and one over all weights of the model: embeddings, biases and norms too. It
is printed and written as sparsity.csv (plain numbers) and sparsity.md; sparsity.png
shows the density, the share that remains, of every layer.

--pattern also counts the blocks that are zero as a whole, which is what sparse
layers profit from:

    NxM        blocks of N outputs and M inputs, as 4x1
    N:M        groups of M consecutive inputs, N of them zero, as 2:4
    channelx1  an input, with all outputs
    1xchannel  an output, with all inputs

A weight that two layers share is listed once, with the first of them.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.sparsity_report").main())

import re  # noqa: E402
from typing import List, Optional  # noqa: E402

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from .checkpoint_utils import load_checkpoint  # noqa: E402
from .checkpoints.rebuild import model_of  # noqa: E402
from .commandline.parsing import ArgumentParser, add_trust, ending_quietly, set_up_logging  # noqa: E402
from .errors import UserError  # noqa: E402
from .files import (  # noqa: E402
    atomic_write,  # noqa: E402
    check_output_folder,
    make_output_folder,
)
from .sparsity.errors import SparsityError  # noqa: E402
from .sparsity.picture import draw_density  # noqa: E402
from .sparsity.prunable import PRUNABLE  # noqa: E402
from .sparsity.pruning.patterns import parse_pattern  # noqa: E402
from .sparsity.report import notes, readable, sparsity_report, to_markdown  # noqa: E402


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--path", required=True, metavar="CHECKPOINT", help="of the model to report on"
    )
    parser.add_argument(
        "--pattern",
        metavar="PATTERN",
        help="count zero blocks of this pattern (default: count single weights only)",
    )
    parser.add_argument(
        "--layer-types",
        nargs="+",
        default=list(PRUNABLE),
        metavar="CLASS",
        help="classes of prunable layers, as prune_layer_type in a configuration; add "
        f"Embedding if embeddings were pruned (default: {' '.join(PRUNABLE)})",
    )
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="REGEX",
        help="only layers in whose names one of these is found, as fc1 or "
        "'decoder.*attn' (default: all)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where sparsity.{csv,md,png} go; made if it isn't there (default: the "
        "checkpoint's folder)",
    )
    add_trust(parser, "--path")
    return parser


def read_model(path: str, trust: bool = False) -> nn.Module:
    """The model of a checkpoint, its weights in the precision they are stored in.

    Raises:
        UserError: missing, damaged, unsafe, or of another kind of model.
    """
    state = load_checkpoint(path, "--path", trust)
    model = model_of(state, f"--path {path}")  # which gives old weights their new names
    stored = {name: value.dtype for name, value in state["model"].items() if torch.is_tensor(value)}
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(stored[name])
    return model


def write(output: Path, report: pd.DataFrame) -> None:
    """sparsity.csv, sparsity.md and sparsity.png in ``output``."""
    with atomic_write(str(output / "sparsity.csv"), encoding="utf-8") as stream:
        report.to_csv(stream, index=False)
    with atomic_write(str(output / "sparsity.md"), encoding="utf-8") as stream:
        stream.write(f"{to_markdown(report)}\n![density per layer](sparsity.png)\n")
    with atomic_write(str(output / "sparsity.png"), "wb") as stream:
        draw_density(report, stream)


def check_types(model: nn.Module, types: List[str]) -> None:
    """Refuse classes of which the model has no layer, such as mistyped ones.

    Raises:
        UserError: names the option, the class, and those of the model's layers.
    """
    layers = [m for m in model.modules() if m._parameters.get("weight") is not None]
    known = {above.__name__ for layer in layers for above in type(layer).__mro__}
    for name in types:
        if name not in known:
            have = ", ".join(sorted({type(layer).__name__ for layer in layers}))
            raise UserError(f"--layer-types {name}: the model's layers are {have}")


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    set_up_logging(sys.stderr)
    args = get_parser().parse_args(arguments)
    output = args.output or Path(args.path).resolve().parent
    for expression in args.names or ():
        try:
            re.compile(expression)
        except re.error as error:
            raise UserError(f"--names {expression}: is no regular expression ({error})") from None
    if args.pattern is not None:
        try:
            parse_pattern(args.pattern)
        except SparsityError as error:
            raise UserError(f"--{str(error)}") from None
    with ending_quietly("the report is not complete"):
        model = read_model(args.path, args.trust_checkpoint)
        check_output_folder(str(output), "--output")
        if args.layer_types != list(PRUNABLE):
            check_types(model, args.layer_types)
        try:
            report = sparsity_report(model, args.pattern, args.names, types=args.layer_types)
        except SparsityError as error:
            about_names = str(error).startswith("names:")
            where = "--" if about_names else f"--path {args.path}: "
            raise UserError(f"{where}{error}") from None
        make_output_folder(str(output), "--output")
        write(output, report)
        print(readable(report).to_string(index=False))
        print("\n".join(notes(report)))
        print(f"wrote {output}/sparsity.csv, sparsity.md and sparsity.png")
