"""Files and folders that appear complete or not at all, and locks on folders.

Every writer works in a temporary folder of its own, so two of them never tear a file: the
last one to end wins. The folder is locked meanwhile. One that a killed process has left is
not, and the next writer of the same name removes it.
"""

import ctypes
import fcntl
import glob
import io
import os
import pickle
import shutil
import struct
import tempfile
import weakref
import zlib
from contextlib import contextmanager
from typing import Callable, Iterator, Optional

from safetensors import SafetensorError

from .errors import UserError, lacks_memory

# What readers raise at files that are damaged or hold something else.
UNREADABLE = (
    *(pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, TypeError),
    *(LookupError, AttributeError, ImportError, AssertionError),
    *(struct.error, zlib.error, SafetensorError),
)

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def reason(error: Exception) -> str:
    """An error in one line."""
    if lacks_memory(error):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = str(error).partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def fsync(path: str) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def refusing_failed_writes(path: str) -> Iterator[None]:
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


# -- temporary names -----------------------------------------------------------------------


def _locked(descriptor: int) -> Optional[bool]:
    """Whether a lock could be had; None on a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _lock(path: str) -> Optional[int]:
    """Lock a folder until the descriptor is closed; None if another process holds it.

    Where there are no locks, none is held.
    """
    descriptor = os.open(path, os.O_RDONLY)
    if _locked(descriptor) is False:
        os.close(descriptor)
        return None
    return descriptor


def _remove_left_over(path: str) -> None:
    """Remove temporary folders for ``path`` whose process was killed."""
    for left in glob.glob(f"{glob.escape(path)}.tmp-????????"):
        try:
            descriptor = os.open(left, os.O_RDONLY)
        except OSError:  # gone by now, or another user's
            continue
        if _locked(descriptor):
            shutil.rmtree(left, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def _temporary(path: str) -> Iterator[str]:
    """A free name in a new locked folder beside ``path``; what is there in the end goes.

    Raises:
        UserError: there can be no such folder.
    """
    folder, name = os.path.split(path)
    descriptor = None
    with refusing_failed_writes(path):
        _remove_left_over(path)
        while descriptor is None:
            temporary = tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=folder or ".")
            try:
                descriptor = _lock(temporary)
            except FileNotFoundError:  # another writer took it for left over
                continue
            if descriptor is not None and not os.path.isdir(temporary):
                os.close(descriptor)
                descriptor = None
    try:
        yield os.path.join(temporary, name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


# -- writing -------------------------------------------------------------------------------


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
def new_file(path: str) -> Iterator[str]:
    """A name to write to, whose file appears under ``path`` when the block ends without error.

    A device or a pipe is written to as it is, and never replaced.

    Raises:
        UserError: it can't be written; what was there before is as it was.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        yield path
        return
    with _temporary(path) as temporary:
        yield temporary
        with refusing_failed_writes(path):
            fsync(temporary)
            os.replace(temporary, path)
            fsync(os.path.dirname(os.path.abspath(path)))


@contextmanager
def atomic_write(path: str, mode: str = "w", **kwargs):
    """Open a file that appears under ``path`` when the block ends without error.

    Args:
        mode: ``w`` or ``wb``.
        kwargs: of ``io.TextIOWrapper``.

    Raises:
        UserError: it can't be written; what was there before is as it was.
    """
    with new_file(path) as temporary:
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


def _exchange(one: str, other: str) -> bool:
    """Let two names change places in one step; False where the system has no such call."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return call is not None and not call(
        _AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)
    )


@contextmanager
def new_folder(path: str, replace: bool = False) -> Iterator[str]:
    """An empty folder that appears under ``path`` when the block ends without error.

    Args:
        replace: put it in the place of one that is there, in one step. Where the file
            system can't do that the old one lies beside, as ``PATH.replaced``, for the
            moment in which they change places; if the process dies in that moment, the
            next call gives it its name back.

    Raises:
        UserError: it can't be written; what was there before is as it was.
    """
    path = os.path.abspath(path)
    aside = f"{path}.replaced"
    if os.path.isdir(aside) and not os.path.lexists(path):
        os.rename(aside, path)
    with _temporary(path) as temporary:
        with refusing_failed_writes(path):
            os.mkdir(temporary)
        yield temporary
        with refusing_failed_writes(path):
            for folder, _, names in os.walk(temporary):
                for name in (*names, "."):
                    fsync(os.path.join(folder, name))
            if not (replace and os.path.isdir(path)):
                os.rename(temporary, path)  # onto an empty folder, but no other
            elif not _exchange(temporary, path):
                _replace_in_two_steps(temporary, path, aside)
            fsync(os.path.dirname(path))


def _replace_in_two_steps(temporary: str, path: str, aside: str) -> None:
    shutil.rmtree(aside, ignore_errors=True)  # of a call that was killed after both
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


# -- locks ---------------------------------------------------------------------------------


@contextmanager
def sole_process(folder: str, occupied: Callable[[], BaseException]) -> Iterator[None]:
    """Keep other processes from working in the same folder meanwhile.

    The lock ends with the process, however it ends. Processes that are started inside
    hold it too. So if this one is killed while they go on, the same command does not
    start them a second time.

    Args:
        occupied: makes the exception to raise if another process is at work there.

    Raises:
        Exception: what ``occupied`` makes.
    """
    with open(os.path.join(folder, "lock"), "w") as stream:
        locked = _locked(stream.fileno())
        if locked is False:
            raise occupied()
        try:
            yield
        finally:  # also for processes that were forked meanwhile and are slow to end
            if locked:
                fcntl.flock(stream, fcntl.LOCK_UN)


class FolderLock:
    """Keeps other processes out of a folder until it is let go of, or this process ends.

    Unlike :func:`sole_process` it leaves no file, and processes that are started meanwhile
    don't hold it.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def release(self) -> None:
        if self.held:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = release


_folder_locks: "weakref.WeakValueDictionary[str, FolderLock]" = weakref.WeakValueDictionary()


def lock_folder(folder: str, occupied: Callable[[], BaseException]) -> FolderLock:
    """Lock a folder for this process, which may ask for it several times.

    Args:
        occupied: makes the exception to raise if another process has locked it.

    Raises:
        Exception: what ``occupied`` makes.
    """
    folder = os.path.realpath(folder)
    lock = _folder_locks.get(folder)
    if lock is None or not lock.held:
        descriptor = _lock(folder)
        if descriptor is None:
            raise occupied()
        lock = _folder_locks[folder] = FolderLock(descriptor)
    return lock


def _leave_locks_to_parent() -> None:
    for lock in list(_folder_locks.values()):
        lock.release()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


# -- checks of outputs ---------------------------------------------------------------------


def check_output_file(
    path: str, *sources: str, option: str = "--output", named: str = "--path"
) -> None:
    """Refuse a file that can't be written, or is one of the files to read.

    Args:
        sources: files to read.
        named: what the message calls them.

    Raises:
        UserError: names the option, the path and what to do.
    """
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise UserError(f"{option} {path}: there is no folder {folder}")
    if os.path.isdir(path):
        raise UserError(f"{option} {path}: is a folder; give a file name")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path}: the folder {folder} can't be written to")
    if os.path.exists(path) and any(
        os.path.exists(source) and os.path.samefile(path, source) for source in sources
    ):
        raise UserError(f"{option} {path}: is {named}; give another name")


def check_output_folder(path: str, option: str) -> None:
    """Refuse a folder that can't be made or written to.

    Raises:
        UserError: names the option, the path and what to do.
    """
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise UserError(f"{option} {path}: {there} is no folder; give another name")
    if not os.access(there, os.W_OK):
        raise UserError(f"{option} {path}: the folder {there} can't be written to")


def make_output_folder(path: str, option: str) -> None:
    """Make a folder where it isn't there yet.

    Raises:
        UserError: names the option, the path and why it can't be made.
    """
    check_output_folder(path, option)
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:  # whatever its folder's permissions say
        raise UserError(f"{option} {path}: can't be made ({error.strerror})") from None
