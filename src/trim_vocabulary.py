"""Trim a model's vocabulary to what its data need, or extend it.

    python src/trim_vocabulary.py data-bin/multi30k.de-en \\
        --path checkpoints/multi30k/base/checkpoint_best.pt \\
        --bpe-codes data-bin/multi30k.text/code --max-types 2000 \\
        --output data-bin/multi30k.trimmed --output-checkpoint checkpoints/trimmed.pt

Without limits the types go that the training data never use. With --max-types or
--min-count the rarest go too, and text is split anew into what is left: --bpe-codes
or --sentencepiece-model says how the data's tokens were made. Special types, language
tags, types of one character or byte and those of --keep-types stay, and so does what
nothing else can write: no token becomes unknown. Where source and target have one
dictionary, both sides count.

The new folder has all data sets, dictionaries, what an encoder needs to split text alike
(vocabulary.LANG, for SentencePiece a model too) and the other files of the old one. The
new checkpoint has the rows of the types that stay, bit for bit, and no optimizer's state:
start from it with --pretrained-model. Scores of translations rise by what the types that
went had of the probability.

--dry-run prints what each limit would bring. --extend DICT adds the types of DICT.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.trim_vocabulary").main())

import argparse  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import time  # noqa: E402
from typing import List, Optional  # noqa: E402

import pandas  # noqa: E402

from .checkpoints.pretrained import check_dictionaries  # noqa: E402
from .checkpoints.vocabulary_record import RECORD  # noqa: E402
from .checks.data import task_of  # noqa: E402
from .commandline.parsing import ArgumentParser, add_trust, run_writer  # noqa: E402
from .errors import UserError  # noqa: E402
from .vocabulary import extension, output, tables, trimming  # noqa: E402
from .vocabulary.binarized import DataFolder  # noqa: E402
from .vocabulary.segmentation import make_splitter  # noqa: E402
from .vocabulary.selection import Limits, read_types  # noqa: E402

logger = logging.getLogger(__name__)


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("data", metavar="DATA", help="folder of binarized data")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="the model")
    parser.add_argument("--output", metavar="DIR", help="folder to make, with the new data")
    parser.add_argument("--output-checkpoint", metavar="FILE", help="the new model")
    parser.add_argument(
        "-s", "--source-lang", metavar="LANG", help="of DATA, where its names don't say it"
    )
    parser.add_argument("-t", "--target-lang", metavar="LANG", help="the same of the target")
    parser.add_argument(
        "--bpe-codes", metavar="FILE", help="codes of subword-nmt that the data were split with"
    )
    parser.add_argument(
        "--sentencepiece-model", metavar="FILE", help="SentencePiece model, likewise"
    )
    group = parser.add_argument_group("what goes")
    group.add_argument(
        "--max-types",
        type=int,
        metavar="N",
        help="most types of a dictionary, special ones included; the rarest beyond go",
    )
    group.add_argument(
        "--min-count",
        type=int,
        default=1,
        metavar="N",
        help="types that the training data have less often go (default: 1, the unused ones)",
    )
    group.add_argument(
        "--keep-types", metavar="FILE", help="types that stay, one a line (tags, for example)"
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing; print types against parameters, tokens a sentence and decoding steps",
    )
    group = parser.add_argument_group("what comes")
    group.add_argument(
        "--extend",
        nargs="+",
        metavar="DICT",
        help="add the types of this file (a dict.txt, or one type a line) at the end of the "
        "dictionaries, or of two files those of source and target; text is split anew with "
        "--bpe-codes or --sentencepiece-model, which may be new ones",
    )
    group.add_argument(
        "--initialize",
        choices=extension.INITIALIZATIONS,
        default="mean",
        help="rows of new types: the mean of the types that spell them so far (default), or "
        "random as fairseq's; a type that nothing spells is always random",
    )
    group.add_argument("--seed", type=int, default=1, help="of random rows (default: 1)")
    add_trust(parser, "--path")
    return parser


def check(args) -> None:
    """Refuse options that don't go together and outputs that can't be made.

    Raises:
        UserError: names the option, its value and what to do.
    """
    if args.max_types is not None and args.max_types < 1:
        raise UserError(f"--max-types {args.max_types}: must be at least 1")
    if args.min_count < 1:
        raise UserError(f"--min-count {args.min_count}: must be at least 1")
    splits = args.bpe_codes or args.sentencepiece_model
    if args.min_count > 1 and not splits:
        raise UserError(
            f"--min-count {args.min_count}: takes types that the data use, so text must be "
            "split anew; add --bpe-codes or --sentencepiece-model"
        )
    if args.extend:
        for option, given in (
            ("--max-types", args.max_types is not None),
            ("--min-count", args.min_count > 1),
            ("--keep-types", args.keep_types),
            ("--dry-run", args.dry_run),
        ):
            if given:
                raise UserError(f"{option}: has no part in --extend; do one after the other")
        if len(args.extend) > 2:
            raise UserError(
                f"--extend {' '.join(args.extend)}: give one file for both dictionaries, or "
                "two, of source and target"
            )
    if args.dry_run:
        if args.output or args.output_checkpoint:
            raise UserError("--dry-run: writes nothing; leave --output and --output-checkpoint out")
        return
    for option, given in (
        ("--output", args.output),
        ("--output-checkpoint", args.output_checkpoint),
    ):
        if not given:
            raise UserError(f"{option}: is missing; name what to write, or add --dry-run")
    output.check_outputs(args.output, args.output_checkpoint)


def run(args: argparse.Namespace) -> None:
    """Check, change, write, report.

    Raises:
        UserError: a mistake in an option or file; nothing is written.
    """
    check(args)
    splitter = make_splitter(args.bpe_codes, args.sentencepiece_model)
    if os.pathsep in args.data and not os.path.isdir(args.data):
        raise UserError(f"data {args.data}: give one folder")
    task = task_of(args.data, args.source_lang, args.target_lang)
    dictionaries = task.source_dictionary, task.target_dictionary
    origin = f"--path {args.path}"
    state = tables.map_checkpoint(args.path, "--path", args.trust_checkpoint)
    check_dictionaries(state, task, origin)
    tables.check_selectable(state, origin)
    joined = dictionaries[0] == dictionaries[1]
    if tables.share_one_table(state) and not joined:
        raise UserError(
            f"{origin}: has one table for source and target, but the dictionaries of "
            f"{args.data} differ; give the data it was trained on"
        )
    languages = task.cfg.source_lang, task.cfg.target_lang
    data = DataFolder(args.data, languages, dictionaries)
    if args.extend:
        extend(args, data, state, joined, splitter)
    else:
        trim(args, data, state, joined, splitter)


def trim(args, data: DataFolder, state, joined: bool, splitter) -> None:
    """The work without --extend."""
    keep = read_types(args.keep_types, "--keep-types") if args.keep_types else ()
    missing = [t for t in keep if not any(t in d for d in data.dictionaries)]
    if missing:
        raise UserError(
            f"--keep-types {args.keep_types}: {len(missing)} of its {len(keep)} types are in no "
            f"dictionary of {args.data} ({missing[0]!r}); leave them out"
        )
    limits = Limits(args.max_types, args.min_count, frozenset(keep))
    vocabulary = trimming.study(data, joined, splitter)
    if args.dry_run:
        rows = trimming.dry_run(data, vocabulary, state, limits)
        print(pandas.DataFrame(rows).to_markdown(index=False, intfmt=","))
        print(
            f"tokens and steps are means of {trimming.SAMPLE:,} training sentences at most, "
            "with the end of each"
        )
        return
    choice = trimming.choose(vocabulary, limits)
    before, after = data.dictionaries, choice.dictionaries
    if all(len(new) == len(old) for old, new in zip(before, after)):
        raise UserError(
            f"data {args.data}: its training data use every type that may go; give --max-types "
            "or --min-count (with --bpe-codes or --sentencepiece-model), --dry-run shows which"
        )
    gone = [numbers.copy() for numbers in vocabulary.counts.all_data]
    for numbers, kept in zip(gone, choice.kept):
        numbers[kept] = 0
    if data.alignments and any(numbers.any() for numbers in gone):
        raise UserError(
            f"data {args.data}: has word alignments ({data.alignments[0]}), which don't fit text "
            "that is split anew; leave the limits out, or take the alignments out of the folder"
        )
    new = tables.change_rows(state, tables.selected(choice.kept))
    limit = "" if args.max_types is None else f" --max-types {args.max_types}"
    limit += "" if args.min_count == 1 else f" --min-count {args.min_count}"
    finish(args, data, state, new, after, choice.rewriters(vocabulary), f"trimmed{limit}")


def extend(args, data: DataFolder, state, joined: bool, splitter) -> None:
    """The work of --extend."""
    added = [read_types(path, "--extend") for path in args.extend]
    change = extension.plan(data, joined, added, splitter, " ".join(args.extend))
    new = tables.change_rows(state, change.new_rows(args.initialize, args.seed))
    print(change.describe(args.initialize))
    finish(args, data, state, new, change.dictionaries, change.rewriters, "extended")


def finish(args, data: DataFolder, state, new, after, rewriters, how: str) -> None:
    """Write both outputs and report."""
    begin, before = time.perf_counter(), data.dictionaries
    output.note(state, new, data, after, how)
    splitters = tuple(rewriter.splitter for rewriter in rewriters)
    written = output.write(
        data, new, after, rewriters, splitters, args.output, args.output_checkpoint
    )
    sizes = os.path.getsize(args.path), os.path.getsize(args.output_checkpoint)
    facts = new[RECORD][-1]
    print(output.report(data, before, after, facts, written, sizes))
    seconds = time.perf_counter() - begin
    print(f"wrote {args.output} and {args.output_checkpoint} in {seconds:.0f} s")


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    run_writer(get_parser(), run, arguments)
