"""Ways to damage files, and what readers make of the result."""

import hashlib
import json
import os
import random
import signal
import traceback
from argparse import Namespace
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import torch
from omegaconf import OmegaConf

Damage = Callable[[bytearray, random.Random], None]
Reader = Callable[[str], Any]  # of a path; gives what it has read

LIMIT = 60  # seconds until a reader hangs
PAGE = 4096
ALLOWED = 200 * 2**20
OUTCOMES = ("refused", "same", "other", "traceback", "crash", "hang", "memory")


class Kind(NamedTuple):
    """Files of one kind.

    Attributes:
        originals: undamaged files.
        readers: by name, all that read such files.
        damages: by name, beside those that any file can suffer.
        forgeries: damages that leave the file's checksums right.
        isolated: each reader reads in a process of its own. Without, crashes and hangs end
            the campaign; it takes a fraction of the time.
    """

    originals: List[Path]
    readers: Dict[str, Reader]
    damages: Dict[str, Damage]
    forgeries: Dict[str, Damage]
    isolated: bool = True


# -- damage ---------------------------------------------------------------------------


def flip(data: bytearray, r: random.Random) -> None:
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)


def overwrite(data: bytearray, r: random.Random) -> None:
    for _ in range(r.choice((1, 3, 20))):
        data[r.randrange(len(data))] = r.randrange(256)


def truncate(data: bytearray, r: random.Random) -> None:
    del data[r.randrange(len(data)) :]


def remove(data: bytearray, r: random.Random) -> None:
    place = r.randrange(len(data))
    del data[place : place + r.choice((1, 8, 100))]


def insert(data: bytearray, r: random.Random) -> None:
    place = r.randrange(len(data))
    data[place:place] = r.randbytes(r.choice((1, 8, 100)))


def append(data: bytearray, r: random.Random) -> None:
    data += r.choice((r.randbytes(r.choice((1, 8, PAGE))), bytes(PAGE)))


def zero_page(data: bytearray, r: random.Random) -> None:
    start = r.randrange(len(data)) // PAGE * PAGE
    size = len(data[start : start + PAGE])
    data[start : start + size] = bytes(size)


def exchange(data: bytearray, r: random.Random) -> None:
    size = min(r.choice((1, 64, 512, PAGE)), len(data) // 2)
    one, two = sorted(r.randrange(len(data) - size) for _ in range(2))
    first, second = data[one : one + size], data[two : two + size]
    data[two : two + size], data[one : one + size] = first, second


ANY: Dict[str, Damage] = {
    **{"flip": flip, "overwrite": overwrite, "truncate": truncate, "remove": remove},
    **{"insert": insert, "append": append, "zero page": zero_page, "exchange": exchange},
}


# -- reading --------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Of tensors, options and plain containers: equal if every bit, name and type is."""
    sums = hashlib.sha256()

    def add(item: Any) -> None:
        if OmegaConf.is_config(item):
            item = OmegaConf.to_container(item)
        if isinstance(item, Namespace):
            item = vars(item)
        sums.update(type(item).__name__.encode())
        if isinstance(item, torch.Tensor):
            sums.update(f"{item.dtype}{list(item.shape)}".encode())
            flat = item.detach().cpu().contiguous().reshape(-1)
            sums.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
        elif isinstance(item, dict):
            for key, part in item.items():
                add(key)
                add(part)
        elif isinstance(item, (list, tuple)):
            for part in item:
                add(part)
        else:
            sums.update(repr(item).encode())

    add(value)
    return sums.hexdigest()


def memory(name: str) -> int:
    """A figure of this process in bytes: ``VmRSS`` now, ``VmHWM`` at most."""
    with open("/proc/self/status", encoding="ascii") as stream:
        line = next(line for line in stream if line.startswith(name))
    return int(line.split()[1]) * 1024


def _attempt(read: Reader, path: str) -> Dict[str, Any]:
    from src.errors import users_mistake

    with open("/proc/self/clear_refs", "w", encoding="ascii") as stream:
        stream.write("5")  # VmHWM begins anew
    before = memory("VmRSS")
    try:
        result = {"digest": digest(read(path))}
    except BaseException as error:
        line = users_mistake(error)
        if line is None:
            result = {"traceback": traceback.format_exc()}
        else:
            result = {"refused": line}
    return {**result, "peak": memory("VmHWM") - before}


def attempt(read: Reader, path: str, isolated: bool = True) -> Dict[str, Any]:
    """What a reader makes of a file.

    Args:
        isolated: in a process of its own.

    Returns:
        ``digest``, ``refused`` or ``traceback`` with what was read or said, and ``peak``
        bytes; ``signal`` for a process that ended otherwise.
    """
    if not isolated:
        return _attempt(read, path)
    back, out = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(back)
        signal.alarm(LIMIT)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        with os.fdopen(out, "w", encoding="utf-8", errors="backslashreplace") as stream:
            json.dump(_attempt(read, path), stream)
        os._exit(0)
    os.close(out)
    with os.fdopen(back, encoding="utf-8") as stream:
        text = stream.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if text else {"signal": os.WTERMSIG(status)}


def outcome(result: Dict[str, Any], expected: str, size: int) -> str:
    """One of :data:`OUTCOMES`.

    Args:
        expected: digest of what the undamaged file holds.
        size: of the damaged one, in bytes.
    """
    if "signal" in result:
        return "hang" if result["signal"] == signal.SIGALRM else "crash"
    if "traceback" in result:
        return "traceback"
    if "refused" in result:
        return "memory" if result["peak"] > 2 * size + ALLOWED else "refused"
    return "same" if result["digest"] == expected else "other"
