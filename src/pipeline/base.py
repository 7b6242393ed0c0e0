"""What a pipeline starts from: a trained model and its data."""

import math
from dataclasses import dataclass
from typing import List, Optional, Tuple

from fairseq import utils
from fairseq.data import Dictionary, LanguagePairDataset
from torch import nn

from ..connectivity.budget import ParameterCount
from ..connectivity.groups import base_parameters

WORDS, CODES, PIECES = "words", "subword_nmt", "sentencepiece"  # how text was split


@dataclass(frozen=True)
class Base:
    """A trained model, its data, and how it was trained.

    Attributes:
        data, path: its folder and checkpoint.
        languages: of source and target.
        model: on the CPU, in evaluation mode.
        splitting: what made tokens of words.
        lr, betas, weight_decay: of its optimizer.
        dropout: of its training.
        max_tokens, batch_size: a batch of it; one of them, the other is None.
        update_freq: batches of an update.
        train: the training data.
    """

    data: str
    path: str
    languages: Tuple[str, str]
    model: nn.Module
    splitting: str
    lr: float
    betas: str
    weight_decay: float
    dropout: float
    max_tokens: Optional[int]
    batch_size: Optional[int]
    update_freq: int
    train: LanguagePairDataset

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in base_parameters(self.model))

    @property
    def depths(self) -> Tuple[int, int]:
        """Layers of encoder and decoder."""
        return len(self.model.encoder.layers), len(self.model.decoder.layers)

    @property
    def share(self) -> float:
        """Share of the uncut model's parameters that it has: 1 unless it was cut before."""
        return ParameterCount(self.model).share

    def batches(self, max_tokens: Optional[int], batch_size: Optional[int]) -> List[List[int]]:
        """Sentences of each batch of the training data, without those that are too long."""
        limits = utils.resolve_max_positions(self.model.max_positions(), max_tokens)
        indices, _ = self.train.filter_indices_by_size(self.train.ordered_indices(), limits)
        return self.train.batch_by_size(
            indices,
            max_tokens=max_tokens,
            max_sentences=batch_size,
            required_batch_size_multiple=8,
        )

    def updates_in_epoch(
        self, max_tokens: Optional[int], batch_size: Optional[int], update_freq: int
    ) -> int:
        """Updates of an epoch of the training data in one process."""
        return math.ceil(len(self.batches(max_tokens, batch_size)) / update_freq)


def splitting(*dictionaries: Dictionary) -> str:
    """How the text of some dictionaries was split, from the types' marks."""
    types = [d[i] for d in dictionaries for i in range(d.nspecial, len(d))]
    if any(t.endswith("@@") for t in types):
        return CODES
    return PIECES if any(t.startswith("\u2581") for t in types) else WORDS
