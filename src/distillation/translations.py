"""Translations of a set, kept in a file line by line, so that an interrupted run goes on."""

import logging
import os
from typing import Callable, Dict, List, Optional

import numpy as np
import sacrebleu
from fairseq.data import Dictionary

from ..decoding.translate import Translation, make_batches, translate
from ..errors import UserError
from ..files import refusing_failed_writes

logger = logging.getLogger(__name__)

Choose = Callable[[Translation], Optional[dict]]  # a hypothesis, or None for none of them


def best_score(translation: Translation) -> dict:
    """The hypothesis that the model likes best."""
    return translation.hypotheses[0]


def best_bleu(dictionary: Dictionary, post_process: str = "@@ ") -> Choose:
    """The hypothesis closest to the data's own translation, by sentence BLEU of words.

    (Kim and Rush, 2016, section 3.3: sequence-level interpolation.) Of equals, and where there
    is no translation to compare with, the one that the model likes best.
    """

    def text(tokens) -> str:
        return dictionary.string(tokens, post_process)

    def choose(translation: Translation) -> dict:
        if translation.target is None:
            return best_score(translation)
        reference = [text(translation.target)]
        return max(
            translation.hypotheses,
            key=lambda h: (
                sacrebleu.sentence_bleu(text(h["tokens"]), reference, tokenize="none").score
            ),
        )

    return choose


def above(least: float) -> Choose:
    """The best hypothesis, if its mean log-probability of a token (natural) reaches ``least``."""

    def choose(translation: Translation) -> Optional[dict]:
        best = best_score(translation)
        return best if float(best["score"]) >= least else None

    return choose


def read_translations(path: str, dataset, dictionary: Dictionary) -> Dict[int, List[int]]:
    """Translations of an interrupted run, by sentence; a last line cut short is left out.

    Args:
        dataset: the sentences that it was to translate.
        dictionary: of the translations.

    Raises:
        UserError: names the line that this tool has not written.
    """
    found: Dict[int, List[int]] = {}
    if not os.path.isfile(path):
        return found
    with open(path, "rb") as stream:
        lines = stream.read().split(b"\n")[:-1]
    for place, line in enumerate(lines, 1):
        number, *tokens = (int(x) if x.isdigit() else -1 for x in line.split(b" "))
        if (
            not 0 <= number < len(dataset)
            or number in found
            or tokens[-1:] != [dictionary.eos()]
            or not all(0 <= token < len(dictionary) for token in tokens)
        ):
            raise UserError(
                f"{path}: line {place} ({line[:30].decode('ascii', 'backslashreplace')}) is no "
                "translation that this tool has written; remove the file to translate anew"
            )
        found[number] = tokens
    return found


def empty_lines(dataset) -> List[int]:
    """Numbers of the sentences whose source has no word."""
    return np.flatnonzero(np.asarray(dataset.src_sizes) <= 1).tolist()


def translate_set(
    cfg, loaded, generator, path: str, choose: Choose = best_score
) -> Dict[int, List[int]]:
    """Translate what ``path`` doesn't hold yet, adding to it batch by batch.

    Args:
        cfg: fairseq's; ``--gen-subset`` is the set.
        generator: fairseq's, or an engine.
        choose: the hypothesis to keep.

    Returns:
        Token numbers of the translation of each sentence, with the end; the end alone where
        none was chosen.
    """
    task, models = loaded.task, loaded.models
    dataset = task.dataset(cfg.dataset.gen_subset)
    found = read_translations(path, dataset, task.target_dictionary)
    if found:
        logger.info(f"{len(found):,} sentences were translated before, in {path}")
    # whatever a model makes of an empty line is an invention
    left_out = {*found, *loaded.skipped, *empty_lines(dataset)}
    # what fairseq-generate prints lacks them as well
    no_words = task.target_dictionary.bos(), task.target_dictionary.pad()
    mode = "r+b" if os.path.isfile(path) else "wb"
    with refusing_failed_writes(path), open(path, mode) as stream:
        content = stream.read() if found else b""
        stream.truncate(content.rfind(b"\n") + 1)  # a line that a kill has cut short
        stream.seek(0, os.SEEK_END)
        batches = make_batches(cfg, task, models, left_out)
        for translation in translate(task, models, generator, batches):
            number, chosen = translation.number, choose(translation)
            end = [task.target_dictionary.eos()]
            tokens = end if chosen is None else chosen["tokens"].tolist()
            found[number] = [token for token in tokens if token not in no_words]
            line = " ".join(map(str, [number, *found[number]]))
            stream.write(f"{line}\n".encode("ascii"))
            stream.flush()
    return found
