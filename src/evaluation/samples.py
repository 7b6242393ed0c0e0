"""Translations of two runs side by side, and whether their difference means anything."""

import difflib
import hashlib
import logging
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import sacrebleu
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from ..errors import UserError
from .bleu import detokenizer, read_references

TRANSLATIONS = "generate.txt"  # standard output of generate.py, beside its report
RESAMPLES = 1000

Sentence = Dict[str, str]  # S: source, T: target, D: best hypothesis, all in tokens


class Difference(NamedTuple):
    """One metric of the first and of the last run.

    Attributes:
        scores: of both, in percent.
        intervals: half of each one's 95 % confidence interval.
        p_value: of no difference, by paired bootstrap resampling.
        signature: sacreBLEU's, of a single system.
    """

    name: str
    scores: Tuple[float, float]
    intervals: Tuple[float, float]
    p_value: float
    signature: str


def read_translations(folder: Path) -> Dict[int, Sentence]:
    """Sentences of ``generate.txt`` by their number; of several hypotheses the best one.

    Returns:
        Nothing where there is no such file, or none of its lines is of a sentence.
    """
    path = folder / TRANSLATIONS
    if not path.is_file():
        return {}
    sentences: Dict[int, Sentence] = {}
    # other separators may stand inside a sentence
    for line in path.read_bytes().decode("utf-8", "replace").split("\n"):
        kind, dash, rest = line.partition("-")
        number, *fields = rest.split("\t")
        if dash and kind in ("S", "T", "D") and number.isdigit() and fields:
            sentences.setdefault(int(number), {}).setdefault(kind, fields[-1])
    return {n: found for n, found in sentences.items() if "D" in found}


def _text(lines: Sequence[str], run: Dict[str, Any]) -> List[str]:
    """Detokenized as generate.py did for the run's BLEU."""
    detokenize = detokenizer(run.get("detok", "moses"), run.get("target_lang", "en"))
    return [detokenize(line) for line in lines]


def _references(run: Dict[str, Any], sentences: Dict[int, Sentence]) -> Optional[List[str]]:
    """The references that the run's BLEU is of; None if they can't be had any more."""
    path = run.get("reference")
    if path and Path(path).is_file():
        try:
            references = read_references(path, len(sentences))
        except UserError:  # changed since
            return None
    else:
        references = _text([sentences[n].get("T", "") for n in sorted(sentences)], run)
    digest = hashlib.sha256("\n".join(references).encode()).hexdigest()
    return references if digest == run.get("bleu_references_sha256") else None


def compare(
    runs: Sequence[Dict[str, Any]], translations: Sequence[Dict[int, Sentence]]
) -> List[Difference]:
    """BLEU and chrF of two runs, with confidence intervals and the p-value between them.

    Args:
        runs: the first one is the baseline.
        translations: of both, see :func:`read_translations`.

    Returns:
        Nothing where a run's own BLEU can't be computed again from its translations: they
        are incomplete, or the references are gone or others.
    """
    systems = []
    for run, sentences in zip(runs, translations):
        references = _references(run, sentences) if run.get("bleu") is not None else None
        if references is None or sorted(sentences) != list(range(len(references))):
            return []
        lowercase = "case:lc" in (run.get("bleu_signature") or "")
        text = _text([sentences[n]["D"] for n in range(len(references))], run)
        bleu = BLEU(lowercase=lowercase)
        if abs(bleu.corpus_score(text, [references]).score - run["bleu"]) > 0.005:
            return []
        systems.append((run["name"], text))
    metrics = {
        "BLEU": BLEU(lowercase=lowercase),
        "chrF2": CHRF(lowercase=lowercase),
    }  # sacreBLEU's names
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)
    _, results = PairedTest(systems, metrics, [references], test_type="bs", n_samples=RESAMPLES)()
    differences = []
    for name, metric in metrics.items():
        first, last = results[name]
        metric.corpus_score(systems[0][1], [references])  # the signature knows the references
        differences.append(
            Difference(
                name.removesuffix("2"),
                (first.score, last.score),
                (first.ci, last.ci),
                last.p_value,
                metric.get_signature().format(),
            )
        )
    return differences


def test_description() -> str:
    """What the p-values and intervals are, for the conditions below the figures."""
    return (
        f"Intervals and p: paired bootstrap resampling, {RESAMPLES:,} samples, "
        f"sacreBLEU {sacrebleu.__version__}"
    )


def spread(numbers: Sequence[int], count: int) -> List[int]:
    """``count`` of them, evenly spread, so that nobody picked them."""
    numbers = sorted(numbers)
    count = min(count, len(numbers))
    return [numbers[int((n + 0.5) * len(numbers) / count)] for n in range(count)]


def marked(text: str, other: str) -> List[Tuple[str, bool]]:
    """Pieces of a text, each with whether the other one differs there, by words."""
    one, two = text.split(), other.split()
    matcher = difflib.SequenceMatcher(a=one, b=two, autojunk=False)
    return [
        (" ".join(one[start:end]), kind != "equal")
        for kind, start, end, _, _ in matcher.get_opcodes()
        if end > start
    ]
