"""Checkpoints as sparse files: what ``export_sparse.py`` writes and every reader takes."""

import argparse
import json
import os
from typing import Any, Dict

import torch
from omegaconf import OmegaConf

from ..errors import UserError
from ..sparsity import SparsityError, load_sparse, read_metadata, save_sparse

FORMAT = "fairseq-checkpoint-1"
VOCABULARY = "vocabulary"  # what became of the vocabulary, see vocabulary_record.py
DICTIONARIES = "dictionaries"  # in extra_state: which ones, see dictionary_record.py
# What a checkpoint says beside its weights; the optimizer's state is left out.
_KEPT = ("cfg", "criterion", "optimizer_history", "task_state", "averaged")
_KEPT += (VOCABULARY,)
# Bytes that the weights of a file may take: so many, and so many times its size, as those
# of a model take that has one weight in a thousand.
_FREE, _UNFOLDED = 2**28, 1000
# What JSON has no form for; a mapping with this one key stands for it.
_NAMESPACE, _TUPLE = "argparse.Namespace", "tuple"


def _to_json(value: Any) -> Any:
    """Plain containers for JSON."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True, enum_to_str=True)
    if isinstance(value, argparse.Namespace):
        return {_NAMESPACE: _to_json(vars(value))}
    if isinstance(value, dict):
        return {str(k): _to_json(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return {_TUPLE: [_to_json(v) for v in value]}
    if isinstance(value, list):
        return [_to_json(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__}")


def _from_json(value: Dict[str, Any]) -> Any:
    if set(value) == {_NAMESPACE}:
        return argparse.Namespace(**value[_NAMESPACE])
    return tuple(value[_TUPLE]) if set(value) == {_TUPLE} else value


def write_sparse(state: Dict[str, Any], path: str, origin: str) -> None:
    """Write a checkpoint's state, without its optimizer's, to a sparse file.

    Args:
        state: as ``load_checkpoint`` returns it.
        origin: option and file of the checkpoint, for messages.

    Raises:
        UserError: the state holds something that can't be kept without pickle.
    """
    kept = {name: state[name] for name in _KEPT if state.get(name) is not None}
    extra = state.get("extra_state", {})
    iterator = extra.get("train_iterator") or {}
    left = {"train_iterator": {"epoch": iterator.get("epoch", 1)}}
    if DICTIONARIES in extra:
        left[DICTIONARIES] = extra[DICTIONARIES]
    try:
        text = json.dumps(_to_json({**kept, "extra_state": left}))
    except TypeError as error:
        raise UserError(f"{origin}: holds {error}, which a sparse file has no place for") from None
    try:
        save_sparse(path, state["model"], {"format": FORMAT, "checkpoint": text})
    except SparsityError as error:
        raise UserError(f"{origin}: {error}") from None


def read_head(path: str) -> Dict[str, Any]:
    """What a sparse file says of its checkpoint beside the weights.

    Raises:
        SparsityError: the file is damaged or holds no checkpoint.
    """
    about = read_metadata(path)
    if about.get("format") != FORMAT:
        raise SparsityError(
            f"{path}: is a sparse file, but holds no checkpoint; make it with export_sparse.py"
        )
    try:
        return json.loads(about["checkpoint"], object_hook=_from_json)
    except (KeyError, ValueError, TypeError) as error:
        raise SparsityError(f"{path}: its description is damaged ({error})") from None


def read_sparse(path: str) -> Dict[str, Any]:
    """The state that :func:`write_sparse` was given, without an optimizer's.

    Raises:
        SparsityError: the file is damaged or holds no checkpoint.
    """
    head = read_head(path)
    limit = _FREE + _UNFOLDED * os.path.getsize(path)
    weights = load_sparse(path, limit=limit)
    return {"args": None, "criterion": None, **head, "model": weights}


def check_equal(path: str, weights: Dict[str, torch.Tensor], output: str) -> None:
    """Read a file that was just written; every bit of every weight must be there.

    Args:
        output: its final name.

    Raises:
        UserError: it holds something else.
    """
    again = load_sparse(path)
    same = list(again) == list(weights) and all(
        value.dtype == again[name].dtype
        and value.shape == again[name].shape
        and torch.equal(_bits(value), _bits(again[name]))
        for name, value in weights.items()
    )
    if not same:
        raise UserError(f"--output {output}: what was written reads back differently")


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8)
