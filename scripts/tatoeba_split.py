"""Training, validation and test pairs out of Tatoeba's German-English sentence pairs.

    tatoeba_split.py deu-eng.zip --out DIR

The archive is that of https://www.manythings.org/anki/: in it ``deu.txt``, a pair a line,
English and German with a tab between (CC BY 2.0 FR, the third column names the authors).
Test and validation pairs are drawn from those of five words and more on both sides whose
sentences stand in no other pair, so that no sentence of either language is in two splits.
Which ones follows from their text alone: the same archive gives the same splits.

``DIR`` gets ``{train,valid,test}.{de,en}``, the last of them when all are whole.
"""

import argparse
import hashlib
import os
import sys
import zipfile
from collections import Counter
from pathlib import Path

LEAST_WORDS = 5


class UserError(Exception):
    """Wrong input; shown as one line, exit status 2."""


def read_pairs(path):
    """Pairs (German, English) of an archive, each once, in its order.

    Raises:
        UserError: it is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read("deu.txt").decode("utf-8")
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no archive with deu.txt in it ({error})") from None
    pairs = {}
    for number, line in enumerate(text.split("\n"), 1):
        fields = [" ".join(field.split()) for field in line.split("\t")]
        if fields == [""]:
            continue
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise UserError(f"{path}: line {number} of deu.txt is no pair with a tab between")
        pairs[fields[1], fields[0]] = None
    return list(pairs)


def split(pairs, held_out):
    """Training, validation and test pairs; the latter two have ``held_out`` each.

    Raises:
        UserError: too few pairs are fit for validation and test.
    """
    counts = Counter((side, pair[side]) for pair in pairs for side in (0, 1))
    fit = [
        pair
        for pair in pairs
        if all(counts[side, pair[side]] == 1 for side in (0, 1))
        and all(len(sentence.split()) >= LEAST_WORDS for sentence in pair)
    ]
    if len(fit) < 2 * held_out:
        raise UserError(
            f"--held-out {held_out}: {len(fit)} pairs are fit for validation and test, "
            f"{2 * held_out} are wanted"
        )
    fit.sort(key=lambda pair: hashlib.sha256("\t".join(pair).encode()).digest())
    valid, test = fit[:held_out], fit[held_out : 2 * held_out]
    gone = {*valid, *test}
    return [pair for pair in pairs if pair not in gone], valid, test


def write(folder, splits):
    """All files under other names, then all renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, pairs in zip(("train", "valid", "test"), splits):
        for side, language in enumerate(("de", "en")):
            path = folder / f"{name}.{language}"
            part = path.with_name(path.name + ".part")
            part.write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
            names.append((part, path))
    for part, path in names:
        os.replace(part, path)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="deu-eng.zip")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the result"
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=2000,
        metavar="N",
        help="pairs for validation, and as many for test (default 2000)",
    )
    args = parser.parse_args(argv)
    if args.held_out < 1:
        parser.error(f"--held-out {args.held_out}: must be at least 1")
    splits = split(read_pairs(args.archive), args.held_out)
    write(args.out, splits)
    print(
        ", ".join(
            f"{len(pairs):,} {name}"
            for name, pairs in zip(("training", "validation", "test"), splits)
        )
        + " pairs"
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"tatoeba_split.py: {error}", file=sys.stderr)
        sys.exit(2)
