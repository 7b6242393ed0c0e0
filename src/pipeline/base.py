"""What a pipeline starts from: a trained model and its data, checked before any work."""

import math
import os
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

from fairseq.data import Dictionary, LanguagePairDataset
from torch import nn

from ..checkpoint_utils import load_checkpoint
from ..checkpoints import dictionary_record
from ..checkpoints.pretrained import (
    check_dictionaries,
    check_finite,
    check_not_shrinking,
    read_model_config,
)
from ..checkpoints.rebuild import model_of
from ..checks.data import load_set, set_up
from ..connectivity.budget import ParameterCount
from ..connectivity.groups import base_parameters
from ..errors import UserError
from ..options import SRPTranslationConfig
from ..tasks.srp_translation import SRPTranslationTask
from ..training.inherited_options import as_dict

WORDS, CODES, PIECES = "words", "subword_nmt", "sentencepiece"  # how text was split
BETAS = "(0.9, 0.98)"
_ADAM = ("adam", "srp_adam")


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
        pairs: sentences of each set that is used.
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
    pairs: Dict[str, int]

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

    def updates_in_epoch(
        self, max_tokens: Optional[int], batch_size: Optional[int], update_freq: int
    ) -> int:
        """Updates of an epoch of the training data in one process."""
        batches = self.train.batch_by_size(
            self.train.ordered_indices(),
            max_tokens=max_tokens,
            max_sentences=batch_size,
            required_batch_size_multiple=8,
        )
        return math.ceil(len(batches) / update_freq)


def splitting(*dictionaries: Dictionary) -> str:
    """How the text of some dictionaries was split, from the types' marks."""
    types = [d[i] for d in dictionaries for i in range(d.nspecial, len(d))]
    if any(t.endswith("@@") for t in types):
        return CODES
    return PIECES if any(t.startswith("\u2581") for t in types) else WORDS


def read_base(
    data: str,
    path: str,
    languages: Tuple[Optional[str], Optional[str]] = (None, None),
    test: str = "test",
    trust: bool = False,
) -> Base:
    """Read and check what a pipeline starts from.

    Args:
        languages: of source and target, None as the checkpoint or the data's files say.
        test: the set to translate in the end.
        trust: unpickle any object in the checkpoint.

    Raises:
        UserError: the checkpoint is of another kind of model, damaged or half pruned; the data
            lack a set, or are of other dictionaries.
    """
    what = f"--path {path}"
    state = load_checkpoint(path, "--path", trust)
    if os.pathsep in data and not os.path.isdir(data):
        raise UserError(f"data {data}: give one folder")
    if languages == (None, None):
        languages = dictionary_record.languages_of(state)
    config = SRPTranslationConfig(
        data=data,
        source_lang=languages[0],
        target_lang=languages[1],
        # fairseq fills these in from its other options
        train_subset="train",
        dataset_impl=None,
        required_seq_len_multiple=1,
    )
    task = set_up(lambda: SRPTranslationTask.setup_task(config), data)
    dictionaries = task.source_dictionary, task.target_dictionary
    check_dictionaries(state, task, what)
    check_finite(state["model"].items(), what)
    model = model_of(state, what)
    check_not_shrinking(model, what)
    pairs = {}
    for subset in ("train", "valid", test):
        try:
            dataset = load_set(task, subset, f"data {data}:")
        except FileNotFoundError:
            hint = "; name another with --gen-subset" if subset == test else ""
            raise UserError(f"data {data}: has no set {subset}{hint}") from None
        if dataset.tgt is None:
            raise UserError(f"data {data}: its set {subset} has no target side")
        pairs[subset] = len(dataset)
    return Base(
        data,
        path,
        (task.cfg.source_lang, task.cfg.target_lang),
        model,
        splitting(*dictionaries),
        train=task.dataset("train"),
        pairs=pairs,
        **_training(state),
    )


def _training(state: Dict[str, Any]) -> Dict[str, Any]:
    """How a model was trained, as far as its checkpoint says it in fairseq's usual way."""
    names = ("optimization", "optimizer", "dataset")
    optimization, optimizer, dataset = (as_dict(state["cfg"].get(name)) for name in names)
    adam = optimizer.get("_name") in _ADAM
    lr = optimization.get("lr") or []
    max_tokens, batch_size = dataset.get("max_tokens"), dataset.get("batch_size")
    if max_tokens is None and batch_size is None:
        max_tokens = 4096
    return {
        "lr": float(lr[0]) if adam and lr else 5e-4,
        "betas": str(optimizer.get("adam_betas") or BETAS) if adam else BETAS,
        "weight_decay": float(optimizer.get("weight_decay") or 0.0) if adam else 1e-4,
        "dropout": float(read_model_config(state).dropout),
        "max_tokens": max_tokens,
        "batch_size": batch_size,
        "update_freq": int((optimization.get("update_freq") or [1])[0]),
    }
