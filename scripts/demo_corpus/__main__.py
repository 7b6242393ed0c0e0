"""Write a German-English parallel corpus that a grammar made up.

    python scripts/demo_corpus --out DIR [--train N] [--valid N] [--test N] [--seed S]

writes DIR/{train,valid,test}.{de,en}: raw text, one sentence a line.  The same
seed gives the same corpus, and the same test and valid sets for any --train.
"""

import argparse
import os
import random
import sys
from pathlib import Path

if not __package__:  # run as a directory, which is then on the path instead of its parent
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from demo_corpus.grammar import Grammar

SIZES = {"train": 8000, "valid": 400, "test": 400}
LARGEST = 100_000  # pairs in one split; the grammar has more, but draws new ones ever more rarely
TRIES = 3  # draws for each pair wanted
LARGEST_SEED = 2**32 - 1


class Exhausted(Exception):
    """The grammar did not yield enough different sentences."""


def draw(sizes, seed):
    """Return the sentence pairs of each split, with no German or English sentence twice in all of them."""
    grammar, german, english, corpus = Grammar(random.Random(seed)), set(), set(), {}
    for split in sorted(
        sizes, key=("test", "valid", "train").index
    ):  # so that --train leaves the others as they are
        pairs = corpus[split] = []
        for _ in range(TRIES * sizes[split] + 1000):
            if len(pairs) == sizes[split]:
                break
            pair = grammar.sentence()
            if pair.german not in german and pair.english not in english:
                german.add(pair.german)
                english.add(pair.english)
                pairs.append(pair)
        if len(pairs) < sizes[split]:
            raise Exhausted(
                f"--{split} {sizes[split]}: the grammar yields too few different sentences; "
                f"give at most {len(pairs)}"
            )
    return corpus


def write(corpus, directory):
    """Write the files of all splits, each complete or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        f"{split}.{language}": "".join(pair[side] + "\n" for pair in pairs)
        for split, pairs in corpus.items()
        for side, language in enumerate(("de", "en"))
    }
    unfinished = {name: directory / f".{name}.{os.getpid()}" for name in texts}
    try:
        for name, text in texts.items():
            unfinished[name].write_text(text, encoding="utf-8", newline="\n")
        for name, path in unfinished.items():
            os.replace(path, directory / name)
    finally:
        for path in unfinished.values():
            path.unlink(missing_ok=True)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints fit on one line."""

    def error(self, message):
        if message.startswith("argument ") or "arguments" in message:  # argparse's own words
            message = (
                f"{message.removeprefix('argument ')}; {' '.join(self.format_usage().split())}"
            )
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def whole_number(parser, option, text, smallest, largest):
    """Return the number an option was given, or end the program with a message."""
    if text.isascii() and text.isdecimal() and len(text) < 20 and smallest <= int(text) <= largest:
        return int(text)
    parser.error(f"--{option} {text!r}: give a whole number from {smallest} to {largest}")


def main(arguments=None):
    """Run the command line."""
    parser = Parser(
        prog="demo_corpus",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory to write to; made if it is missing"
    )
    for split, size in SIZES.items():
        parser.add_argument(
            f"--{split}", default=str(size), metavar="N", help=f"sentence pairs (default {size})"
        )
    parser.add_argument("--seed", default="1", metavar="S", help="which corpus (default 1)")
    options = parser.parse_args(arguments)
    sizes = {
        split: whole_number(parser, split, getattr(options, split), 1, LARGEST) for split in SIZES
    }
    seed = whole_number(parser, "seed", options.seed, 0, LARGEST_SEED)
    if not options.out:
        parser.error("--out '': give the name of a directory")
    try:
        write(draw(sizes, seed), Path(options.out))
    except Exhausted as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(
            f"--out {options.out!r}: {error.strerror}; give a directory that can be written to"
        )


if __name__ == "__main__":
    main()
