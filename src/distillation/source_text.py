"""Additional source sentences for distillation, from files of text."""

import logging
import os
import re
from typing import Callable, Iterable, List, NamedTuple, Sequence, Set

import numpy as np
import torch
from fairseq.data import Dictionary, LanguagePairDataset, ListDataset
from fairseq.data.data_utils import load_indexed_dataset
from torch import Tensor

from ..checks.text import read_lines
from ..errors import UserError

logger = logging.getLogger(__name__)

NAME = "source-text"  # of the set among the task's


class SourceText(NamedTuple):
    """Sentences that are worth translating, and how many lines were left out, and why."""

    sentences: List[Tensor]
    empty: int
    repeated: int
    known: int
    too_long: int

    def __str__(self) -> str:
        return (
            f"{len(self.sentences):,} sentences of additional text; left out {self.repeated:,} "
            f"repeated, {self.known:,} that are in the data, {self.too_long:,} longer than any "
            f"training sentence, {self.empty:,} empty"
        )


def known_sources(folder: str, language: str, dictionary: Dictionary) -> Set[bytes]:
    """The source sentences of all sets of a data folder, as the bytes of their numbers."""
    name = re.compile(rf"([^.]+\.[^.]+-[^.]+\.{re.escape(language)})\.idx")
    known = set()
    for match in filter(None, map(name.fullmatch, sorted(os.listdir(folder)))):
        dataset = load_indexed_dataset(os.path.join(folder, match[1]), dictionary)
        known |= {_key(dataset[i]) for i in range(len(dataset))}
    return known


def _key(sentence: Tensor) -> bytes:
    return sentence.numpy().astype(np.int64).tobytes()


def collect(
    lines: Iterable[str],
    encode: Callable[[str], str],
    dictionary: Dictionary,
    known: Set[bytes],
    longest: int,
) -> SourceText:
    """Sentences of the lines, each once, in their order.

    Args:
        encode: makes tokens of the data's form, with spaces between, of a line.
        known: sentences to leave out, those of validation and test sets among them.
        longest: most tokens, with the end.
    """
    sentences: List[Tensor] = []
    counts = dict.fromkeys(("empty", "repeated", "known", "too_long"), 0)
    seen: Set[bytes] = set()
    for line in lines:
        tokens = dictionary.encode_line(encode(line), add_if_not_exist=False).long()
        key = _key(tokens)
        if len(tokens) <= 1:
            counts["empty"] += 1
        elif key in known:
            counts["known"] += 1
        elif key in seen:
            counts["repeated"] += 1
        elif len(tokens) > longest:
            counts["too_long"] += 1
        else:
            seen.add(key)
            sentences.append(tokens)
    return SourceText(sentences, **counts)


def add_set(task, cfg, paths: Sequence[str], lowercase: bool, limit: int) -> SourceText:
    """Read the files of ``--source-text`` as a set of the task, :data:`NAME`.

    ``--tokenizer`` and ``--bpe``, as fairseq-interactive has them, make tokens of raw text;
    without them the lines hold the data's tokens.

    Args:
        limit: most tokens that the models take.

    Raises:
        UserError: a file can't be read, or nothing is left of them all.
    """
    bpe, tokenizer = task.build_bpe(cfg.bpe), task.build_tokenizer(cfg.tokenizer)

    def encode(line: str) -> str:
        line = line.lower() if lowercase else line
        line = line if tokenizer is None else tokenizer.encode(line)
        return line if bpe is None else bpe.encode(line)

    dictionary = task.source_dictionary
    longest = min(limit, int(max(task.dataset("train").src_sizes)))
    known = known_sources(task.cfg.data, task.cfg.source_lang, dictionary)
    lines = (line for path in paths for line in read_lines(path, "--source-text"))
    text = collect(lines, encode, dictionary, known, longest)
    logger.info(str(text))
    if not text.sentences:
        raise UserError(f"--source-text {' '.join(paths)}: nothing to translate is left: {text}")
    unknown = sum(int((s == dictionary.unk()).sum()) for s in text.sentences)
    share = unknown / sum(map(len, text.sentences))
    if share > 0.05:
        logger.warning(
            f"--source-text: {share:.0%} of its tokens are not in the dictionary; is it of the "
            "data's form (--lowercase, --tokenizer, --bpe with --bpe-codes)?"
        )
    sizes = np.array([len(sentence) for sentence in text.sentences])
    task.datasets[NAME] = LanguagePairDataset(
        ListDataset(text.sentences, sizes),
        sizes,
        dictionary,
        left_pad_source=task.cfg.left_pad_source,
        left_pad_target=task.cfg.left_pad_target,
    )
    return text


def pairs(text: SourceText, found) -> List[Sequence[Tensor]]:
    """Sources with their translations, those that were left out or empty without."""
    return [
        (text.sentences[number], torch.tensor(found[number]))
        for number in sorted(found)
        if len(found[number]) > 1
    ]
