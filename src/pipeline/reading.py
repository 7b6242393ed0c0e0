"""Reads and checks what a pipeline starts from, before any work."""

import os
from typing import Any, Dict, Optional, Sequence, Tuple

from ..checkpoint_utils import load_checkpoint
from ..checkpoints import dictionary_record
from ..checkpoints.pretrained import (
    check_dictionaries,
    check_finite,
    check_not_shrinking,
    read_model_config,
)
from ..checkpoints.rebuild import model_of
from ..checks.data import load_set, task_of
from ..errors import UserError
from ..training.inherited_options import as_dict
from .base import Base, splitting

BETAS = "(0.9, 0.98)"
_ADAM = ("adam", "srp_adam")


def read_base(
    data: str,
    path: str,
    languages: Tuple[Optional[str], Optional[str]] = (None, None),
    test: str = "test",
    trust: bool = False,
    teachers: Sequence[str] = (),
) -> Base:
    """Read and check what a pipeline starts from.

    Args:
        languages: of source and target, None as the checkpoint or the data's files say.
        test: the set to translate in the end.
        trust: unpickle any object in the checkpoint.
        teachers: further checkpoints, which translate the data.

    Raises:
        UserError: the checkpoint is of another kind of model, damaged or half pruned; the data
            lack a set, or are of other dictionaries.
    """
    origin = f"--path {path}"
    state = load_checkpoint(path, "--path", trust)
    if os.pathsep in data and not os.path.isdir(data):
        raise UserError(f"data {data}: give one folder")
    if languages == (None, None):
        languages = dictionary_record.languages_of(state)
    task = task_of(data, *languages)
    dictionaries = task.source_dictionary, task.target_dictionary
    check_dictionaries(state, task, origin)
    check_finite(state["model"].items(), origin)
    model = model_of(state, origin)
    check_not_shrinking(model, origin)
    for teacher in teachers:
        check_dictionaries(load_checkpoint(teacher, "--teacher"), task, f"--teacher {teacher}")
    for subset in ("train", "valid", test):
        try:
            dataset = load_set(task, subset, f"data {data}:")
        except FileNotFoundError:
            hint = "; name another with --gen-subset" if subset == test else ""
            raise UserError(f"data {data}: has no set {subset}{hint}") from None
        if dataset.tgt is None:
            raise UserError(f"data {data}: its set {subset} has no target side")
    return Base(
        data,
        path,
        (task.cfg.source_lang, task.cfg.target_lang),
        model,
        splitting(*dictionaries),
        train=task.dataset("train"),
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
