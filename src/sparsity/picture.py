"""The picture of a sparsity report: density per layer."""

import re
from typing import BinaryIO, Dict, List, NamedTuple, Tuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .report import OVER_ALL, OVER_PRUNABLE

INK, FAINT, ACCENT, TRACK = "#22303c", "#8a97a3", "#c8502d", "#eef3f7"
KINDS = ("#1f5f93", "#5b9bc8", "#2f8f7b", "#8cbf72", "#c9a227", "#8a6bb1", "#b5739d")
OTHER_KINDS = "#8a97a3"
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name that is a number
ROWS_IN_A_COLUMN = 52  # more than that are set in two columns
ROW, GAP = 1.0, 0.9  # heights: a bar, the space above a group
INCHES = 0.165  # of a bar
TOGETHER, FEW = 12, 3  # bars of a group that isn't split, bars that don't stand alone


class Bar(NamedTuple):
    label: str  # the numbers in the layer's name
    kind: str
    density: float


Groups = List[Tuple[str, List[Bar]]]


def _kind(layer: str, type_name: str) -> str:
    """The last part of a layer's name that is not a number, else its type."""
    parts = [part for part in layer.split(".") if part and not part.isdigit()]
    return parts[-1] if parts else type_name


def groups(report: pd.DataFrame) -> Groups:
    """Group the layers whose names differ only in numbers.

    Args:
        report: of :func:`.report.sparsity_report`.

    Returns:
        Title (the common name with ``*`` for each number) and bars, in the order of
        the report.
    """
    bars_of: Dict[str, List[Bar]] = {}
    for row in report.itertuples():
        if row.layer in (OVER_PRUNABLE, OVER_ALL):
            continue
        title = NUMBER.sub("*", row.layer) or row.type
        label = ".".join(NUMBER.findall(row.layer))
        bar = Bar(label, _kind(row.layer, row.type), 1 - row.sparsity)
        bars_of.setdefault(title, []).append(bar)
    return list(bars_of.items())


def _height(groups_of_bars: Groups) -> float:
    return sum(GAP + ROW * len(bars) for _, bars in groups_of_bars)


def columns(groups_of_bars: Groups) -> List[Groups]:
    """The groups in one column or, where they are many, in two of about one height.

    A long group that crosses the middle goes on in the second column.
    """
    if sum(len(bars) for _, bars in groups_of_bars) <= ROWS_IN_A_COLUMN:
        return [groups_of_bars]
    half = _height(groups_of_bars) / 2
    left: Groups = []
    right: Groups = []
    for title, bars in groups_of_bars:
        fitting = (half - _height(left) - GAP) / ROW
        number = 0 if right else min(max(round(fitting), 0), len(bars))
        if len(bars) <= TOGETHER or min(number, len(bars) - number) < FEW:
            number = len(bars) if 2 * number >= len(bars) else 0
        if number:
            left.append((title, bars[:number]))
        if number < len(bars):
            title += " (continued)" if number else ""
            right.append((title, bars[number:]))
    return [left, right] if right else [left]


def percent(share: float) -> str:
    """A density in few digits that is 0 % or 100 % only where it is exactly that."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    if share < 0.0005:
        return "<0.1%"
    return f"{share:.1%}" if share < 0.9995 else ">99.9%"


def _draw_column(axes, groups_of_bars: Groups, colours: Dict[str, str], total: float) -> None:
    top = 0.0
    for title, bars in groups_of_bars:
        style = {"color": FAINT, "fontsize": 7.5, "va": "center", "zorder": 4}
        style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.text(0.002, top + GAP * 0.6, title, **style)
        top += GAP
        for bar in bars:
            middle = top + ROW / 2
            axes.barh(middle, 1, height=0.72 * ROW, color=TRACK, zorder=1)
            axes.barh(middle, bar.density, height=0.72 * ROW, color=colours[bar.kind], zorder=2)
            axes.text(-0.012, middle, bar.label, ha="right", va="center", fontsize=7, color=INK)
            axes.text(1.012, middle, percent(bar.density), va="center", fontsize=7, color=INK)
            top += ROW
    axes.axvline(total, color=ACCENT, linewidth=1.1, linestyle=(0, (4, 2)), zorder=3)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.set_yticks([])
    axes.tick_params(colors=INK, length=3, labelsize=8)
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)
    axes.spines["bottom"].set_color("#b9c7d4")
    axes.set_xlabel("density: share of the weights that remain", color=INK, fontsize=8)


def draw_density(report: pd.DataFrame, stream: BinaryIO) -> None:
    """Write the density of every layer as a PNG.

    One bar a layer. Layers whose names differ in their numbers stand together under
    their common name; the colour is that of the last part of the name. A dashed line
    marks the density over all prunable weights.

    Args:
        report: of :func:`.report.sparsity_report`.
        stream: open for bytes.
    """
    groups_of_bars = groups(report)
    totals = report.set_index("layer")["sparsity"]
    total, whole = 1 - totals[OVER_PRUNABLE], 1 - totals[OVER_ALL]
    kinds = list(dict.fromkeys(bar.kind for _, bars in groups_of_bars for bar in bars))
    colours = {
        kind: KINDS[number] if number < len(KINDS) else OTHER_KINDS
        for number, kind in enumerate(kinds)
    }
    parts = columns(groups_of_bars)
    tallest = max(_height(part) for part in parts)
    figure = Figure(
        figsize=(1.2 + 4.6 * len(parts), max(INCHES * tallest, 0.8) + 1.5),
        dpi=150,
        layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1, wspace=0.08),
    )
    figure.suptitle(
        f"Density: {percent(total)} of the prunable weights, {percent(whole)} of all",
        color=INK,
        fontsize=10,
    )
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts):
        _draw_column(axes, part, colours, total)
        axes.set_ylim(tallest, 0)  # one scale, so that bars are equally thick
    named = kinds[: len(KINDS)]
    entries: List[Artist] = [Patch(color=colours[kind], label=kind) for kind in named]
    if len(kinds) > len(named):
        entries.append(Patch(color=OTHER_KINDS, label="others"))
    entries.append(Line2D([], [], color=ACCENT, linestyle="--", label="all prunable"))
    rows = -(-len(entries) // (4 * len(parts)))
    figure.legend(
        handles=entries,
        loc="outside lower center",
        ncols=-(-len(entries) // rows),
        fontsize=7.5,
        labelcolor=INK,
        frameon=False,
        handlelength=1.6,
    )
    figure.savefig(stream, format="png", facecolor="white")
