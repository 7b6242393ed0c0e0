"""Time as the budget: the largest candidate that is as fast as was asked for."""

import logging
import math
from typing import Dict, List, NamedTuple, Sequence, Tuple

from ..checks.speed import BASELINES, FAIRSEQ, UNCUT
from ..errors import UserError
from .rows import Candidate, Depths, Measure, Row

logger = logging.getLogger(__name__)

REFINEMENTS = 2  # rates between those of the table are timed so often
CLOSE = 0.02  # a speed-up so little above the one asked for needs no refinement


class Choice(NamedTuple):
    """A candidate that is fast enough, and all that were measured."""

    row: Row
    rows: List[Row]
    baseline: str

    def reasons(self, speed_up: float) -> str:
        """What was chosen and why, in one line."""
        row, others = self.row, []
        for depths in dict.fromkeys(r.candidate.depths for r in self.rows):
            if depths == row.candidate.depths:
                continue
            some = [r for r in self.rows if r.candidate.depths == depths]
            fast = [r for r in some if r.times(self.baseline).median >= speed_up]
            best = max(fast, key=lambda r: r.parameters, default=None)
            layers = "{}+{}".format(*depths)
            others.append(
                f"{layers} reaches it at {best.candidate.rate:g} ({best.parameters:,})"
                if best
                else f"{layers} does not reach it"
            )
        found = row.times(self.baseline)
        return (
            f"{row.candidate}, {row.parameters:,} parameters: measured {found.median:.2f} times "
            f"as fast in {row.engine} as {BASELINES[self.baseline]} (quartiles {found.low:.2f}-"
            f"{found.high:.2f}), the most parameters that reach {speed_up:g}"
            + (f"; {', '.join(others)}" if others else "")
        )


def choose(rows: Sequence[Row], measure: Measure, speed_up: float, baseline: str = UNCUT) -> Choice:
    """The candidate with most parameters among those that reach a speed-up.

    At each depth rates between those of the rows are measured, nearer to the speed-up.

    Args:
        rows: candidates that were measured in one engine, and the model as it was given.
        measure: does so with others.
        baseline: what the speed-up counts from, one of ``BASELINES``.

    Raises:
        UserError: no candidate reaches it, or the model does as it is; says what can be
            reached.
    """

    def reaches(row: Row) -> bool:
        return row.times(baseline).median >= speed_up

    option, base, rows = f"--speed-up {speed_up:g}", BASELINES[baseline], list(rows)
    for row in rows:
        if row.as_given and reaches(row):
            raise UserError(
                f"{option}: the model is {row.times(baseline).median:.2f} times as fast in "
                f"{row.engine} as {base} already, as it is; ask for more, or give a "
                "--compression-rate"
            )
    for _ in range(REFINEMENTS):
        between = _between(rows, speed_up, baseline)
        if not between:
            break
        rows += [row for row in measure(between) if not row.as_given]
    fast = [row for row in rows if reaches(row)]
    if not fast:
        best = max(rows, key=lambda row: row.times(baseline).median)
        also = ""
        if baseline != FAIRSEQ and best.times_fairseq is not None:
            also = (
                f", and {best.times_fairseq.median:.2f} times as {BASELINES[FAIRSEQ]} (from which "
                f"--speed-baseline {FAIRSEQ} counts)"
            )
        raise UserError(
            f"{option}: out of reach on this machine; the fastest that was measured in "
            f"{best.engine} is {best.candidate}, {best.times(baseline).median:.2f} times as fast "
            f"as {base}{also}"
        )
    return Choice(max(fast, key=lambda row: row.parameters), rows, baseline)


def _between(rows: Sequence[Row], speed_up: float, baseline: str) -> List[Candidate]:
    """Candidates nearer to a speed-up than those that were measured, one for a depth."""
    by_depth: Dict[Depths, List[Row]] = {}
    for row in rows:
        by_depth.setdefault(row.candidate.depths, []).append(row)
    found, known = [], {row.candidate for row in rows}
    for depths, some in by_depth.items():
        times = {row: row.times(baseline).median for row in some}
        fast = [row for row in some if times[row] >= speed_up]
        slow = [row for row in some if times[row] < speed_up]
        best = max(fast, key=lambda row: row.share, default=None)
        slow = [row for row in slow if best and row.share > best.share]
        if not slow or times[best] <= speed_up * (1 + CLOSE):
            continue
        last = min(slow, key=lambda row: row.share)
        rate = _on_line((best.share, times[best]), (last.share, times[last]), speed_up)
        candidate = Candidate(*depths, rate)
        if best.share < rate < last.share and candidate not in known:
            found.append(candidate)
    return found


def _on_line(fast: Tuple[float, float], slow: Tuple[float, float], speed_up: float) -> float:
    """The rate that has a speed-up, between two rates and theirs, on logarithmic axes."""
    here, there = math.log(fast[1]), math.log(slow[1])
    way = (here - math.log(speed_up * (1 + CLOSE / 2))) / (here - there)
    rate = math.exp(math.log(fast[0]) * (1 - way) + math.log(slow[0]) * way)
    return float(f"{rate:.3g}")
