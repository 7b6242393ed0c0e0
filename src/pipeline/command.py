"""compress.py: what it refuses, plans and runs."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from itertools import chain, islice
from typing import Iterator, List, Optional

from fairseq import options

from ..commandline.parsing import (
    ending_quietly,
    fairseq_parser,
    set_up_logging,
)
from ..commandline.parsing import parse as parse_options
from ..deployment import loading, text
from ..errors import UserError
from ..files import atomic_write, make_output_folder
from ..training.inherited_options import with_inherited
from .base import CODES, PIECES, WORDS, Base
from .duration import in_words, training_seconds
from .goal import PLAN, Goal, Plan, given_goal
from .headline import Headline, read_headline
from .options import check, parse, teachers
from .raw_text import STEP as MADE
from .raw_text import data_step
from .reading import read_base
from .recipe import DATA, EXPORT, MODEL, SPEED, Recipe, exports
from .runner import Pipeline, StepFailed, typed
from .steps import Step, content_digest

MARK = "compress.json"  # in the pipeline's folder: what it is of


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
    if args.max_types and base.splitting == WORDS:
        raise UserError(
            f"--max-types {args.max_types}: the data hold whole words, which can't be split anew; "
            "leave it out (trim_vocabulary.py takes out types that are not used)"
        )


def check_trainings(args, steps: List[Step]) -> None:
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
    folder, origin = args.output, f"--output {args.output}"
    if not os.path.isdir(folder) or not os.listdir(folder):
        return
    try:
        with open(os.path.join(folder, MARK), encoding="utf-8") as stream:
            mark = json.load(stream)
        path, digest = mark["path"], mark["model"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            f"{origin}: holds something else than a compression; give a new folder"
        ) from None
    if digest != content_digest(args.path):
        raise UserError(
            f"{origin}: holds the compression of another model, {path}; give that, or another "
            "folder"
        )


def mark_ours(args) -> None:
    """Say in the folder what it is of."""
    make_output_folder(args.output, "--output")
    with atomic_write(os.path.join(args.output, MARK), encoding="utf-8") as stream:
        mark = {"path": args.path, "model": content_digest(args.path)}
        json.dump(mark, stream, indent=1)
        stream.write("\n")


def describe(args, base: Base, goal: Goal, plan: Plan, recipe: Recipe) -> List[str]:
    """What will be done and what to expect, in words."""
    layers = "{}+{}".format(*base.depths)
    lines = [
        f"{args.path}: {base.parameters:,} parameters, {layers} layers, "
        f"{base.languages[0]} to {base.languages[1]}; {len(base.train):,} training pairs",
        f"to keep: {goal.rate:.1%} of the uncut model's parameters, {goal.depths(base)} layers",
        # of other tables than those that will be there
        *(plan.expected(goal, base) if args.max_types is None else ()),
    ]
    if not exports():
        lines.append("ctranslate2 is not installed: no export, the result runs in PyTorch")
    bfloat16 = "--cpu-bf16" in args.training
    seconds = training_seconds(base, recipe.batch(), recipe.epochs, bfloat16)
    lines.append(f"its trainings take about {in_words(seconds)} on this machine, validation apart")
    return lines


class Compression:
    """What the options ask for.

    Args:
        args: compress.py's options.

    Attributes:
        base: what is compressed, once the steps have begun.
        first: so many steps make and measure what the others depend on.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.base: Optional[Base] = None
        self.first = 2 if args.train else 1

    def steps(self) -> Iterator[Step]:
        """All steps, each when those before are done; what will be done is said on the way.

        Nothing is refused any more after the first, unless it makes data or measures.

        Raises:
            UserError: a mistake in an option or file.
        """
        args = self.args
        if args.train:
            yield data_step(args)
            data = os.path.join(args.output, MADE, DATA)
            args = argparse.Namespace(**{**vars(args), "data": data})
        base = self.base = self._read(args)
        recipe, goal = Recipe(args, base), given_goal(args)
        measuring = recipe.plan(goal)
        yield measuring
        plan = Plan(os.path.join(args.output, measuring.name, PLAN), recipe.engine)
        goal = goal or plan.goal(args, base)
        goal.check(base)
        steps = recipe.build(goal)
        for line in describe(args, base, goal, plan, recipe):
            print(line)
        yield from steps[1:]

    def _read(self, args: argparse.Namespace) -> Base:
        languages = args.source_lang, args.target_lang
        trust = args.trust_checkpoint
        base = read_base(args.data, args.path, languages, args.gen_subset, trust, teachers(args))
        check_base(args, base)
        check_disk(args, base)
        goal = given_goal(args)
        if goal is not None:
            goal.check(base)
        check_trainings(args, Recipe(args, base).build(goal or Goal(0.5)))
        return base


def compress(args: argparse.Namespace) -> Optional[Headline]:
    """Do what the options ask for.

    Returns:
        The figures in the end; None of a dry run.

    Raises:
        UserError: a mistake in an option or file.
        StepFailed: a step ended in an error.
    """
    check(args)
    check_ours(args)
    if args.dry_run:
        return dry_run(args)
    compression = Compression(args)
    steps = compression.steps()
    first = next(steps)
    mark_ours(args)
    found = Pipeline(args.output, chain([first], steps)).run()
    headline = finish(args, compression.base, found)
    print("\n".join(headline.lines()))
    report = next(step.name for step in found if step.name.endswith("-report"))
    print(f"report: {os.path.join(args.output, report, 'report.html')}")
    return headline


def dry_run(args) -> None:
    """Print what would be done; only measuring is done, in a folder that goes again."""
    with tempfile.TemporaryDirectory(prefix="srp-compress-") as folder:
        compression, pipeline = Compression(args), Pipeline(args.output)
        if not all(
            pipeline.is_done(s, pipeline.due(s))
            for s in islice(compression.steps(), compression.first)
        ):
            compression = Compression(argparse.Namespace(**{**vars(args), "output": folder}))
            pipeline = Pipeline(folder)
        steps = []
        for step in compression.steps():
            if len(steps) < compression.first:
                pipeline.do(step)
            steps.append(step)
        for step in steps:
            print(f"{step.name}: {typed(step.command).replace(folder, args.output)}")


def finish(args, base: Base, steps: List[Step]) -> Headline:
    """The figures, kept in the folder with where its parts are, for ``loading.load``."""
    names = {step.name.partition("-")[2]: step.name for step in steps}
    folders = {name: os.path.join(args.output, folder) for name, folder in names.items()}
    export = names.get("export") and os.path.join(names["export"], EXPORT)
    headline = read_headline(
        (folders["test-base"], folders["test"]),
        export and os.path.join(args.output, export),
        os.path.join(folders["speed"], SPEED),
        trimmed=args.max_types is not None,
    )
    data = os.path.join(names.get("trim", names["translate"]), DATA)
    text.write_splitting(args.output, args, os.path.join(args.output, data), base.languages)
    result = {
        **asdict(headline),
        "export": export,
        "model": os.path.join(names["model"], MODEL),
        "data": data,
    }
    with atomic_write(os.path.join(args.output, loading.RESULT), encoding="utf-8") as stream:
        json.dump(result, stream, indent=1)
        stream.write("\n")
    return headline


def compress_from_python(data, path, output, training=(), options=None) -> Optional[Headline]:
    """compress.py of arguments, see ``srp.compress``."""
    if isinstance(training, str):
        raise UserError(f"training {training}: give a list of options, one a word")
    words = [str(data), "--path", str(path), "--output", str(output)]
    for name, value in (options or {}).items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, (list, tuple)):
            words += [option, *map(str, value)] if value else []
        elif value is not None and value is not False:
            words += [option, str(value)]
    return compress(parse([*words, "--", *map(str, training)]))


def main(arguments: List[str], description: Optional[str] = None) -> Optional[int]:
    """The command line tool; returns its status."""
    set_up_logging(sys.stderr, "WARNING")  # steps say the rest in their logs
    args = parse(arguments, description)
    with ending_quietly("the same command goes on"):
        try:
            compress(args)
        except StepFailed as error:
            print(error, flush=True)
            return 1
    return None
