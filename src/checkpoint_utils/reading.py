"""Checkpoints as every reader sees them: without damage, without running their code.

Whatever reads a checkpoint while this plug-in is loaded reads it here, fairseq's own tools
and its hub too: its checksums are compared, and a pickle that could run code is refused.
"""

import argparse
import functools
import logging
import os
import pickle
import zipfile
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.file_io import PathManager
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from ..files import UNREADABLE, reason
from ..sparsity import SparsityError, is_sparse_file
from . import safe_pickle
from .safe_pickle import TRUST, refused, trusted_pickle
from .sparse_checkpoint import DICTIONARIES, read_head, read_sparse

logger = logging.getLogger(__name__)

_PRUNING = "extra_state.SRPTranslationTask"
# Parts of a checkpoint that readers use without a question, and what they are.
_TYPES = {
    "cfg": DictConfig,
    "model": dict,
    "task_state": dict,
    "extra_state": dict,
    "extra_state.train_iterator": dict,
    "extra_state.train_iterator.epoch": Integral,
    "extra_state.train_iterator.iterations_in_epoch": Integral,
    # tensors in runs of several processes
    "extra_state.best": (Real, torch.Tensor),
    "extra_state.previous_training_time": (Real, torch.Tensor),
    "extra_state.patience": dict,
    f"extra_state.{DICTIONARIES}": dict,
    f"extra_state.{DICTIONARIES}.languages": list,
    _PRUNING: dict,
}
# What to do with the checkpoints that fairseq's reader reads, by state and file.
_compare: ContextVar[Optional[Callable[[Dict[str, Any], str], None]]] = ContextVar(
    "compare", default=None
)


class UnsafeCheckpoint(UserError):
    """A checkpoint whose objects could run code when they are loaded."""


def damage(path: str) -> Optional[str]:
    """What is wrong with a checkpoint file, or None. Reads it once while it is the same."""
    try:
        status = os.stat(path)
        return _damage(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError as error:  # not remembered: it may pass
        return f"it can't be read ({reason(error)})"


@functools.lru_cache(maxsize=256)
def _damage(path: str, *version: int) -> Optional[str]:
    try:
        if is_sparse_file(path):
            return None  # its checksums are compared when it is loaded
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                return "it is no PyTorch checkpoint (its parts are compressed)"
            if sum(part.file_size for part in parts) > version[1]:
                return "it is damaged (its parts overlap)"
            broken = archive.testzip()
        if broken:
            return f"its part {broken} is damaged"
        safe_pickle.load(path, mmap=True)  # torch's reader of archives needs more than Python's
    except zipfile.BadZipFile:
        with open(path, "rb") as stream:
            start = stream.read(2)
        if start != b"\x80\x02":  # the format of torch before 1.6
            return "it is truncated or no PyTorch checkpoint"
        logger.warning(
            f"{path}: is in the format of PyTorch before 1.6, which has no checksums: if it "
            "is damaged, nothing tells"
        )
    except pickle.UnpicklingError as error:
        # what it refuses is no damage, and what was made of nonsense has a checksum
        logger.debug(f"{path}: {reason(error)}")
    except OSError:
        raise
    except UNREADABLE as error:  # the archive's own description is damaged
        return f"it is damaged ({reason(error)})"
    return None


def read_config(path: str) -> Optional[Dict[str, Any]]:
    """The options a checkpoint was written with, without reading its tensors if possible.

    Returns:
        None where that can't be done: an old format, or a file that is refused when it
        is loaded.
    """
    try:
        state = read_head(path) if is_sparse_file(path) else safe_pickle.load(path, mmap=True)
        return state.get("cfg")
    except (*UNREADABLE, SparsityError):
        return None


# -- reading -------------------------------------------------------------------------------


def unsafe(error: pickle.UnpicklingError) -> str:
    """What torch's restricted unpickler refused, without its advice to load it anyway."""
    return f"holds objects that could run code on loading ({refused(error) or reason(error)})"


def _as_options(state: Dict[str, Any]) -> None:
    """Give ``args`` and ``cfg`` the form that fairseq expects, whichever release wrote them."""
    args, cfg = state.get("args"), state.get("cfg")
    if isinstance(cfg, argparse.Namespace):
        cfg = vars(cfg)
        if "model" not in cfg and args is None:  # options in one level
            args, cfg = cfg, None
    if OmegaConf.is_config(args):
        args = OmegaConf.to_container(args)
    if isinstance(args, dict):
        args = argparse.Namespace(**args)
    state["args"] = args
    if cfg is not None or "cfg" in state:
        state["cfg"] = cfg


def _parts(state: Dict[str, Any]) -> Iterator[Tuple[str, Tuple[Any, Any]]]:
    """Name, value and type of the parts of a state; None for what isn't there."""
    for path, kind in _TYPES.items():
        value: Any = state
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        yield path, (value, kind)
        if path == _PRUNING and isinstance(value, dict):
            yield from ((f"{path}.{name}", (run, dict)) for name, run in value.items())


def _check_parts(state: Dict[str, Any]) -> None:
    """Refuse a state whose parts have not the types that every reader takes for granted.

    Raises:
        TypeError: names the part and its type.
    """
    parts = dict(_parts(state))
    history = state.get("optimizer_history")
    parts["optimizer_history"] = history[-1] if isinstance(history, list) and history else {}, dict
    for name, (value, kind) in parts.items():
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"its {name} is of type {type(value).__name__}")
    for name, value in (state.get("model") or {}).items():
        if not torch.is_tensor(value) and not name.endswith("_ema"):  # of data2vec's, a mapping
            raise TypeError(f"its weight {name} is of type {type(value).__name__}")


def _upgraded(state: Any, arg_overrides: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """What fairseq's reader does after ``torch.load``, which it doesn't offer alone."""
    if not isinstance(state, dict):
        raise TypeError(f"holds a {type(state).__name__}")
    _as_options(state)
    if state["args"] is not None:
        vars(state["args"]).update(arg_overrides or {})
    if state.get("cfg") is not None:
        state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
        overwrite_args_by_name(state["cfg"], arg_overrides or {})
    state = checkpoint_utils._upgrade_state_dict(state)
    _check_parts(state)
    last = (state.get("optimizer_history") or [{}])[-1]
    if last.get("optimizer_name") == "_CopiesAtOnce":  # until 0.2.0; fairseq's name is compared
        last["optimizer_name"] = "FP16Optimizer"
    return state


def _read(
    path: str, origin: str, todo: str, arg_overrides=None, mmap: bool = False
) -> Dict[str, Any]:
    """The state of a checkpoint, compared with its checksums.

    Args:
        origin: the file, for messages, and what named it.
        todo: what lets a pickle be trusted.
        mmap: leave tensors in the file until they are used, where its format allows that.

    Raises:
        UserError: damaged, unsafe, or something else.
    """
    problem = damage(path)
    if problem:
        raise UserError(f"{origin}: {problem}; use another checkpoint of that run")
    try:
        if is_sparse_file(path):
            state = read_sparse(path)
        else:
            state = safe_pickle.load(path, mmap=mmap and zipfile.is_zipfile(path))
        return _upgraded(state, arg_overrides)
    except SparsityError as error:
        raise UserError(f"checkpoint {error}") from None
    except UNREADABLE as error:
        if isinstance(error, pickle.UnpicklingError) and TRUST not in os.environ:
            raise UnsafeCheckpoint(
                f"{origin}: {unsafe(error)}; if you trust its origin, {todo}"
            ) from None
        raise UserError(
            f"{origin}: can't be read as a fairseq checkpoint ({reason(error)}); "
            "use another checkpoint of that run"
        ) from None


def reading_checked(read: Callable) -> Callable:
    """fairseq's reader of checkpoints: checked, for sparse files and old options too."""

    @functools.wraps(read)
    def load_checkpoint_to_cpu(path, arg_overrides=None, load_on_all_ranks=False):
        if PathManager.path_requires_pathmanager(path):  # remote: fetched by fairseq
            return read(path, arg_overrides, load_on_all_ranks)
        todo = f"set {TRUST}=1 for this command"
        state = _read(os.fspath(path), f"checkpoint {path}", todo, arg_overrides)
        compare = _compare.get()
        if compare is not None:
            compare(state, os.fspath(path))
        return state

    return load_checkpoint_to_cpu


@contextmanager
def comparing(compare: Callable[[Dict[str, Any], str], None]) -> Iterator[None]:
    """Have ``compare`` called with the checkpoints that fairseq's reader reads meanwhile.

    Args:
        compare: takes a checkpoint's state and file; refuses it by an error.
    """
    before = _compare.set(compare)
    try:
        yield
    finally:
        _compare.reset(before)


def load_checkpoint(
    path: str, option: str, trust: bool = False, mmap: bool = False
) -> Dict[str, Any]:
    """A checkpoint's state on the CPU, without running code from it.

    Args:
        path: the file.
        option: the command-line option that named it, for messages.
        trust: unpickle arbitrary objects (``--trust-checkpoint``).
        mmap: for its options: weights are read when they are used.

    Raises:
        UserError: missing, damaged, or holding objects off the allow-list.
    """
    if not os.path.isfile(path):
        raise UserError(f"{option} {path}: no such file; give a checkpoint (.pt)")
    with trusted_pickle(trust):
        state = _read(path, f"{option} {path}", "add --trust-checkpoint", mmap=mmap)
    if not state.get("model") or "model" not in (state.get("cfg") or {}):
        raise UserError(f"{option} {path}: is no fairseq checkpoint (it needs 'model' and 'cfg')")
    return state


def read_tensors(path: str, option: str) -> Any:
    """A file of tensors and plain containers, read without running code from it.

    Raises:
        UserError: missing, damaged, or holding anything else.
    """
    if not os.path.isfile(path):
        raise UserError(f"{option} {path}: no such file")
    problem = damage(path)
    if problem:
        raise UserError(f"{option} {path}: {problem}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(f"{option} {path}: can't be read ({reason(error)})") from None
