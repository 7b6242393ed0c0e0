"""What a compression brought: BLEU, size and speed before and after, in a few lines."""

import json
import logging
import os
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from ..evaluation.bleu import detokenizer, read_references

SAMPLES = 1000
_LINE = re.compile(r"^([TD])-(\d+)\t(.*)$")


@dataclass(frozen=True)
class Headline:
    """Figures of the model before and after.

    Attributes:
        bleu: before and after; None without references.
        p: of the paired bootstrap test for the difference, one-sided.
        bytes: weights in float32 before, what is deployed after.
        parameters: before and after.
        faster: for each engine times as fast as stock fairseq with the uncut model, and as the
            uncut model in the same engine; medians of rounds side by side.
        conditions: of speed.
        signature: of BLEU.
    """

    bleu: Tuple[Optional[float], Optional[float]]
    p: Optional[float]
    bytes: Tuple[int, int]
    parameters: Tuple[int, int]
    faster: Dict[str, Tuple[float, float]]
    conditions: str
    signature: Optional[str]

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
        if None not in self.bleu:
            p = "" if self.p is None else f", p = {self.p:.3f} (paired bootstrap, one-sided)"
            found.append(f"BLEU {self.bleu[1]:.2f}, before {self.bleu[0]:.2f}{p}")
            found.append(f"BLEU: {self.signature}")
        found.append(f"speed: {self.conditions}")
        return found


def read_translations(path: str, detok: str, language: str) -> Tuple[List[str], List[str]]:
    """Best translations and the data's target side in a file of generate.py, as text.

    Returns:
        Both in the order of the set; no target side where the file has none.
    """
    found: Dict[str, Dict[int, str]] = {"D": {}, "T": {}}
    with open(path, encoding="utf-8", newline="\n") as stream:
        for line in stream:
            match = _LINE.match(line.rstrip("\n"))
            if match:
                text = match[3].partition("\t")[2] if match[1] == "D" else match[3]
                found[match[1]].setdefault(int(match[2]), text)
    plain = detokenizer(detok, language)
    return tuple([plain(part[n]) for n in sorted(found["D"]) if n in part]
                 for part in (found["D"], found["T"]))  # fmt: skip


def paired_p(first: List[str], second: List[str], references: List[str], lower: bool) -> float:
    """How often resampling alone makes one system's BLEU better by as much; one-sided."""
    level = logging.getLogger("sacrebleu").level
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)
    try:
        metric = BLEU(lowercase=lower, references=[references])
        systems = [("baseline", first), ("system", second)]
        test = PairedTest(systems, {"BLEU": metric}, None, "bs", n_samples=SAMPLES)
        return float(test()[1]["BLEU"][1].p_value)
    finally:
        logging.getLogger("sacrebleu").setLevel(level)


def _report(folder: str) -> Dict[str, Any]:
    with open(os.path.join(folder, "report.json"), encoding="utf-8") as stream:
        return json.load(stream)


def folder_bytes(path: str) -> int:
    """Size of the files in a folder."""
    return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())


def read_headline(
    folders: Tuple[str, str],
    deployed: Optional[str],
    speed: str,
    detok: str,
    language: str,
    lowercase: bool,
) -> Headline:
    """The figures of two tests.

    Args:
        folders: of the steps that translated the test set before and after.
        deployed: folder of the exported model, None if there is none.
        speed: what plan.py wrote of the compressed model.
        detok: how output becomes text, see generate.py.
    """
    before, after = (_report(folder) for folder in folders)
    texts = [read_translations(os.path.join(f, "generate.txt"), detok, language) for f in folders]
    references = texts[0][1]
    with open(speed, encoding="utf-8") as stream:
        measured = json.load(stream)
    how, faster = measured["conditions"], {}
    for row in measured["rows"]:
        if row["share"] < 1:
            faster[row["engine"]] = row["times_fairseq"], row["speed_up"]
    p = None
    if after["reference"]:
        references = read_references(after["reference"], len(texts[0][0]))
    if len(references) == len(texts[0][0]) == len(texts[1][0]):
        p = paired_p(texts[0][0], texts[1][0], references, lowercase)
    return Headline(
        bleu=(before["bleu"], after["bleu"]),
        p=p,
        bytes=(
            before["model_bytes"],
            folder_bytes(deployed) if deployed else after["model_bytes"],
        ),
        parameters=(before["uncut_parameters"], after["parameters"]),
        faster=faster,
        conditions=f"{how['machine']}, {how['threads']} threads, {how['sentences']} sentences of "
        f"set {how['gen_subset']}, beam {how['beam']}, {how['rounds']} rounds",
        signature=after.get("bleu_signature"),
    )
