"""BLEU and chrF of a translated test set, of detokenized text, with sacreBLEU's signatures."""

import hashlib
import logging
from typing import Any, Callable, Dict, List, Optional, Sequence

from sacrebleu.metrics import BLEU, CHRF
from sacremoses import MosesDetokenizer

from ..errors import UserError

logger = logging.getLogger(__name__)


def detokenizer(name: str, language: str) -> Callable[[str], str]:
    """A function from tokens with spaces between them to text: ``moses`` or ``none``."""
    if name == "none":
        return lambda line: line
    moses = MosesDetokenizer(language)
    return lambda line: moses.detokenize(line.split())


def read_references(path: str, sentences: int) -> List[str]:
    """Raw references, one a line, in the order of the test set.

    Raises:
        UserError: not readable, or not as many lines as there are sentences.
    """
    try:
        # lines end with \n only: other separators may stand inside a sentence
        with open(path, encoding="utf-8-sig", newline="\n") as stream:  # without a byte order mark
            lines = stream.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise UserError(f"--reference {path}: {reason}") from None
    if lines[-1] == "":
        lines.pop()
    if len(lines) != sentences:
        raise UserError(
            f"--reference {path}: has {len(lines)} lines, the test set has {sentences} "
            "sentences; give one reference a line, in the test set's order"
        )
    return lines


def corpus_bleu(
    hypotheses: Sequence[str],
    references: Sequence[str],
    lowercase: bool = False,
    tokenize: str = "13a",
) -> Dict[str, Any]:
    """sacreBLEU of a corpus.

    Args:
        tokenize: ``13a`` for detokenized text, ``none`` for tokens.

    Returns:
        ``score`` in percent, sacreBLEU's ``signature``, the ``line`` that sacreBLEU
        prints, and the ``references_sha256``, by which figures of other texts are found.
    """
    metric = BLEU(lowercase=lowercase, tokenize=tokenize, force=tokenize == "none")
    digest = hashlib.sha256("\n".join(references).encode()).hexdigest()
    return {**_scored(metric, hypotheses, references), "references_sha256": digest}


def corpus_chrf(
    hypotheses: Sequence[str], references: Sequence[str], lowercase: bool = False
) -> Dict[str, Any]:
    """chrF2 of a corpus, by sacreBLEU: its ``score``, ``signature`` and ``line``."""
    return _scored(CHRF(lowercase=lowercase), hypotheses, references)


def _scored(metric, hypotheses: Sequence[str], references: Sequence[str]) -> Dict[str, Any]:
    result = metric.corpus_score(list(hypotheses), [list(references)])
    signature = metric.get_signature().format()
    line = result.format(signature=signature)
    return {"score": result.score, "signature": signature, "line": line}


def target_side(cfg, task) -> Optional[List[str]]:
    """The data's target sentences as fairseq-generate prints them; None without any."""
    dataset = task.dataset(cfg.dataset.gen_subset)
    if dataset.tgt is None:
        return None
    bpe, tokenizer = task.build_bpe(cfg.bpe), task.build_tokenizer(cfg.tokenizer)
    lines = []
    for tokens in dataset.tgt:
        line = task.target_dictionary.string(tokens, cfg.common_eval.post_process, escape_unk=True)
        line = line if bpe is None else bpe.decode(line)
        lines.append(line if tokenizer is None else tokenizer.decode(line))
    return lines


def score(
    hypotheses: Sequence[str],
    targets: Optional[Sequence[str]],
    references: Optional[Sequence[str]],
    detokenize: Callable[[str], str],
    lowercase: bool = False,
    tokenized: bool = False,
) -> Dict[str, Dict[str, Any]]:
    """BLEU and chrF of the translations, as far as there is something to compare with.

    Args:
        hypotheses: tokens, one a sentence, in the order of the test set.
        targets: the data's target side, in tokens, or None.
        references: raw text, or None for the target side.
        detokenize: makes text of tokens.
        tokenized: also BLEU of hypotheses and targets as they are.

    Returns:
        ``bleu`` and ``tokenized_bleu``, as from :func:`corpus_bleu`, and ``chrf``.
    """
    scores = {}
    if any("@@ " in line for line in hypotheses):
        logger.warning("the translations hold pieces of words (@@): add --remove-bpe")
    if references is None and targets is not None:
        references = [detokenize(line) for line in targets]
    if references is not None:
        text = [detokenize(line) for line in hypotheses]
        scores["bleu"] = corpus_bleu(text, references, lowercase)
        scores["chrf"] = corpus_chrf(text, references, lowercase)
    if tokenized and targets is not None:
        scores["tokenized_bleu"] = corpus_bleu(hypotheses, targets, lowercase, "none")
    return scores


def report(scores: Dict[str, Dict[str, Any]]) -> Dict[str, Any]:
    """``bleu`` (None without references) and what it is of, ``chrf``, and BLEU of tokens."""
    facts: Dict[str, Any] = {"bleu": None}
    for name, result in scores.items():
        facts[name] = round(result["score"], 4)
        for part in ("signature", "references_sha256"):
            if part in result:
                facts[f"{name}_{part}"] = result[part]
    return facts
