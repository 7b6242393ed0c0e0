"""What reads a checkpoint refuses the same files in one line, ours and fairseq's alike."""

import os
import zipfile

import pytest
import torch

from src.errors import UserError
from tests.support.readers import READERS


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("harm-was-done",))


def edited(base, path, edit):
    state = torch.load(base)
    edit(state)
    torch.save(state, path)
    return str(path)


def flipped(base, path, part="data/2", position=0.5):
    """A copy with one other bit in a part of its archive."""
    content = bytearray(open(base, "rb").read())
    with zipfile.ZipFile(base) as archive:
        at = next(x for x in archive.infolist() if x.filename.endswith(part))
    start = at.header_offset + 30 + sum(content[at.header_offset + x] for x in (26, 28))
    start += 256 * sum(content[at.header_offset + x] for x in (27, 29))
    content[start + int(at.file_size * position)] ^= 4
    path.write_bytes(content)
    return str(path)


def refused(name, data, path, out, match):
    """A reader's one line."""
    out.mkdir()
    with pytest.raises(UserError, match=match) as error:
        READERS[name](data, path, out)
    assert "\n" not in str(error.value) and os.path.basename(path) in str(error.value)
    assert not os.listdir(out)


@pytest.mark.parametrize("name", READERS)
def test_one_flipped_bit_and_pickled_code(name, data, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = flipped(base, tmp_path / "flipped.pt")
    refused(name, data, path, tmp_path / "one", "its part archive/data/2 is damaged")
    state = {"surprise": Payload()}
    path = edited(base, tmp_path / "unsafe.pt", lambda s: s["extra_state"].update(state))
    refused(name, data, path, tmp_path / "two", r"could run code on loading \((posix|os)\.mkdir\)")
    assert not os.path.exists("harm-was-done")
