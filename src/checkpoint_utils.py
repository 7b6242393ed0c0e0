"""Checkpoints that appear complete or not at all, and are read without pickle."""

import argparse
import fcntl
import functools
import glob
import io
import os
import pickle
import re
import shutil
import struct
import zipfile
import zlib
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from omegaconf import OmegaConf

from .checkpoints import sparse as sparse_checkpoint
from .errors import UserError
from .sparsity import SparsityError, is_sparse_file

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


# What torch and fairseq raise at files that are damaged or hold something else.
UNREADABLE = (
    *(pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, TypeError),
    *(LookupError, AttributeError, ImportError, AssertionError, MemoryError),
    *(struct.error, zlib.error),
)


def reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = str(error).partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def unsafe(error: pickle.UnpicklingError) -> str:
    """What torch's restricted unpickler refused, without its advice to load it anyway."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = named[1] if named else reason(error)
    return f"holds objects that could run code on loading ({what})"


def allow_safe_globals() -> None:
    torch.serialization.add_safe_globals(SAFE_GLOBALS)


def fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(temporary: str, path: str) -> None:
    """Give a complete file its final name; both survive a power cut after return."""
    fsync(temporary)
    os.replace(temporary, path)
    fsync(os.path.dirname(os.path.abspath(path)))


@contextmanager
def refusing_failed_writes(path: str):
    """Say in one line why a file or folder can't be written: a full disk, for example.

    Raises:
        UserError: names it, and the reason.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # of standard output, whose reader wants no more
    except OSError as error:
        raise UserError(
            f"{path}: can't be written ({reason(error)}); what was there before is as it was"
        ) from None


class _File(io.FileIO):
    """A file that remembers why it could not be written, which torch.save doesn't say."""

    failure: Optional[OSError] = None

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


@contextmanager
def atomic_write(path: str, mode: str = "w", **kwargs):
    """Open a file that appears under ``path`` when the block ends without error.

    Args:
        mode: ``w`` or ``wb``.
        kwargs: of ``io.TextIOWrapper``.

    Raises:
        UserError: it can't be written; what was there before is as it was.
    """
    temporary = f"{path}.tmp"
    try:
        with refusing_failed_writes(path):
            file = _File(temporary, "w")
        stream = io.BufferedWriter(file)
        if "b" not in mode:
            stream = io.TextIOWrapper(stream, **kwargs)
        try:
            with stream:
                yield stream
        except Exception:
            if file.failure is None:
                raise
            with refusing_failed_writes(path):
                raise file.failure from None
        with refusing_failed_writes(path):
            replace_durably(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


@contextmanager
def sole_process(folder: str, occupied: Callable[[], BaseException]) -> Iterator[None]:
    """Keep other processes from working in the same folder meanwhile.

    Processes that are started inside hold the lock too. So if this one is killed while
    they go on, the same command does not start them a second time.

    Args:
        occupied: makes the exception to raise if another process is at work there.
    """
    with open(os.path.join(folder, "lock"), "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise occupied() from None
        yield


class DurablePathManager(PathManager):
    """fairseq's file access, with copies that are complete or not there at all."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if os.path.exists(dst_path) and not overwrite:
            return False
        with open(src_path, "rb") as source, atomic_write(dst_path, "wb") as stream:
            shutil.copyfileobj(source, stream)
        return True


def _saving_durably(save: Callable) -> Callable:
    """fairseq's writer of checkpoints, without its three attempts where the disk is full."""

    @functools.wraps(save)
    def write(state, path, async_write=False):
        if async_write or not PathManager.supports_rename(path):
            return save(state, path, async_write)
        with atomic_write(path, "wb") as stream:
            torch.save(state, stream)

    return write


def _reading_sparse_files(read_pickle: Callable) -> Callable:
    """fairseq's reader of checkpoints, for sparse files too."""

    @functools.wraps(read_pickle)
    def read(path, arg_overrides=None, load_on_all_ranks=False):
        if not is_sparse_file(path):
            return read_pickle(path, arg_overrides, load_on_all_ranks)
        try:
            state = sparse_checkpoint.read(path)
        except SparsityError as error:
            raise UserError(f"checkpoint {error}") from None
        state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
        if arg_overrides is not None:
            checkpoint_utils.overwrite_args_by_name(state["cfg"], arg_overrides)
        return state

    return read


def install() -> None:
    """Make fairseq write and read checkpoints this way."""
    allow_safe_globals()
    checkpoint_utils.PathManager = DurablePathManager
    for name, wrapper in (
        ("load_checkpoint_to_cpu", _reading_sparse_files),
        ("torch_persistent_save", _saving_durably),
    ):
        function = getattr(checkpoint_utils, name)
        if not hasattr(function, "__wrapped__"):
            setattr(checkpoint_utils, name, wrapper(function))


def damage(path: str) -> Optional[str]:
    """What is wrong with a checkpoint file, or None. Reads it once."""
    if is_sparse_file(path):
        return None  # its checksums are compared when it is loaded
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            return f"its part {broken} is damaged" if broken else None
    except zipfile.BadZipFile:
        with open(path, "rb") as stream:
            start = stream.read(2)
        if start == b"\x80\x02":  # the format of torch before 1.6: no checksums
            return None
        return "it is truncated or no PyTorch checkpoint"
    except OSError as error:
        return f"it can't be read ({reason(error)})"
    except UNREADABLE as error:  # the archive's own description is damaged
        return f"it is damaged ({reason(error)})"


def _is_average(path: str) -> bool:
    """Whether average_checkpoints.py made a file; a run is not to go on from it."""
    try:
        return "averaged" in torch.load(path, map_location="cpu", mmap=True)
    except UNREADABLE:
        return False  # an old format, or objects that need trust: not ours


def read_config(path: str) -> Optional[Dict[str, Any]]:
    """The options a checkpoint was written with, without reading its tensors if possible.

    Returns:
        None where that can't be done: an old format, or a file that is refused when it
        is loaded.
    """
    try:
        if is_sparse_file(path):
            return sparse_checkpoint.read(path).get("cfg")
        return torch.load(path, map_location="cpu", mmap=True).get("cfg")
    except UNREADABLE:
        return None


def previous_checkpoint(path: str) -> Optional[str]:
    """The most recent undamaged checkpoint of the run beside ``path``."""
    others = glob.glob(os.path.join(os.path.dirname(path) or ".", "checkpoint*.pt"))
    others = [p for p in others if os.path.abspath(p) != os.path.abspath(path)]
    for other in sorted(others, key=os.path.getmtime, reverse=True):
        if damage(other) is None and not is_sparse_file(other) and not _is_average(other):
            return other
    return None


@contextmanager
def trusted_pickle(trust: bool):
    """Let ``torch.load`` unpickle anything while inside, if the user opted in."""
    if not trust:
        yield
        return
    original = torch.load
    torch.load = lambda *args, **kwargs: original(*args, **{**kwargs, "weights_only": False})
    try:
        yield
    finally:
        torch.load = original


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
    problem = damage(path)
    if problem:
        raise UserError(f"{option} {path}: {problem}; use another checkpoint of that run")
    try:
        with trusted_pickle(trust):
            state = checkpoint_utils.load_checkpoint_to_cpu(path)
    except UNREADABLE as error:
        if isinstance(error, pickle.UnpicklingError) and not trust:
            raise UserError(
                f"{option} {path}: {unsafe(error)}; if you trust its origin, add --trust-checkpoint"
            ) from None
        raise UserError(
            f"{option} {path}: can't be read as a fairseq checkpoint ({reason(error)}); "
            "use another checkpoint of that run"
        ) from None
    if not isinstance(state, dict) or "model" not in state or not state.get("cfg"):
        raise UserError(f"{option} {path}: is no fairseq checkpoint (it needs 'model' and 'cfg')")
    return state
