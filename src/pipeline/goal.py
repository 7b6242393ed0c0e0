"""What the compressed model is to be: from the options, or from what plan.py measured."""

import json
from typing import Any, Dict, List, NamedTuple, Optional

from ..checks.speed import MAP
from ..connectivity.stage import PruningStage, StagePlan
from ..errors import UserError
from ..training.explained_errors import naming_options
from .base import Base

PLAN = "plan.json"
Row = Dict[str, Any]


class Goal(NamedTuple):
    """What the compressed model is to be.

    Attributes:
        rate: share of the uncut model's parameters; 1 cuts nothing but layers.
        encoder_layers, decoder_layers: None keeps those that there are.
    """

    rate: float
    encoder_layers: Optional[int] = None
    decoder_layers: Optional[int] = None

    @property
    def cuts_layers(self) -> bool:
        return self.encoder_layers is not None or self.decoder_layers is not None

    def depths(self, base: Base) -> str:
        """Layers that stay, as plan.py has them: ``3+1``."""
        kept = self.encoder_layers, self.decoder_layers
        return "{}+{}".format(*(there if n is None else n for n, there in zip(kept, base.depths)))

    def check(self, base: Base) -> None:
        """Refuse what the model can't be cut to.

        Raises:
            UserError: says what can be reached.
        """
        plan = StagePlan(
            self.rate,
            keep_encoder_layers=self.encoder_layers,
            keep_decoder_layers=self.decoder_layers,
        )
        with naming_options():
            PruningStage(plan, base.model).check()


def given_goal(args) -> Optional[Goal]:
    """The goal that the options name; None where it has to be measured."""
    if args.speed_up is not None or args.megabytes is not None:
        return None
    rate = 1.0 if args.compression_rate is None else args.compression_rate
    return Goal(rate, args.keep_encoder_layers, args.keep_decoder_layers)


class Plan:
    """What plan.py measured.

    Args:
        path: its JSON file.
        engine: of the compressed model.
    """

    def __init__(self, path: str, engine: str):
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
        self.rows: List[Row] = content["rows"]
        self.chosen: Optional[Row] = content.get("chosen")
        self.conditions: Dict[str, Any] = content["conditions"]
        # what is deployed has the map
        mapped = engine + MAP
        self.engine = mapped if any(r["engine"] == mapped for r in self.rows) else engine

    def goal(self, args, base: Base) -> Goal:
        """What the options ask for.

        Raises:
            UserError: nothing that was measured is as small as ``--megabytes`` asks for.
        """
        row = self.chosen or self._of_size(args.megabytes, base.share)
        layers = row["encoder_layers"], row["decoder_layers"]
        kept = [None if n == there else n for n, there in zip(layers, base.depths)]
        return Goal(row["rate"], *kept)

    def _of_size(self, megabytes: float, share: float) -> Row:
        """A row between two that were measured, whose files are so large.

        Args:
            share: of the uncut model's parameters that the model has.
        """
        rows = [row for row in self.rows if row["engine"] == self.engine]
        rows = [row for row in rows if row["share"] <= share + 1e-6]  # the uncut one is there, too
        size = "export_bytes" if rows[0]["export_bytes"] else "checkpoint_bytes"
        rows.sort(key=lambda row: row[size])
        target = megabytes * 1e6
        if rows[0][size] > target or rows[-1][size] <= target:
            raise UserError(
                f"--megabytes {megabytes:g}: out of reach; in {self.engine} the model has "
                f"{rows[-1][size] / 1e6:.2f} MB as it is, and {rows[0][size] / 1e6:.2f} with "
                f"{rows[0]['share']:.1%} of the uncut model's parameters, the least measured"
            )
        small = max((r for r in rows if r[size] <= target), key=lambda row: row[size])
        large = min((r for r in rows if r[size] > target), key=lambda row: row[size])
        way = (target - small[size]) / (large[size] - small[size])
        rate = small["share"] + way * (large["share"] - small["share"])
        return {**small, "rate": float(f"{rate:.4g}")}

    def expected(self, goal: Goal, base: Base) -> List[str]:
        """Size and speed of the model that was measured for a goal, in words."""
        found = []
        for row in self.rows:
            depths = f"{row['encoder_layers']}+{row['decoder_layers']}"
            if depths != goal.depths(base) or abs(row["rate"] - goal.rate) > 1e-4:
                continue
            size = row["export_bytes"] or row["checkpoint_bytes"]
            found.append(
                f"to expect in {row['engine']}: {size / 1e6:.2f} MB, {row['speed_up']:.2f} times "
                f"as fast as the uncut model, {row['times_fairseq']:.2f} times stock fairseq"
            )
        return found
