"""Damaged files through every reader: none may be read wrongly, or end in a traceback.

    python benchmarks/damaged_files.py
    python benchmarks/damaged_files.py sparse --files 300 --seed 1 --output damaged

Files of each kind are made, then damaged at random: a bit flipped, bytes overwritten, cut
off, taken out, put in or appended, a page zeroed, two places exchanged, and what a kind
has of its own. Each damaged file goes through every reader of its kind, in a process of its own
or, for checkpoints, in this one (where "memory" tells little). It is "refused" (an error that a
program says in one line), "same" (what is read is what the undamaged file holds), "other" (it is
read, and differs), a "traceback" (any other exception), "crash" or "hang". "memory" counts those
for which the process needed more than twice the file and 200 MB while it refused it. Of forged
files, whose checksums are right, "other" is no failure: nothing in them tells.

A failure is printed with the file's number; --only NUMBER repeats one, --keep FOLDER keeps
its file. The status is 1 if there is one.
"""

import importlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

import torch
from common import arguments, check, report
from damage.kind import ANY, OUTCOMES, Kind, attempt, outcome

# The files of a kind are made by function ``kind`` of the module, in a given folder.
KINDS = {"sparse": "damage.sparse", "checkpoints": "damage.checkpoints"}


class Failure(NamedTuple):
    number: int
    damage: str
    reader: str
    outcome: str
    said: str


def campaign(name: str, kind: Kind, args) -> Tuple[List[Dict], List[Failure]]:
    """Rows of the table, by damage, and what must not be."""
    damages = {**ANY, **kind.damages, **kind.forgeries}
    wholes = [path.read_bytes() for path in kind.originals]
    expected = []
    for path in kind.originals:
        whole = {n: attempt(read, str(path), kind.isolated) for n, read in kind.readers.items()}
        expected.append({n: result.get("digest", "") for n, result in whole.items()})
        for reader, result in whole.items():
            if "digest" not in result and "refused" not in result:
                said = result.get("traceback", "")[-1000:]
                raise RuntimeError(f"{path} undamaged, {reader}: {said or result}")
    counts = {damage: Counter() for damage in damages}
    peaks, failures = Counter(), []
    for number in range(args.files) if args.only is None else [args.only]:
        r = random.Random(f"{args.seed} {name} {number}")
        damage = list(damages)[number % len(damages)]
        choice = r.randrange(len(wholes))
        data = bytearray(wholes[choice])
        while data == wholes[choice]:  # a byte may be overwritten with itself
            damages[damage](data, r)
        path = Path(args.keep or args.folder) / f"{number}{kind.originals[choice].suffix}"
        path.write_bytes(data)
        counts[damage]["files"] += 1
        for reader, read in kind.readers.items():
            result = attempt(read, str(path), kind.isolated)
            found = outcome(result, expected[choice][reader], len(data))
            counts[damage][found] += 1
            peaks[damage] = max(peaks[damage], result.get("peak", 0))
            bad = found not in ("refused", "same")
            if bad and not (found == "other" and damage in kind.forgeries):
                said = result.get("traceback", result.get("refused", "")).strip()
                failures.append(Failure(number, damage, reader, found, said))
        if not args.keep:
            path.unlink()
    rows = []
    for damage, count in counts.items():
        row = {"kind": name, "damage": damage, "files": count["files"]}
        row.update({found: count[found] for found in OUTCOMES})
        rows.append({**row, "most MB": round(peaks[damage] / 2**20)})
    return rows, failures


def parse():
    parser = arguments(__doc__, rounds=None)
    parser.set_defaults(threads=1)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--files", type=int, default=300, help="damaged files of each kind")
    parser.add_argument("--seed", type=int, default=1, help="decides how they are damaged")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this one of them alone")
    parser.add_argument("--keep", metavar="FOLDER", help="leave the damaged files there")
    args = parser.parse_args()
    check(parser, args, files=1)
    for name in args.kinds:
        if name not in KINDS:
            parser.error(f"KIND {name}: must be one of {', '.join(KINDS)}")
    if args.keep and not os.path.isdir(args.keep):
        parser.error(f"--keep {args.keep}: no such folder")
    return args


def main() -> int:
    args = parse()
    torch.set_num_threads(args.threads)
    rows, failures, start = [], [], time.time()
    with tempfile.TemporaryDirectory() as folder:
        args.folder = folder
        for name in args.kinds or KINDS:
            kind = importlib.import_module(KINDS[name]).kind(Path(folder))
            more, failed = campaign(name, kind, args)
            rows += more
            failures += failed
    seconds = round(time.time() - start)
    report("Damaged files", rows, args.output, seed=args.seed, seconds=seconds)
    for failure in failures:
        print(f"file {failure.number}, {failure.damage}, {failure.reader}: {failure.outcome}")
        print("\n".join(failure.said.splitlines()[-8:]))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
