"""Tables and pictures of a grid's results.

    python benchmarks/study/tables.py benchmarks/study/multi30k.yaml
    python benchmarks/study/tables.py GRID --compare 'distilled, 0.2' 'distilled, 0.1'

Of the models of the grid that run.py has made so far, here or elsewhere, with their speed
where run.py --speed has measured it; significance and speed are kept in the results file with
the rest. Writes results.md and results.csv (every model, its seed, sizes and BLEU),
quality.png (BLEU against parameters, FLOPs and speed) and widths.png (what remains of every
width) to the folder that the grid names as "work".

Significance is that of sacreBLEU's paired bootstrap test (Koehn, 2004) with 1,000
samples and its own seed. Its p is one-sided: how often resampling alone makes one model
better by as much, not how often it makes either. A two-sided p is about twice as large, and
equal models have about 0.4 instead of 1.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

import pandas as pd  # noqa: E402
from grid import Grid, GridError, read_grid  # noqa: E402
from run import collect, keep, outdated  # noqa: E402
from sacrebleu.metrics import BLEU  # noqa: E402
from sacrebleu.significance import PairedTest  # noqa: E402

SAMPLES = 1000
ABOUT_P = (
    f"p: paired bootstrap as sacreBLEU has it, {SAMPLES:,} samples, one-sided: a two-sided "
    "p is about twice as large, equal models have about 0.4"
)
DERIVED = ("p_base", "p_beside")  # from a row's "p", for the table
Row = Dict[str, Any]


def hypotheses(folder: Path) -> Optional[List[str]]:
    """Best translations of the test set in its order, as text; None if they are not here."""
    from src.evaluation.bleu import detokenizer

    found: Dict[int, str] = {}
    path = next(iter(folder.glob("generate-*.txt")), None)
    if path is None:
        return None
    # lines end with \n only: other separators may stand inside a sentence
    for line in path.read_bytes().decode("utf-8").split("\n"):
        if line.startswith("D-"):
            number, _, text = line[2:].split("\t", 2)
            found.setdefault(int(number), text)
    moses = detokenizer("moses", "en")
    return [moses(found[number]) for number in sorted(found)]


def references(grid: Grid) -> Optional[List[str]]:
    if grid.reference is None:
        return None
    # lines end with \n only, and the last ones may be empty
    text = grid.reference.read_bytes().decode("utf-8")
    return text.removesuffix("\n").split("\n")


def p_value(first: Path, second: Path, truth: List[str], lowercase: bool) -> Optional[float]:
    """Of the difference in BLEU between two models' translations, if they are here."""
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)
    metric = BLEU(lowercase=lowercase, references=[truth])
    systems = [("baseline", hypotheses(first)), ("system", hypotheses(second))]
    if any(texts is None for _, texts in systems):
        return None
    test = PairedTest(systems, {"BLEU": metric}, None, "bs", n_samples=SAMPLES)
    return test()[1]["BLEU"][1].p_value


def add_significance(grid: Grid, rows: List[Row]) -> None:
    """``p_base``, against the grid's first model, and ``p_beside``.

    ``p`` of a row has them by the other model's key: what was computed where the
    translations were stays known.
    """
    truth = references(grid)
    by_name = {(row["name"], row["seed"]): row for row in rows if "bleu" in row}
    first = grid.models[0]
    base = by_name.get((first.name, first.seed))
    for row in by_name.values():
        others = {"p_base": base, "p_beside": by_name.get((row["beside"], row["seed"]))}
        for name, other in others.items():
            if other is None or other is row:
                continue
            row[name] = known_p(grid, row, other, truth)


def known_p(grid: Grid, row: Row, other: Row, truth: Optional[List[str]]) -> Optional[float]:
    """What the row says of the difference to another; computed first, where it says nothing."""
    known = row.setdefault("p", {})
    if truth and other["key"] not in known:
        lowercase = bool(grid.translate.get("sacrebleu-lowercase"))
        value = p_value(Path(other["folder"]), Path(row["folder"]), truth, lowercase)
        if value is not None:
            known[other["key"]] = round(value, 4)
    return known.get(other["key"])


def compare(grid: Grid, rows: List[Row], names: List[str]) -> List[str]:
    """BLEU of two models and the p of the difference: a line for each seed that both have.

    Raises:
        GridError: a model is none of the grid's, or was not made yet with the other's seed.
    """
    lines, truth = [], references(grid)
    for name in names:
        if name not in {model.name for model in grid.models}:
            raise GridError(f"--compare {name!r}: is no model of the grid")
    if names[0] == names[1]:
        raise GridError(f"--compare {names[0]!r}: give two models")
    first, second = ({r["seed"]: r for r in rows if r["name"] == name} for name in names)
    for seed in sorted(first.keys() & second.keys()):
        p = known_p(grid, second[seed], first[seed], truth)
        scores = " and ".join(f"{r[seed]['name']} {r[seed]['bleu']:.2f}" for r in (first, second))
        said = "their translations are not here" if p is None else f"p {p:.3f}"
        lines.append(f"{scores} (seed {seed}): {said}")
    if not lines:
        raise GridError(f"--compare {' '.join(map(repr, names))}: not both are made yet")
    return lines


def otherwise(grid: Grid, rows: List[Row]) -> List[str]:
    """Names of the models whose translation is of other options than the grid's."""
    models = {model.key: model for model in grid.models}
    return [
        row["name"]
        for row in rows
        if row["key"] in models and outdated(grid, models[row["key"]], row)
    ]


def add_speed(grid: Grid, rows: List[Row]) -> None:
    """``times_fairseq`` by engine, from the measurement side by side."""
    path = grid.work / "speed.json"
    if not path.is_file():
        return
    measured = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for row in rows:
        folder = os.path.basename(row["folder"])
        for line in measured:
            if folder in Path(line["checkpoint"]).parts:
                row[f"times fairseq, {line['engine']}"] = line["speed-up"]


def add_updates(rows: List[Row], every: List[Row]) -> None:
    """``all updates``: of a model's training and of those it was made from."""
    by_name = {(row["name"], row["seed"]): row for row in reversed(every)}
    for row in rows:
        row["all updates"], model = 0, row
        while model is not None:
            row["all updates"] += model["updates"]
            made_from = model["from"]
            seeds = (model["seed"], 1)  # a model that all seeds share has the first
            parents = [by_name.get((made_from, seed)) for seed in seeds]
            model = next((parent for parent in parents if parent is not None), None)


def frame(rows: List[Row], base: str) -> pd.DataFrame:
    """Plain numbers, one row a model; ``share`` is that of the base's parameters.

    So also of a small model from scratch, all of whose own are there.

    Args:
        base: name of the base; where it isn't made yet, shares are of each model's own.
    """
    table = pd.DataFrame(rows).drop(columns=["widths", "values", "p"], errors="ignore")
    uncut = table.loc[table["name"] == base, "uncut_parameters"]
    whole = uncut.iloc[0] if len(uncut) else table["uncut_parameters"]
    table["share"] = table["parameters"] / whole
    table["sparsity"] = 1 - table["nonzero_parameters"] / table["parameters"]
    return table


def readable(numbers: pd.DataFrame) -> pd.DataFrame:
    """The table for people."""

    def column(name: str, pattern: str, unit: float = 1.0):
        if name not in numbers or numbers[name].isna().all():
            return None
        return ["" if pd.isna(value) else pattern.format(value / unit) for value in numbers[name]]

    columns = {
        "model": numbers["name"].tolist(),
        "seed": column("seed", "{:.0f}") if numbers["seed"].nunique() > 1 else None,
        "BLEU": column("bleu", "{:.2f}"),
        "valid BLEU": column("valid_bleu", "{:.2f}"),
        "valid loss": column("valid_loss", "{:.3f}"),
        "p (base)": column("p_base", "{:.3f}"),
        "p (beside)": column("p_beside", "{:.3f}"),
        "parameters": column("parameters", "{:,.0f}"),
        "of uncut": column("share", "{:.1%}"),
        "zeros": column("sparsity", "{:.1%}"),
        "MFLOPs": column("flops", "{:,.1f}", 1e6),
        "weights MB": column("model_bytes", "{:,.2f}", 1e6),
        "sparse MB": column("sparse_bytes", "{:,.2f}", 1e6),
        "updates": column("all updates", "{:,.0f}"),
        "minutes": column("seconds", "{:.1f}", 60),
    }
    for name in numbers.columns:
        if name.startswith("times fairseq"):
            columns[name] = column(name, "{:.2f}")
    return pd.DataFrame({k: v for k, v in columns.items() if v is not None})


def conditions(rows: List[Row]) -> List[str]:
    """What the figures were measured with."""
    signatures = sorted({row["bleu_signature"] for row in rows if row.get("bleu_signature")})
    lines = [f"BLEU: {signature}" for signature in signatures]
    if len(signatures) > 1:
        lines.append("BLEU is NOT comparable: the signatures differ")
    if any(row.get(name) is not None for row in rows for name in DERIVED):
        lines.append(ABOUT_P)
    for name in ("beam", "machine", "threads", "torch", "commit"):
        values = sorted({str(row[name]) for row in rows if row.get(name) is not None})
        lines.append(f"{name}: {', '.join(values)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", type=Path, help="YAML file")
    parser.add_argument(
        "--no-significance", action="store_true", help="leave out the bootstrap tests"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("MODEL", "OTHER"),
        help="print the p of the difference between two models of the grid instead",
    )
    args = parser.parse_args()
    grid_file = args.grid.resolve()
    os.chdir(ROOT)
    try:
        grid = read_grid(grid_file)
    except GridError as error:
        print(f"error: {error}", file=sys.stderr)
        raise
    from pictures import draw_quality, draw_widths

    from src.files import atomic_write  # noqa: E402

    every = collect(grid)
    rows = [row for row in every if "bleu" in row]
    if not rows:
        print(f"error: {args.grid}: no model is made yet; run run.py first", file=sys.stderr)
        sys.exit(2)
    if args.compare:
        try:
            lines = compare(grid, rows, args.compare)
        except GridError as error:
            print(f"error: {error}", file=sys.stderr)
            raise
        keep(grid, every)
        print("\n".join(lines))
        return
    if not args.no_significance:
        add_significance(grid, rows)
    add_speed(grid, rows)
    kept = [{k: v for k, v in row.items() if k not in DERIVED} for row in every]
    keep(grid, kept)
    add_updates(rows, every)
    numbers = frame(rows, grid.models[0].name)
    table = readable(numbers)
    notes = conditions(rows)
    others = otherwise(grid, rows)
    if others:
        notes.append(f"translated with other options than the grid's: {'; '.join(others)}")
    print(table.to_string(index=False))
    print("\n".join(notes))
    right = ("left",) + ("right",) * (table.shape[1] - 1)
    text = table.to_markdown(index=False, colalign=right, disable_numparse=True)
    grid.work.mkdir(parents=True, exist_ok=True)  # where nothing was made, only recorded
    with atomic_write(str(grid.work / "results.csv"), encoding="utf-8") as stream:
        numbers.to_csv(stream, index=False)
    with atomic_write(str(grid.work / "results.md"), encoding="utf-8") as stream:
        stream.write(f"{text}\n\n" + "".join(f"- {note}\n" for note in notes))
        stream.write("\n![BLEU against size and speed](quality.png)\n")
        stream.write("\n![widths that remain](widths.png)\n")
    with atomic_write(str(grid.work / "quality.png"), "wb") as stream:
        draw_quality(rows, stream, grid.models[0].name)
    with atomic_write(str(grid.work / "widths.png"), "wb") as stream:
        draw_widths(rows, stream)
    print(f"wrote results.md, results.csv, quality.png and widths.png to {grid.work}")


if __name__ == "__main__":
    main()
