"""Pictures of a grid's results: quality against size, and remaining widths."""

import re
from typing import Any, BinaryIO, Dict, List, Optional, Tuple

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from src.evaluation.report_picture import ACCENT, FAINT, INK, SHARES, on_share

Row = Dict[str, Any]
_AXES = {
    "parameters": ("parameters", 1e6, "million parameters that are not zero"),
    "flops": ("flops", 1e6, "MFLOPs a sentence"),
    "speed": ("times fairseq, pytorch", 1, "speed against fairseq, PyTorch"),
}
ASIDE = "#c3ccd4"
_MOST_SERIES = 20  # as many colours can be told apart, more or less


def _value(row: Row, key: str):
    if key == "parameters":  # of a sparse model, those that are there
        return row.get("nonzero_parameters", row["parameters"])
    return row.get(key)


def _curve(row: Row) -> str:
    """A model's name without the rate that it ends with."""
    return re.sub(r",? \d*\.?\d+$", "", row["name"])


def _series(rows: List[Row]) -> Tuple[List[Optional[str]], bool]:
    """Each model's series, and whether to join its points: those differ in numbers alone.

    Of more series than colours those of several rates remain; the other models, which
    have None, stand aside.
    """

    def name(row: Row) -> str:
        text = row["group"]
        for key, value in row["values"].items():
            number = isinstance(value, (int, float))
            text = text.replace(f"{{{key}}}", "…" if number else str(value))
        return text

    names = [name(row) for row in rows]
    if len(set(names)) <= _MOST_SERIES:
        return names, True
    curves = [_curve(row) for row in rows]
    several = [curve for curve in dict.fromkeys(curves) if curves.count(curve) > 1]
    if 1 < len(several) <= _MOST_SERIES:
        return [curve if curve in several else None for curve in curves], True
    return [re.sub(r"\{(\w+)\}", r"any \1", row["group"]) for row in rows], False


def draw_quality(rows: List[Row], stream: BinaryIO, base: str) -> None:
    """BLEU against parameters, FLOPs and, where it was measured, speed.

    Args:
        base: name of the model that gets a mark of its own.
    """
    panels = [
        (key, unit, label)
        for key, unit, label in _AXES.values()
        if any(_value(row, key) is not None for row in rows)
    ]
    series, joined = _series(rows)
    groups = list(dict.fromkeys(s for s, row in zip(series, rows) if row["name"] != base))
    groups.sort(key=lambda group: group is not None)  # those aside first, below the others
    figure = Figure(figsize=(5.2 * len(panels), 5.4), layout="constrained")
    colors = colormaps["tab10" if len(groups) <= 10 else "tab20"]
    for number, (key, unit, label) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        for index, group in enumerate(groups):
            members = sorted(
                (
                    row
                    for name, row in zip(series, rows)
                    if name == group and row["name"] != base and _value(row, key) is not None
                ),
                key=lambda row: row["parameters"],  # joined from small to large
            )
            points = [(_value(row, key) / unit, row["bleu"]) for row in members]
            if points:
                axes.plot(
                    *zip(*points),
                    marker="o",
                    markersize=4 if group else 3,
                    linewidth=1.3 if joined and group else 0,
                    color=colors(index % colors.N) if group else ASIDE,
                    label=group or "one rate only",
                )
        for row in rows:
            if row["name"] == base and _value(row, key) is not None:
                place = _value(row, key) / unit, row["bleu"]
                axes.plot(*place, marker="D", color=ACCENT, markersize=6)
                axes.annotate(
                    row["name"], place, (4, -11), textcoords="offset points", color=INK,
                    fontsize=8,
                )  # fmt: skip
        axes.set_xlabel(label)
        axes.set_ylabel("BLEU")
        if key != "times fairseq, pytorch":
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.tick_params(axis="x", which="both", labelrotation=45, labelsize=8)
        axes.grid(color="#e3e9ee", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False
        )
    figure.savefig(stream, format="png", dpi=130)


def draw_widths(rows: List[Row], stream: BinaryIO) -> None:
    """The share of every width that remains, a line a model that lost channels."""
    cut = [
        row for row in rows if any(now < uncut for now, uncut in (row.get("widths") or {}).values())
    ]
    names = list(dict.fromkeys(name for row in cut for name in row["widths"]))
    height = 1.8 + 0.28 * max(1, len(cut))
    figure = Figure(figsize=(3.5 + 0.36 * max(8, len(names)), height + 1.6), layout="constrained")
    axes = figure.add_subplot()
    if not cut:
        axes.axis("off")
        axes.text(0.5, 0.5, "no model lost channels", ha="center", color=FAINT)
    else:
        shares = [
            [row["widths"][n][0] / row["widths"][n][1] if n in row["widths"] else 0 for n in names]
            for row in cut
        ]
        image = axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, aspect="auto")
        axes.set_yticks(range(len(cut)), [row["name"] for row in cut], fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        for y, values in enumerate(shares):
            for x, share in enumerate(values):
                axes.text(
                    x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=6,
                    color=on_share(share),
                )  # fmt: skip
        bar = figure.colorbar(image, ax=axes, pad=0.01)
        bar.set_label("share of the width that remains", fontsize=8)
    figure.savefig(stream, format="png", dpi=130)
