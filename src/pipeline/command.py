"""compress.py: what it refuses, plans and runs."""

import argparse
import json
import logging
import os
import shutil
import sys
from dataclasses import asdict
from typing import List, Optional

from fairseq import options

from ..commandline.parsing import (
    ArgumentParser,
    add_trust,
    ending_quietly,
    fairseq_parser,
    set_up_logging,
)
from ..commandline.parsing import parse as parse_options
from ..errors import UserError
from ..files import atomic_write, check_output_folder, make_output_folder
from ..training.inherited_options import with_inherited
from .base import CODES, PIECES, Base, read_base
from .headline import Headline, read_headline
from .recipe import EXPORT, Goal, Recipe, exports
from .runner import Pipeline, StepFailed, typed
from .steps import Step, content_digest

MARK = "compress.json"  # in the pipeline's folder: what it is of
HEADLINE = "headline.json"
QUANTIZATIONS = ("int8", "int16", "bfloat16", "float16", "float32")


def get_parser(description: Optional[str] = None) -> ArgumentParser:
    """The options of compress.py."""
    parser = ArgumentParser(
        description=description,
        usage="%(prog)s DATA --path CHECKPOINT --output DIR --compression-rate R | --megabytes M "
        "[options] [-- options of fairseq's training]",
    )
    parser.add_argument("data", metavar="DATA", help="folder of binarized data")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="the trained model")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder of all that is made, a step each"
    )
    for side in ("source", "target"):
        parser.add_argument(
            f"-{side[0]}", f"--{side}-lang", help=f"{side} language (default: as in DATA)"
        )
    group = parser.add_argument_group("how small, one of these")
    group.add_argument(
        "--compression-rate",
        type=float,
        metavar="R",
        help="share of the uncut model's parameters to keep, as 0.2",
    )
    group = parser.add_argument_group("vocabulary and text")
    group.add_argument(
        "--max-types",
        type=int,
        metavar="N",
        help="trim the vocabulary to so many types, see trim_vocabulary.py; text is split anew "
        "with --bpe-codes or --sentencepiece-model",
    )
    group.add_argument("--bpe-codes", metavar="FILE", help="codes of subword-nmt of the data")
    group.add_argument("--sentencepiece-model", metavar="FILE", help="SentencePiece's, likewise")
    group.add_argument(
        "--lowercase", action="store_true", help="the data are lower-cased; so is text for BLEU"
    )
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="passes over the training data in all, a third of them while pruning (default: 30)",
    )
    group.add_argument(
        "--quick", action="store_true", help="a smoke run: every step, hardly any training"
    )
    group = parser.add_argument_group("test and deployment")
    group.add_argument(
        "--gen-subset", default="test", metavar="SUBSET", help="set to test with (default: test)"
    )
    group.add_argument(
        "--reference",
        metavar="FILE",
        help="its raw references, one a line (default: raw.SUBSET.LANG in DATA, else its target "
        "side, detokenized)",
    )
    group.add_argument("--beam", type=int, default=5, metavar="N", help="beam size (default: 5)")
    group.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="int8",
        help="of the exported model (default: int8)",
    )
    group.add_argument(
        "--no-vocabulary-map", action="store_true", help="export without a vocabulary map"
    )
    group = parser.add_argument_group("running")
    group.add_argument(
        "--dry-run", action="store_true", help="print what would be done, and do nothing"
    )
    add_trust(group, "--path")
    return parser


def parse(arguments: List[str], description: Optional[str] = None) -> argparse.Namespace:
    """Options of compress.py, those of trainings after ``--`` as ``training``."""
    own, training = list(arguments), []
    if "--" in own:
        place = own.index("--")
        own, training = own[:place], own[place + 1 :]
    args = get_parser(description).parse_args(own)
    args.training = training
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what the command line alone rules out.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    targets = {"--compression-rate": args.compression_rate}
    given = [option for option, value in targets.items() if value is not None]
    if len(given) != 1:
        problem = f"{' '.join(given)}: exclude each other" if given else "no target"
        raise UserError(f"{problem}; give one of {', '.join(targets)}, say how small")
    for option, value, least in (
        ("--max-types", args.max_types, 1),
        ("--epochs", args.epochs, 2),
        ("--beam", args.beam, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{option} {value}: must be at least {least}")
    if args.quick and args.epochs:
        raise UserError(f"--epochs {args.epochs}: has no part in --quick; leave one of them out")
    rate = args.compression_rate
    if not 0 < rate < 1:
        raise UserError(f"--compression-rate {rate:g}: must be in (0, 1), the share to keep")
    if args.bpe_codes and args.sentencepiece_model:
        raise UserError("--bpe-codes and --sentencepiece-model: exclude each other")
    for option, path in (
        ("--bpe-codes", args.bpe_codes),
        ("--sentencepiece-model", args.sentencepiece_model),
        ("--reference", args.reference),
    ):
        if path is not None and not os.path.isfile(path):
            raise UserError(f"{option} {path}: no such file")
    check_output_folder(args.output, "--output")


def check_base(args, base: Base) -> None:
    """Refuse options that don't fit the data.

    Raises:
        UserError: names the option and what the data have.
    """
    for option, given, splitting in (
        ("--bpe-codes", args.bpe_codes, CODES),
        ("--sentencepiece-model", args.sentencepiece_model, PIECES),
    ):
        if given and base.splitting != splitting:
            raise UserError(
                f"{option} {given}: the data's dictionaries hold no types of {splitting}; leave "
                "it out"
            )
        if args.max_types and base.splitting == splitting and not given:
            raise UserError(
                f"--max-types {args.max_types}: text has to be split anew; add {option}, that "
                "the data were made with"
            )


def check_trainings(args, base: Base, steps: List[Step]) -> None:
    """Refuse options for fairseq's training that it does not know.

    Raises:
        UserError: names the option.
    """
    first = next(step for step in steps if os.path.basename(step.command[0]) == "pruning.py")
    words = list(first.command[1:])
    words[words.index("--pretrained-model") + 1] = args.path  # another one may be to be made
    parse_options(fairseq_parser(options.get_training_parser), with_inherited(words))


def check_disk(args, base: Base) -> None:
    """Refuse a folder with too little room for what will be written.

    Raises:
        UserError: says how much is needed, and how much is there.
    """
    place = os.path.abspath(args.output)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    data = sum(entry.stat().st_size for entry in os.scandir(base.data) if entry.is_file())
    # a checkpoint has a weight and two moments, a run two checkpoints and one being written
    needed = 3 * 3 * 4 * base.parameters * 3 + 3 * data
    made = sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(args.output)
        for name in names
    )
    free = shutil.disk_usage(place).free
    if free + made < needed:
        raise UserError(
            f"--output {args.output}: about {needed / 1e9:.1f} GB are needed there and "
            f"{free / 1e9:.1f} GB are free; make room, or give a folder on another disk"
        )


def check_ours(args) -> None:
    """Refuse a folder that holds something else, or what was made of another model.

    Raises:
        UserError: says what it holds.
    """
    folder, what = args.output, f"--output {args.output}"
    if not os.path.isdir(folder) or not os.listdir(folder):
        return
    try:
        with open(os.path.join(folder, MARK), encoding="utf-8") as stream:
            mark = json.load(stream)
        path, digest = mark["path"], mark["model"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            f"{what}: holds something else than a compression; give a new folder"
        ) from None
    if digest != content_digest(args.path):
        raise UserError(
            f"{what}: holds the compression of another model, {path}; give that, or another folder"
        )


def mark_ours(args) -> None:
    """Say in the folder what it is of."""
    make_output_folder(args.output, "--output")
    with atomic_write(os.path.join(args.output, MARK), encoding="utf-8") as stream:
        mark = {"path": args.path, "data": args.data, "model": content_digest(args.path)}
        json.dump(mark, stream, indent=1)
        stream.write("\n")


def describe(args, base: Base, goal: Goal, steps: List[Step]) -> List[str]:
    """What will be done, in words and commands."""
    layers = len(base.model.encoder.layers), len(base.model.decoder.layers)
    lines = [
        f"{args.path}: {base.parameters:,} parameters, {layers[0]}+{layers[1]} layers, "
        f"{base.languages[0]} to {base.languages[1]}; {base.pairs['train']:,} training pairs",
        f"to keep: {goal.rate:.1%} of the uncut model's parameters",
    ]
    if not exports():
        lines.append("ctranslate2 is not installed: no export, the result runs in PyTorch")
    return lines + [f"{step.name}: {typed(step.command)}" for step in steps]


def compress(args: argparse.Namespace) -> Optional[Headline]:
    """Do what the options ask for.

    Returns:
        The figures in the end; None of a dry run.

    Raises:
        UserError: a mistake in an option or file.
        StepFailed: a step ended in an error.
    """
    check(args)
    languages = args.source_lang, args.target_lang
    base = read_base(args.data, args.path, languages, args.gen_subset, args.trust_checkpoint)
    check_base(args, base)
    check_ours(args)
    check_disk(args, base)
    goal = Goal(args.compression_rate)
    goal.check(base)
    steps = Recipe(args, base).build(goal)
    check_trainings(args, base, steps)
    for line in describe(args, base, goal, steps) if args.dry_run else ():
        print(line)
    if args.dry_run:
        return None
    for line in describe(args, base, goal, []):
        print(line)
    mark_ours(args)
    pipeline = Pipeline(args.output, steps)
    pipeline.run()
    headline = _headline(args, base, steps)
    with atomic_write(os.path.join(args.output, HEADLINE), encoding="utf-8") as stream:
        json.dump(asdict(headline), stream, indent=1)
        stream.write("\n")
    print("\n".join(headline.lines()))
    return headline


def _headline(args, base: Base, steps: List[Step]) -> Headline:
    folders = {s.name.partition("-")[2]: os.path.join(args.output, s.name) for s in steps}
    export = folders.get("export")
    return read_headline(
        (folders["test-base"], folders["test"]),
        export and os.path.join(export, EXPORT),
        "none" if base.splitting == PIECES else "moses",
        base.languages[1],
        args.lowercase,
    )


def main(arguments: List[str], description: Optional[str] = None) -> Optional[int]:
    """The command line tool; returns its status."""
    set_up_logging(sys.stderr)
    for name in ("fairseq", __name__.partition(".")[0]):  # steps say it in their logs
        logging.getLogger(name).setLevel(logging.WARNING)
    args = parse(arguments, description)
    with ending_quietly("the same command goes on"):
        try:
            compress(args)
        except StepFailed as error:
            print(error, flush=True)
            return 1
    return None
