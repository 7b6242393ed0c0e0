"""Checkpoints that appear complete or not at all, and are read without running their code.

Whatever reads a checkpoint while this plug-in is loaded reads it here, fairseq's own tools
and its hub too: its checksums are compared, and a pickle that could run code is refused.
"""

import argparse
import functools
import glob
import json
import logging
import os
import pickle
import re
import shutil
import warnings
import zipfile
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.file_io import PathManager
from omegaconf import OmegaConf

from .errors import UserError
from .files import UNREADABLE, atomic_write, reason
from .sparsity import SparsityError, is_sparse_file, load_sparse, read_metadata, save_sparse

logger = logging.getLogger(__name__)

# What fairseq's checkpoints hold beside tensors and plain containers: the
# command line, and (with --eval-bleu) numpy counts in the metrics.
SAFE_GLOBALS = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    np._core.multiarray._reconstruct,
    np._core.multiarray.scalar,
    type(np.dtype("f8")),
    type(np.dtype("i8")),
]
# Names of classes that some releases of fairseq have pickled with their options. None of
# them is imported: an object without code stands for each.
_OPTIONS = re.compile(r"(omegaconf|fairseq|enum|typing)\.[\w.]+|_?operator\.getitem")
TRUST = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch's own name for it
# What a run calls its checkpoints.
WRITTEN = re.compile(r"checkpoint(_last|_best|\d+|_\d+_\d+|\.best_.*)\.pt")

SPARSE_FORMAT = "fairseq-checkpoint-1"
# What a checkpoint says beside its weights; the optimizer's state is left out.
VOCABULARY_RECORD = "vocabulary"  # what became of the vocabulary, see vocabulary_record.py
_KEPT_SPARSE = (
    *("cfg", "criterion", "optimizer_history", "task_state", "averaged"),
    VOCABULARY_RECORD,
)
# What JSON has no form for; a mapping with this one key stands for it.
_NAMESPACE, _TUPLE = "argparse.Namespace", "tuple"


class UnsafeCheckpoint(UserError):
    """A checkpoint whose objects could run code when they are loaded."""


# -- writing -------------------------------------------------------------------------------


class DurablePathManager(PathManager):
    """fairseq's file access, with copies that are complete or not there at all."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if os.path.exists(dst_path) and not overwrite:
            return False
        with open(src_path, "rb") as source, atomic_write(dst_path, "wb") as stream:
            shutil.copyfileobj(source, stream)
        return True


def saving_durably(save: Callable) -> Callable:
    """fairseq's writer of checkpoints, without its three attempts where the disk is full."""

    @functools.wraps(save)
    def write(state, path, async_write=False):
        if async_write or not PathManager.supports_rename(path):
            return save(state, path, async_write)
        with atomic_write(path, "wb") as stream:
            torch.save(state, stream)

    return write


# -- damage --------------------------------------------------------------------------------


def damage(path: str) -> Optional[str]:
    """What is wrong with a checkpoint file, or None. Reads it once while it is the same."""
    try:
        status = os.stat(path)
    except OSError as error:
        return f"it can't be read ({reason(error)})"
    return _damage(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _damage(path: str, *version: int) -> Optional[str]:
    try:
        if is_sparse_file(path):
            return None  # its checksums are compared when it is loaded
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            return f"its part {broken} is damaged"
        _load(path, mmap=True)  # torch's reader of archives needs more than Python's
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
    except OSError as error:
        return f"it can't be read ({reason(error)})"
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
        state = read_sparse(path) if is_sparse_file(path) else _load(path, mmap=True)
        return state.get("cfg")
    except (*UNREADABLE, SparsityError):
        return None


def previous_checkpoint(path: str) -> Optional[str]:
    """The most recent undamaged checkpoint that the run beside ``path`` has written."""
    others = glob.glob(os.path.join(os.path.dirname(path) or ".", "checkpoint*.pt"))
    others = [p for p in others if WRITTEN.fullmatch(os.path.basename(p))]
    others = [p for p in others if os.path.abspath(p) != os.path.abspath(path)]
    for other in sorted(others, key=os.path.getmtime, reverse=True):
        if damage(other) is None and _is_of_a_run(other):
            return other
    return None


def _is_of_a_run(path: str) -> bool:
    """Whether a run can go on from a file: no average, no sparse file, nothing else's."""
    try:
        state = _load(path, mmap=True)
        is_run = "train_iterator" in state["extra_state"] and "model" in state
        return is_run and "averaged" not in state and bool(state["optimizer_history"])
    except UNREADABLE:
        return False  # an old format, or objects that need trust: not ours


# -- reading -------------------------------------------------------------------------------


@contextmanager
def trusted_pickle(trust: bool) -> Iterator[None]:
    """Let ``torch.load`` unpickle anything while inside, if the user opted in."""
    if not trust:
        yield
        return
    before = os.environ.get(TRUST)
    os.environ[TRUST] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRUST]
        else:
            os.environ[TRUST] = before


def unsafe(error: pickle.UnpicklingError) -> str:
    """What torch's restricted unpickler refused, without its advice to load it anyway."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = named[1] if named else reason(error)
    return f"holds objects that could run code on loading ({what})"


class _Inert:
    """Stands for an object of fairseq's or omegaconf's in a pickle; it has no code.

    Attributes:
        args: what the object was to be made of.
    """

    def __init__(self, *args):
        self.args = args


def _load(path: str, **options) -> Any:
    """``torch.load`` on the CPU, with options of other releases as plain containers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f"Environment variable {TRUST}")
        try:
            return torch.load(path, map_location="cpu", **options)
        except pickle.UnpicklingError:
            try:
                others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            except ValueError:  # an old format
                others = []
            if not others or not all(map(_OPTIONS.fullmatch, others)):
                raise
        # one class each: torch looks them up by their values as well
        stand_ins = [(type(name, (_Inert,), {}), name) for name in others]
        with torch.serialization.safe_globals(stand_ins):
            return _plain(torch.load(path, map_location="cpu", **options))


def _plain(value: Any) -> Any:
    """A state without stand-ins: omegaconf's containers and nodes as what they hold."""
    if isinstance(value, _Inert):
        held = vars(value)
        if "_content" in held:
            return _plain(held["_content"])
        if "_val" in held:
            return _plain(held["_val"])
        return _plain(value.args[0]) if value.args else None  # an entry of an enumeration
    if isinstance(value, argparse.Namespace):
        return argparse.Namespace(**_plain(vars(value)))
    if isinstance(value, dict):
        for key in list(value):
            value[key] = _plain(value[key])
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value


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
    return checkpoint_utils._upgrade_state_dict(state)


def _read(path: str, what: str, todo: str, arg_overrides=None) -> Dict[str, Any]:
    """The state of a checkpoint, compared with its checksums.

    Args:
        what: the file, for messages, and what named it.
        todo: what lets a pickle be trusted.

    Raises:
        UserError: damaged, unsafe, or something else.
    """
    problem = damage(path)
    if problem:
        raise UserError(f"{what}: {problem}; use another checkpoint of that run")
    try:
        state = read_sparse(path) if is_sparse_file(path) else _load(path)
        return _upgraded(state, arg_overrides)
    except SparsityError as error:
        raise UserError(f"checkpoint {error}") from None
    except UNREADABLE as error:
        if isinstance(error, pickle.UnpicklingError) and TRUST not in os.environ:
            raise UnsafeCheckpoint(
                f"{what}: {unsafe(error)}; if you trust its origin, {todo}"
            ) from None
        raise UserError(
            f"{what}: can't be read as a fairseq checkpoint ({reason(error)}); "
            "use another checkpoint of that run"
        ) from None


def reading_checked(read: Callable) -> Callable:
    """fairseq's reader of checkpoints: checked, for sparse files and old options too."""

    @functools.wraps(read)
    def load_checkpoint_to_cpu(path, arg_overrides=None, load_on_all_ranks=False):
        if PathManager.path_requires_pathmanager(path):  # remote: fetched by fairseq
            return read(path, arg_overrides, load_on_all_ranks)
        todo = f"set {TRUST}=1 for this command"
        return _read(os.fspath(path), f"checkpoint {path}", todo, arg_overrides)

    return load_checkpoint_to_cpu


def load_checkpoint(path: str, option: str, trust: bool = False) -> Dict[str, Any]:
    """A checkpoint's state on the CPU, without running code from it.

    Args:
        path: the file.
        option: the command-line option that named it, for messages.
        trust: unpickle arbitrary objects (``--trust-checkpoint``).

    Raises:
        UserError: missing, damaged, or holding objects off the allow-list.
    """
    if not os.path.isfile(path):
        raise UserError(f"{option} {path}: no such file; give a checkpoint (.pt)")
    with trusted_pickle(trust):
        state = _read(path, f"{option} {path}", "add --trust-checkpoint")
    if "model" not in state or not state.get("cfg"):
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


# -- sparse files -------------------------------------------------------------------------


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


def write_sparse(state: Dict[str, Any], path: str, what: str) -> None:
    """Write a checkpoint's state, without its optimizer's, to a sparse file.

    Args:
        state: as ``load_checkpoint`` returns it.
        what: option and file of the checkpoint, for messages.

    Raises:
        UserError: the state holds something that can't be kept without pickle.
    """
    kept = {name: state[name] for name in _KEPT_SPARSE if state.get(name) is not None}
    iterator = state.get("extra_state", {}).get("train_iterator")
    extra = {"extra_state": {"train_iterator": {"epoch": (iterator or {}).get("epoch", 1)}}}
    try:
        text = json.dumps(_to_json({**kept, **extra}))
    except TypeError as error:
        raise UserError(f"{what}: holds {error}, which a sparse file has no place for") from None
    try:
        save_sparse(path, state["model"], {"format": SPARSE_FORMAT, "checkpoint": text})
    except SparsityError as error:
        raise UserError(f"{what}: {error}") from None


def read_sparse(path: str) -> Dict[str, Any]:
    """The state that :func:`write_sparse` was given, without an optimizer's.

    Raises:
        SparsityError: the file is damaged or holds no checkpoint.
    """
    about = read_metadata(path)
    if about.get("format") != SPARSE_FORMAT:
        raise SparsityError(
            f"{path}: is a sparse file, but holds no checkpoint; make it with export_sparse.py"
        )
    try:
        head = json.loads(about["checkpoint"], object_hook=_from_json)
    except (KeyError, ValueError, TypeError) as error:
        raise SparsityError(f"{path}: its description is damaged ({error})") from None
    return {"args": None, "criterion": None, **head, "model": load_sparse(path)}


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
