"""The report as one page for a browser, which needs nothing but itself."""

import importlib.resources
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import jinja2
import pandas as pd

from .charts import Series, chart, short
from .report_picture import layer_rows
from .report_table import RESULTS, SPEED_CONDITIONS, Run
from .results import read_results
from .samples import Difference, compare, marked, read_translations, spread, test_description

SAMPLES = 8
COMMAND = ".started"  # the training's command, where scripts/ ran it


def _curves(runs: Sequence[Run], trainings: Sequence[Path]) -> Dict[str, List[Series]]:
    """Validation loss, BLEU and parameters over the updates of all runs, one after the other."""
    folders = [(folder.name, folder) for folder in trainings]
    folders += [(run["name"], run["folder"]) for run in runs]
    names = {"valid_loss": "validation loss", "bleu": "BLEU", "parameters": "parameters"}
    curves: Dict[str, List[Series]] = {title: [] for title in names.values()}
    before = 0
    for name, folder in folders:
        rows = read_results(str(folder / RESULTS))
        if not rows:
            continue
        for column, title in names.items():
            known = [row for row in rows if row.get(column)]
            points = [(before + int(r["num_updates"]), float(r[column])) for r in known]
            curves[title].append(Series(name, points))
        before += max((int(row["num_updates"]) for row in rows), default=0)
    return curves


def _same_speed_conditions(one: Run, other: Run) -> bool:
    return all(str(one.get(n)) == str(other.get(n)) for n in SPEED_CONDITIONS)


def _headline(runs: Sequence[Run], differences: Sequence[Difference]) -> List[Tuple[str, str, str]]:
    """Figure, what it is, and its condition."""
    first, last = runs[0], runs[-1]
    lines = []
    speeds = first.get("tokens_per_second"), last.get("tokens_per_second")
    if len(runs) > 1 and all(speeds) and _same_speed_conditions(first, last):
        engine = last.get("engine", "")
        lines.append((f"{speeds[1] / speeds[0]:.2f} ×", "as fast", f"as {first['name']}, {engine}"))
    share = last["parameters"] / last["uncut_parameters"]
    lines.append((f"{1 / share:.2f} ×", "smaller", f"{short(last['parameters'])} parameters"))
    for one in differences:
        change = (
            f"{one.scores[1] - one.scores[0]:+.2f} against {first['name']}, p = {one.p_value:.3f}"
        )
        lines.append((f"{one.scores[1]:.2f}", f"{one.name} ± {one.intervals[1]:.2f}", change))
    if not differences and last.get("bleu") is not None:
        change = ""
        if len(runs) > 1 and first.get("bleu_signature") == last.get("bleu_signature"):
            change = f"{last['bleu'] - first['bleu']:+.2f} against {first['name']}"
        lines.append((f"{last['bleu']:.2f}", "BLEU", change))
    return lines


def _widths(run: Run) -> List[Dict[str, Any]]:
    """The rows of the picture, a side after the other, for a table."""
    sides = []
    for side in ("encoder", "decoder"):
        rows = layer_rows(run["widths"], side)
        if rows:
            layers = max(len(cells) for _, cells in rows)
            sides.append({"name": side, "layers": layers, "rows": rows})
    return sides


def _samples(translations: Sequence[Dict[int, Dict[str, str]]]) -> List[Dict[str, Any]]:
    first, last = translations[0], translations[-1]
    samples = []
    for number in spread([n for n in first if n in last], SAMPLES):
        one, other = first[number]["D"], last[number]["D"]
        samples.append(
            {
                "number": number,
                "source": first[number].get("S", "").replace("@@ ", ""),
                "target": first[number].get("T", "").replace("@@ ", ""),
                "first": marked(one, other),
                "last": marked(other, one),
            }
        )
    return samples


def _commands(runs: Sequence[Run]) -> List[Tuple[str, str]]:
    commands = []
    for run in runs:
        training = run["folder"] / COMMAND
        if training.is_file():
            text = training.read_text(encoding="utf-8", errors="replace").strip()
            commands.append((f"{run['name']}: training", text))
        if run.get("command"):
            commands.append((f"{run['name']}: translation", run["command"]))
    return commands


def _against(runs: Sequence[Run], field: str, across: str) -> Optional[str]:
    """Chart of BLEU against a figure of the runs."""
    known = [run for run in runs if run.get("bleu") is not None and run.get(field)]
    points = [(run[field], run["bleu"]) for run in known]
    labels = [f"{run['name']} {run['bleu']:.1f}" for run in known]
    return chart([Series("", points, labels)], across, "BLEU")


def page(
    runs: Sequence[Run],
    table: pd.DataFrame,
    notes: Sequence[str],
    trainings: Sequence[Path] = (),
) -> str:
    """The page.

    Args:
        runs: of :func:`~.report_table.read_runs`; the last one is the result, the first one
            what it is compared with.
        table: for people, see :func:`~.report_table.readable`.
        notes: conditions of the figures.
        trainings: folders of others, before the runs', for the curves.
    """
    ends = [runs[0], runs[-1]]
    translations = [read_translations(run["folder"]) for run in ends]
    differences = compare(ends, translations) if len(runs) > 1 else []
    notes = list(notes)
    if differences:
        notes += [f"{one.name}: {one.signature}" for one in differences if one.name != "BLEU"]
        notes.append(test_description())
    same_speed = all(_same_speed_conditions(runs[0], run) for run in runs)
    template = importlib.resources.files(__package__).joinpath("report_page.html")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        title=f"{runs[-1]['name']} beside {runs[0]['name']}" if len(runs) > 1 else runs[0]["name"],
        names=(runs[0]["name"], runs[-1]["name"]),
        headline=_headline(runs, differences),
        charts=[
            ("BLEU against size", _against(runs, "parameters", "parameters")),
            (
                "BLEU against speed",
                _against(runs, "tokens_per_second", "tokens a second") if same_speed else "",
            ),
        ],
        curves=[
            (title, chart(series, "updates", title), [one.name for one in series])
            for title, series in _curves(runs, trainings).items()
        ],
        sides=_widths(runs[-1]),
        columns=list(table.columns),
        rows=table.values.tolist(),
        notes=notes,
        samples=_samples(translations) if len(runs) > 1 else [],
        commands=_commands(runs),
    )
