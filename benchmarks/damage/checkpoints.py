"""Checkpoints of a small model: of a training, and averaged.

Each damaged one goes through what all tools read with, through what a run falls back on,
and through one whole tool, ours or fairseq's, in turn.
"""

import contextlib
import io
import logging
import os
import random
import re
import shutil
import struct
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch
from common import ROOT

from damage.kind import Damage, Kind, digest

sys.path.insert(0, str(ROOT))


class Harmful:
    """Makes a folder when it is unpickled."""

    folder = ""

    def __reduce__(self):
        return (os.mkdir, (Harmful.folder,))


def members(data: bytearray) -> List[zipfile.ZipInfo]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.infolist()


def content_of(data: bytearray, member: zipfile.ZipInfo) -> range:
    """Where a member's content lies."""
    name, extra = struct.unpack_from("<HH", data, member.header_offset + 26)
    start = member.header_offset + 30 + name + extra
    return range(start, start + member.file_size)


def flip_in(name: str) -> Damage:
    """One bit in a member with such a name."""

    def flip(data: bytearray, r: random.Random) -> None:
        fitting = [m for m in members(data) if re.search(name, m.filename) and m.file_size]
        data[r.choice(content_of(data, r.choice(fitting)))] ^= 1 << r.randrange(8)

    return flip


def flip_in_directory(data: bytearray, r: random.Random) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.start_dir
    data[r.randrange(start, len(data))] ^= 1 << r.randrange(8)


def swap_members(data: bytearray, r: random.Random) -> None:
    """Two tensors of one size change places, or two entries of the directory point so."""
    found = [m for m in members(data) if "/data/" in m.filename]
    pairs = [(a, b) for a in found for b in found if a.file_size == b.file_size]
    one, two = r.choice([(a, b) for a, b in pairs if a.CRC != b.CRC])
    if r.random() < 0.5:
        first, second = (slice(x.start, x.stop) for x in (content_of(data, m) for m in (one, two)))
        data[first], data[second] = data[second], data[first]
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        place = archive.start_dir
    others = {one.header_offset: two.header_offset, two.header_offset: one.header_offset}
    for _ in members(data):
        name, extra, comment = struct.unpack_from("<HHH", data, place + 28)
        (offset,) = struct.unpack_from("<I", data, place + 42)
        struct.pack_into("<I", data, place + 42, others.get(offset, offset))
        place += 46 + name + extra + comment


def rewritten(data: bytearray, change: Callable[[Dict[str, Any]], Any]) -> None:
    """The checkpoint with another state, its checksums right."""
    state, buffer = torch.load(io.BytesIO(data)), io.BytesIO()
    torch.save(change(state), buffer)
    data[:] = buffer.getvalue()


def put_code_in(data: bytearray, r: random.Random) -> None:
    """Something that runs code when it is unpickled, anywhere."""

    def change(state):
        places = [state, state["cfg"], state["extra_state"], state["model"]]
        r.choice(places)[r.choice(("args", "harmful", "cfg", "val_loss"))] = Harmful()
        return Harmful() if r.random() < 0.1 else state

    rewritten(data, change)


def change_types(data: bytearray, r: random.Random) -> None:
    """One part of the state becomes something else, as another program may leave it."""

    def change(state):
        part: Any = state
        while True:
            key = r.choice(list(part))
            if not isinstance(part[key], dict) or not part[key] or r.random() < 0.3:
                break
            part = part[key]
        if r.random() < 0.3:
            del part[key]
        else:
            part[key] = r.choice((None, 3, -1.5, "text", [], {}, [3], torch.zeros(3)))
        return state

    rewritten(data, change)


def kind(folder: Path) -> Kind:
    from fairseq import checkpoint_utils as fairseq_checkpoints

    from src.checkpoint_utils import load_checkpoint
    from src.checkpoints.averaging import average_checkpoints
    from src.checkpoints.fallback import undamaged
    from src.errors import UserError
    from src.vocabulary.tables import map_checkpoint
    from tests.support.readers import READERS
    from tests.support.training import RUN, TINY, run_training, write_corpus

    for name in ("data", "run"):
        (folder / name).mkdir()
    data, run = write_corpus(folder / "data"), folder / "run"
    logging.disable(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        run_training([data, *TINY, *RUN, "--max-epoch", "1", "--save-dir", run])
    trained, average = run / "checkpoint1.pt", folder / "average.pt"
    torch.save(average_checkpoints([str(trained)]), average)
    Harmful.folder = str(folder / "harm-was-done")
    tools = list(READERS)

    def use(tool: str, path: str) -> Any:
        with tempfile.TemporaryDirectory() as out:
            try:
                result = READERS[tool](data, path, Path(out))
            except SystemExit as stop:
                if stop.code:
                    raise
                result = None  # pruned in one shot
        if hasattr(result, "get_model"):
            return dict(result.get_model().state_dict())
        lines = str(result).splitlines()
        return [line for line in lines if line[:2] in ("H-", "D-")] or tool

    def attempted(tool: str, path: str) -> str:
        try:
            return digest(use(tool, path))
        except UserError:  # it needs adapters, say
            return ""

    usual = {n: {attempted(n, str(path)) for path in (trained, average)} for n in tools}

    def tool(path: str) -> Any:
        """The tool whose turn it is."""
        number = Path(path).stem
        if not number.isdigit():
            return "as usual"
        name = tools[int(number) % len(tools)]
        found = use(name, path)
        return "as usual" if digest(found) in usual[name] else found

    own = folder / "own"
    own.mkdir()
    state = torch.load(trained)
    state["cfg"]["checkpoint"]["save_dir"] = str(own)
    torch.save(state, own / "checkpoint1.pt")

    def go_on(path: str) -> Any:
        """The weights that a run goes on with whose last checkpoint this is."""
        last = str(own / "checkpoint_last.pt")
        shutil.copy(path, last)
        found = undamaged(last, str(own))
        return dict(fairseq_checkpoints.load_checkpoint_to_cpu(found)["model"])

    def safely(read: Callable) -> Callable:
        def checked(path: str) -> Any:
            try:
                return read(path)
            finally:
                if os.path.exists(Harmful.folder):
                    raise RuntimeError(f"{path}: ran code")

        return checked

    readers = {
        "load_checkpoint": lambda p: load_checkpoint(p, "--path"),
        "fairseq's load_checkpoint_to_cpu": fairseq_checkpoints.load_checkpoint_to_cpu,
        "map_checkpoint": lambda p: map_checkpoint(p, "--path"),
        "going on": go_on,
        "a tool": tool,
    }
    damages: Dict[str, Damage] = {
        "bit of weights": flip_in(r"/data/\d+$"),
        "bit of the pickle": flip_in(r"data\.pkl$"),
        "bit of the directory": flip_in_directory,
        "swapped members": swap_members,
        "code": put_code_in,
    }
    return Kind(
        [trained, average],
        {name: safely(read) for name, read in readers.items()},
        damages,
        {"other types": change_types},
        isolated=False,
    )
