"""The picture of a plan: what speed-up how many parameters have, at each depth."""

from typing import BinaryIO, Optional, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..evaluation.report_picture import ACCENT, FAINT, INK, millions
from .rows import Row

COLOURS = ("#1f5f93", "#3a9a78", "#8a5fa8", "#b0662a", "#8a97a3")


def draw(rows: Sequence[Row], stream: BinaryIO, chosen: Optional[Row] = None) -> None:
    """Write the picture as PNG: one pair of axes an engine, one line a depth.

    Args:
        stream: open for bytes.
        chosen: is marked.
    """
    engines = list(dict.fromkeys(row.engine for row in rows))
    size = 1.6 + 3.9 * len(engines), 4.4
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    several = figure.subplots(1, len(engines), squeeze=False, sharey=True)[0]
    for axes, engine in zip(several, engines):
        _draw_engine(axes, [row for row in rows if row.engine == engine], chosen)
        axes.set_title(engine, loc="left", color=INK)
    figure.savefig(stream, format="png", facecolor="white")


def _draw_engine(axes, rows: Sequence[Row], chosen: Optional[Row]) -> None:
    depths = list(dict.fromkeys(row.candidate.depths for row in rows))
    for number, some in enumerate(sorted(depths, reverse=True)):
        line = sorted((r for r in rows if r.candidate.depths == some), key=lambda r: r.parameters)
        found = [row.speed_up for row in line]
        axes.errorbar(
            [row.parameters for row in line],
            [x.median for x in found],
            yerr=[[x.median - x.low for x in found], [x.high - x.median for x in found]],
            label=f"{line[0].candidate.layers} layers",
            color=COLOURS[number % len(COLOURS)],
            marker="o",
            markersize=4,
            capsize=3,
        )
    axes.axhline(1, linestyle="--", linewidth=0.8, color=FAINT)
    if chosen is not None and chosen in rows:
        axes.scatter(
            chosen.parameters, chosen.speed_up.median, s=130, facecolors="none", edgecolors=ACCENT
        )
        axes.annotate(
            f"{chosen.candidate}",
            (chosen.parameters, chosen.speed_up.median),
            (8, 8),
            textcoords="offset points",
            color=ACCENT,
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("parameters (logarithmic)", color=INK)
    axes.set_ylabel("speed-up over the uncut model", color=INK)
    for axis, style in ((axes.xaxis, millions), (axes.yaxis, lambda value, _: f"{value:g}")):
        axis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_major_formatter(FuncFormatter(style))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#e6ebf0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
