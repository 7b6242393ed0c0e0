"""compress.py: what it refuses, plans and runs."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from typing import List, Optional

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
from .options import check, parse
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
    seconds = training_seconds(base, recipe.batch(), recipe.epochs)
    lines.append(f"its trainings take about {in_words(seconds)} on this machine, validation apart")
    return lines


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
    goal = given_goal(args)
    if goal is not None:
        goal.check(base)
    recipe = Recipe(args, base)
    check_trainings(args, recipe.build(goal or Goal(0.5)))
    if args.dry_run:
        return dry_run(args, base)
    mark_ours(args)
    found: List[Step] = []

    def rest() -> List[Step]:
        found.extend(plan_steps(args, args, base, recipe))
        return found[1:]

    Pipeline(args.output, [recipe.plan(goal)], rest).run()
    headline = finish(args, base, found)
    print("\n".join(headline.lines()))
    report = next(step.name for step in found if step.name.endswith("-report"))
    print(f"report: {os.path.join(args.output, report, 'report.html')}")
    return headline


def plan_steps(args, planned, base: Base, recipe: Recipe) -> List[Step]:
    """All steps, when the first has measured; says what will be done.

    Args:
        planned: the options of the run whose first step has measured.
    """
    first = Recipe(planned, base).plan(given_goal(args))
    plan = Plan(os.path.join(planned.output, first.name, PLAN), recipe.engine)
    goal = given_goal(args) or plan.goal(args, base)
    goal.check(base)
    steps = recipe.build(goal)
    for line in describe(args, base, goal, plan, recipe):
        print(line)
    return steps


def dry_run(args, base: Base) -> None:
    """Print what would be done; only measuring is done, in a folder that goes again."""
    with tempfile.TemporaryDirectory(prefix="srp-compress-") as folder:
        elsewhere = argparse.Namespace(**{**vars(args), "output": folder})
        planned, steps = args, [Recipe(args, base).plan(given_goal(args))]
        pipeline = Pipeline(args.output, steps)
        if not pipeline.is_done(steps[0], pipeline.due(steps[0])):
            planned, steps = elsewhere, [Recipe(elsewhere, base).plan(given_goal(args))]
            Pipeline(folder, steps).run()
        steps = plan_steps(args, planned, base, Recipe(args, base))
    for step in steps:
        print(f"{step.name}: {typed(step.command)}")


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
