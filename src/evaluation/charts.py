"""Charts as inline SVG, coloured by the page's style sheet."""

import math
from html import escape
from typing import List, NamedTuple, Optional, Sequence, Tuple

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 14, 40


class Series(NamedTuple):
    """Points in their order, joined by a line.

    Attributes:
        labels: text beside each point, or None for a line without marks.
    """

    name: str
    points: Sequence[Tuple[float, float]]
    labels: Optional[Sequence[str]] = None


def ticks(low: float, high: float, count: int = 5) -> List[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= min((1, 2, 5, 10), key=lambda n: abs((high - low) / (n * step) - count))
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in few characters: 1.2 M, 36 k, 0.35."""
    for limit, unit in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _range(values: Sequence[float], margin: float) -> Tuple[float, float]:
    low, high = min(values), max(values)
    extra = margin * (high - low) or abs(high) * margin or 1.0
    return (max(0.0, low - extra) if low >= 0 else low - extra), high + extra


def chart(series: Sequence[Series], across: str, up: str) -> str:
    """A chart with one axis each way.

    Args:
        across, up: what the axes show, units included.

    Returns:
        An ``svg`` element; the empty text where no series has a point.
    """
    series = [one for one in series if one.points]
    if not series:
        return ""
    marks = any(one.labels for one in series)
    xs = _range([x for one in series for x, _ in one.points], 0.12 if marks else 0.0)
    ys = _range([y for one in series for _, y in one.points], 0.15)

    def place(x: float, y: float) -> Tuple[float, float]:
        right = (x - xs[0]) / (xs[1] - xs[0]) * (WIDTH - LEFT - RIGHT)
        height = (y - ys[0]) / (ys[1] - ys[0]) * (HEIGHT - TOP - BOTTOM)
        return round(LEFT + right, 1), round(HEIGHT - BOTTOM - height, 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(up)}">']
    for value in ticks(*ys):
        _, y = place(xs[0], value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">')
        parts.append(f"{short(value)}</text>")
    for value in ticks(*xs):
        x, _ = place(value, ys[0])
        parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 16}"')
        parts.append(f' text-anchor="middle">{short(value)}</text>')
    parts.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">')
    parts.append(f"{escape(across)}</text>")
    for number, one in enumerate(series):
        places = [place(x, y) for x, y in one.points]
        line = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline class="line s{number % 4}" points="{line}"/>')
        for index, (x, y) in enumerate(places if one.labels else []):
            last = index == len(places) - 1
            parts.append(f'<circle class="mark{" last" if last else ""}" cx="{x}" cy="{y}" r="5"/>')
            end = x > 0.72 * WIDTH
            parts.append(f'<text class="label" x="{x + (-9 if end else 9)}" y="{y - 8}"')
            parts.append(f' text-anchor="{"end" if end else "start"}">')
            parts.append(f"{escape(one.labels[index])}</text>")
    parts.append("</svg>")
    return "".join(parts)
