"""The picture of the report: remaining widths, and BLEU against size."""

from typing import Any, BinaryIO, Dict, List, Sequence, Tuple

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MaxNLocator

Widths = Dict[str, Sequence[int]]
Run = Dict[str, Any]

# channel groups inside a layer, in the order of the forward pass
LAYER_ROWS = {
    "self_attn.qk": "self-attention query/key",
    "self_attn.vo": "self-attention value/output",
    "encoder_attn.qk": "cross-attention query/key",
    "encoder_attn.vo": "cross-attention value/output",
    "ffn": "feed-forward",
}
SHARES = LinearSegmentedColormap.from_list("shares", ["#f3f7fb", "#8fbbdb", "#1f5f93"])
INK, FAINT, ACCENT = "#22303c", "#8a97a3", "#c8502d"


def on_share(share: float) -> str:
    """Colour of text on ``SHARES(share)``: white where it stands out more than ink."""
    return "white" if share > 0.76 else INK


def layer_rows(widths: Widths, side: str) -> List[Tuple[str, List[Sequence[int]]]]:
    """(label, width and original width per layer) of one side; an embedding has one."""
    rows = []
    if f"{side}.embedding" in widths:
        shared = "decoder.embedding" not in widths
        label = "embedding (encoder and decoder)" if shared else "embedding"
        rows.append((label, [widths[f"{side}.embedding"]]))
    for part, label in LAYER_ROWS.items():
        cells: List[Sequence[int]] = []
        while f"{side}.layers.{len(cells)}.{part}" in widths:
            cells.append(widths[f"{side}.layers.{len(cells)}.{part}"])
        if cells:
            rows.append((label, cells))
    return rows


def _cell(axes, left: float, top: float, span: float, pair, small: bool) -> None:
    width, original = pair
    share = width / original
    gap = 0.04
    axes.add_patch(
        FancyBboxPatch(
            (left + gap, top + gap),
            span - 2 * gap,
            1 - 2 * gap,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=SHARES(share),
            edgecolor="#c9d6e2",
            linewidth=0.6,
        )
    )
    style = {"ha": "center", "color": on_share(share)}
    middle = left + span / 2
    percent = f"{100 * width // original}%" if 100 * width >= original else "<1%"
    axes.text(middle, top + 0.42, percent, va="center", weight="bold", fontsize=9, **style)
    axes.text(middle, top + 0.74, f"{width}/{original}", va="center", fontsize=6 + small, **style)


def _removed_layer(axes, left: int, top: float, rows: int) -> None:
    """One empty cell in the place of all those of a layer that is gone."""
    gap = 0.04
    axes.add_patch(
        FancyBboxPatch(
            (left + gap, top + gap),
            1 - 2 * gap,
            rows - 2 * gap,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="none",
            edgecolor="#c9d6e2",
            linewidth=0.8,
            linestyle="--",
        )
    )
    style = {"ha": "center", "va": "center", "color": FAINT, "fontsize": 9}
    axes.text(left + 0.5, top + rows / 2, "removed", rotation=90, **style)


def draw_widths(axes, run: Run) -> None:
    """A cell for each layer and kind of channel: share that remains, and widths."""
    apart = "\n" if len(run["name"]) > 12 else " "  # beside another title
    axes.set_title(f"Widths that remain in{apart}{run['name']}", loc="left", color=INK)
    axes.axis("off")
    sides = [(side, layer_rows(run["widths"], side)) for side in ("encoder", "decoder")]
    if not any(rows for _, rows in sides):
        axes.text(0.5, 0.5, "no SRP model: all widths remain", ha="center", color=FAINT)
        return
    columns = max(len(cells) for _, rows in sides for _, cells in rows)
    top = 0.0
    for side, rows in sides:
        layers = max((len(cells) for _, cells in rows), default=0)
        heading = {"va": "bottom", "color": FAINT, "fontsize": 8}
        within = [cells for _, cells in rows if len(cells) == layers]
        gone = [n for n in range(layers) if not any(cells[n][0] for cells in within)]
        left = f", {layers - len(gone)} OF {layers} LAYERS" if gone else ""
        axes.text(-0.1, top + 0.9, side.upper() + left, ha="right", weight="bold", **heading)
        for layer in range(layers):
            axes.text(layer + 0.5, top + 0.9, f"layer {layer + 1}", ha="center", **heading)
        top += 1
        for label, cells in rows:
            axes.text(-0.1, top + 0.5, label, ha="right", va="center", fontsize=9, color=INK)
            span = layers / len(cells) if len(cells) == 1 else 1
            for number, pair in enumerate(cells):
                if pair[0]:
                    _cell(axes, number * span, top, span, pair, columns <= 6)
            top += 1
        for number in gone:
            _removed_layer(axes, number, top - len(within), len(within))
        top += 0.15
    axes.set_xlim(-0.1, columns)
    axes.set_ylim(top, 0)


def _label_heights(points: List[Tuple[float, float]], near: float, gap: float) -> List[float]:
    """Heights of the labels, moved up where two would overlap.

    Args:
        points: positions in shares of the axes.
        near: labels of points further apart than this don't touch.
        gap: least distance between labels of near points.
    """
    heights: Dict[int, float] = {}
    for number in sorted(range(len(points)), key=lambda n: points[n][1]):
        x, height = points[number]
        for other in sorted(heights, key=lambda n: heights[n]):
            if abs(points[other][0] - x) < near and abs(heights[other] - height) < gap:
                height = heights[other] + gap
        heights[number] = height
    return [heights[n] for n in range(len(points))]


def millions(value: float, _position=None) -> str:
    return f"{value / 1e6:.3g} M" if value >= 1e5 else f"{value / 1e3:.3g} k"


def draw_bleu(axes, runs: List[Run]) -> None:
    """BLEU against the number of parameters, runs joined in their order."""
    axes.set_title("BLEU against size", loc="left", color=INK)
    runs = [run for run in runs if run["bleu"] is not None]
    if not runs:
        axes.axis("off")
        axes.text(0.5, 0.5, "no BLEU: no references", ha="center", color=FAINT)
        return
    sizes = [run["parameters"] for run in runs]
    scores = [run["bleu"] for run in runs]
    low, high = min(sizes), max(sizes)
    axes.set_xscale("log")
    axes.set_xlim(low / (high / low * 1.6) ** 0.12, high * (high / low * 1.6) ** 0.3)
    margin = max(0.15 * (max(scores) - min(scores)), 0.5)
    top = max(scores) + margin
    axes.set_ylim(max(min(scores) - margin, -0.05 * top), top)  # no marks below 0
    axes.plot(sizes, scores, color="#b9c7d4", linewidth=1.2, zorder=1)
    axes.scatter(sizes[:-1], scores[:-1], s=45, color=SHARES(0.9), zorder=2)
    axes.scatter(sizes[-1:], scores[-1:], s=60, color=ACCENT, zorder=3)

    to_axes = axes.transData + axes.transAxes.inverted()
    points = [tuple(to_axes.transform(point)) for point in zip(sizes, scores)]
    heights = _label_heights(points, near=0.25, gap=0.075)
    for run, (x, y), height in zip(runs, points, heights):
        axes.annotate(
            f"{run['name']}  {run['bleu']:.1f}",
            (x, y),
            (x + 0.025, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=ACCENT if run is runs[-1] else INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85},
        )
    ticks = sorted(set(sizes))
    apart = [t for n, t in enumerate(ticks) if not n or t > 1.25 * ticks[n - 1]]
    axes.set_xticks(apart)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(millions))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlabel("parameters (logarithmic)", color=INK)
    axes.set_ylabel("BLEU", color=INK)
    axes.grid(axis="y", color="#e6ebf0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    for edge in ("left", "bottom"):
        axes.spines[edge].set_color("#b9c7d4")


def draw(runs: List[Run], stream: BinaryIO) -> None:
    """Write the picture as PNG.

    Args:
        runs: reports with ``name``; the widths shown are the last one's.
        stream: open for bytes.
    """
    widths = runs[-1]["widths"]
    layers = [len(c) for side in ("encoder", "decoder") for _, c in layer_rows(widths, side)]
    columns = max(layers, default=1)
    figure = Figure(figsize=(7.2 + 0.75 * columns, 5.6), dpi=150, layout="constrained")
    left, right = figure.subplots(
        1, 2, width_ratios=(2.2 + 0.75 * columns, 4.6), gridspec_kw={"wspace": 0.06}
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    draw_widths(left, runs[-1])
    draw_bleu(right, runs)
    figure.savefig(stream, format="png", facecolor="white")
