"""What a compression brought: BLEU, size and speed before and after, in a few lines."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ..evaluation.samples import compare, read_translations


@dataclass(frozen=True)
class Headline:
    """Figures of the model before and after.

    Attributes:
        scores: BLEU and chrF before and after (None without references), p of the paired
            bootstrap test for the difference, one-sided, and sacreBLEU's signature.
        bytes: weights in float32 before, what is deployed after.
        parameters: before and after.
        faster: for each engine times as fast as stock fairseq with the uncut model, and as the
            uncut model in the same engine; medians of rounds side by side.
        conditions: of speed.
    """

    scores: Dict[str, Tuple[Optional[float], Optional[float], Optional[float], Optional[str]]]
    bytes: Tuple[int, int]
    parameters: Tuple[int, int]
    faster: Dict[str, Tuple[float, float]]
    conditions: str

    @property
    def bleu(self) -> Tuple[Optional[float], Optional[float]]:
        """Before and after."""
        return self.scores["BLEU"][:2]

    def lines(self) -> List[str]:
        """As they are printed."""
        smaller = self.bytes[0] / self.bytes[1]
        share = self.parameters[1] / self.parameters[0]
        found = []
        for engine, (stock, uncut) in self.faster.items():
            found.append(
                f"{engine}: {stock:.1f} times as fast as stock fairseq with the uncut model, "
                f"{uncut:.1f} times as fast as the uncut model there"
            )
        found.append(
            f"{smaller:.1f} times smaller: {self.bytes[1] / 1e6:.2f} MB instead of "
            f"{self.bytes[0] / 1e6:.2f}, {share:.1%} of its {self.parameters[0]:,} parameters"
        )
        for name, (before, after, p, signature) in self.scores.items():
            if None in (before, after):
                continue
            chance = "" if p is None else f", p = {p:.3f}"
            found.append(f"{name} {after:.2f}, before {before:.2f}{chance} ({signature})")
        found.append(f"speed: {self.conditions}; p: paired bootstrap, one-sided")
        return found


def _report(folder: str) -> Dict[str, Any]:
    with open(os.path.join(folder, "report.json"), encoding="utf-8") as stream:
        return json.load(stream)


def folder_bytes(path: str) -> int:
    """Size of the files in a folder."""
    return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())


def read_headline(
    folders: Tuple[str, str], deployed: Optional[str], speed: str, trimmed: bool = False
) -> Headline:
    """The figures of two tests.

    Args:
        folders: of the steps that translated the test set before and after.
        deployed: folder of the exported model, None if there is none.
        speed: what plan.py wrote of the compressed model.
        trimmed: its vocabulary is, and so that of the uncut model beside it.
    """
    before, after = (_report(folder) for folder in folders)
    with open(speed, encoding="utf-8") as stream:
        measured = json.load(stream)
    how, faster = measured["conditions"], {}
    for row in measured["rows"]:
        if row["share"] < 1:
            faster[row["engine"]] = row["times_fairseq"], row["speed_up"]
    runs = [{**before, "name": "before"}, {**after, "name": "after"}]
    scores = compare(runs, [read_translations(Path(folder)) for folder in folders])
    return Headline(
        scores={d.name: (*d.scores, d.p_value, d.signature) for d in scores}
        or {"BLEU": (before["bleu"], after["bleu"], None, after.get("bleu_signature"))},
        bytes=(
            before["model_bytes"],
            folder_bytes(deployed) if deployed else after["model_bytes"],
        ),
        parameters=(before["parameters"], after["parameters"]),
        faster=faster,
        conditions=f"{how['machine']}, {how['threads']} threads, {how['sentences']} sentences of "
        f"set {how['gen_subset']}, beam {how['beam']}, {how['rounds']} rounds"
        + (", the uncut model with the trimmed vocabulary" if trimmed else ""),
    )
