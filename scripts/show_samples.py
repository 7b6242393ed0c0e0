"""Translations of two models side by side, from two outputs of src/generate.py.

    show_samples.py BASE/generate.txt PRUNED/generate.txt [--number 5]

The sentences are spread evenly over the test set, so nobody picked them.
"""

import argparse
import sys
import textwrap


def read(path):
    """``{sentence number: {"S": source, "T": reference, "H": hypothesis}}``, BPE undone."""
    found = {}
    with open(path, encoding="utf-8") as handle:
        for line in handle:
            kind, dash, rest = line.rstrip("\n").partition("-")
            number, *fields = rest.split("\t")
            if dash and kind in "STHD" and len(kind) == 1 and number.isdigit() and fields:
                # H and D have a score before the text; D is the detokenized H; with --nbest
                # the best hypothesis comes first
                text = (fields[-1] + " ").replace("@@ ", "").strip()
                found.setdefault(int(number), {}).setdefault(kind, text)
    return found


def plain(lang, text):
    """Sentence without tokenization."""
    from sacremoses import MosesDetokenizer

    return MosesDetokenizer(lang).detokenize(text.split())


def choose(numbers, how_many):
    """``how_many`` of the sorted numbers, evenly spread."""
    numbers = sorted(numbers)
    step = len(numbers) / max(1, min(how_many, len(numbers)))
    return [numbers[int((i + 0.5) * step)] for i in range(min(how_many, len(numbers)))]


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="generate.txt of the base model")
    parser.add_argument("pruned", help="generate.txt of the pruned model")
    parser.add_argument("--number", type=int, default=5, help="sentences to show (default 5)")
    parser.add_argument("--source-lang", default="de")
    parser.add_argument("--target-lang", default="en")
    args = parser.parse_args(argv)
    try:
        base, pruned = read(args.base), read(args.pruned)
    except OSError as error:
        print(f"show_samples: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    complete = [
        n for n in base if n in pruned and {"S", "H"} <= base[n].keys() and "H" in pruned[n]
    ]
    if not complete:
        print(
            f"show_samples: {args.base} and {args.pruned} have no translated sentence in common",
            file=sys.stderr,
        )
        return 2
    for number in choose(complete, args.number):
        rows = [("source", base[number]["S"], args.source_lang)]
        if "T" in base[number]:
            rows.append(("reference", base[number]["T"], args.target_lang))
        rows += [
            ("base", base[number]["H"], args.target_lang),
            ("pruned", pruned[number]["H"], args.target_lang),
        ]
        print()
        for label, text, lang in rows:
            indent = " " * 12
            print(
                textwrap.fill(
                    plain(lang, text),
                    100,
                    initial_indent=f"  {label:<10}",
                    subsequent_indent=indent,
                )
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
