"""One table and one picture of several runs: base, stages, finetuned.

    python src/report.py checkpoints/multi30k/base checkpoints/multi30k/stage1 ...
    python src/report.py checkpoints/multi30k

Each folder holds the report.json that ``generate.py --report`` wrote and, if it
was trained here, results.csv. A single folder without report.json stands for its
sub-folders that have one, the largest model first. The table is printed and
written as report.csv (plain numbers) and report.md; report.png shows the widths
that remain in the last run and BLEU against the number of parameters. report.html
is one page with all of it for a browser, and with curves of the trainings and, from
generate.txt (what generate.py printed) in the folders, sample translations of the
first and the last run, and whether their scores differ by more than chance.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.report").main())

from typing import List, Optional, Sequence  # noqa: E402

import pandas as pd  # noqa: E402

from .commandline.parsing import ArgumentParser, ending_quietly, set_up_logging  # noqa: E402
from .evaluation.report_page import page  # noqa: E402
from .evaluation.report_picture import draw  # noqa: E402
from .evaluation.report_table import (  # noqa: E402
    Run,
    conditions,
    find_runs,
    read_runs,
    readable,
    table,
)
from .files import (
    atomic_write,  # noqa: E402
    make_output_folder,  # noqa: E402
)


def write(
    output: Path,
    numbers: pd.DataFrame,
    notes: List[str],
    runs: List[Run],
    trainings: Sequence[Path] = (),
) -> None:
    """report.html, report.csv, report.md and report.png in ``output``."""
    with atomic_write(str(output / "report.csv"), encoding="utf-8") as stream:
        numbers.to_csv(stream, index=False)
    right = ("left",) + ("right",) * (readable(numbers).shape[1] - 1)
    text = readable(numbers).to_markdown(index=False, colalign=right, disable_numparse=True)
    with atomic_write(str(output / "report.md"), encoding="utf-8") as stream:
        stream.write(f"{text}\n\n" + "".join(f"- {note}\n" for note in notes))
        stream.write("\n![widths, and BLEU against size](report.png)\n")
    with atomic_write(str(output / "report.png"), "wb") as stream:
        draw(runs, stream)
    with atomic_write(str(output / "report.html"), encoding="utf-8") as stream:
        stream.write(page(runs, readable(numbers), notes, trainings))


def main(arguments: Optional[List[str]] = None) -> None:
    set_up_logging(sys.stderr)
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_DIR", help="folder with report.json"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where report.{html,csv,md,png} go (default: the parent of the first run)",
    )
    parser.add_argument(
        "--trainings",
        nargs="+",
        type=Path,
        metavar="DIR",
        default=(),
        help="folders with results.csv, of trainings in between that were not tested: the page "
        "has curves of them, too",
    )
    args = parser.parse_args(arguments)
    folders = find_runs(args.runs)
    output = args.output or folders[0].resolve().parent
    runs = read_runs(folders)
    make_output_folder(str(output), "--output")
    numbers, notes = table(runs), conditions(runs)
    with ending_quietly("the report is not complete"):
        write(output, numbers, notes, runs, args.trainings)
        print(readable(numbers).to_string(index=False))
        print("\n".join(notes))
        print(f"wrote {output}/report.html, report.csv, report.md and report.png")
