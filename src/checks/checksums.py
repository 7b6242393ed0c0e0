"""SHA-256 of files, beside them, in the form of ``sha256sum``: of exports and of data folders."""

import hashlib
import logging
import os
import re
from typing import Dict, Iterable, Mapping

from ..errors import UserError

logger = logging.getLogger(__name__)

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def _digest(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(folder: str) -> None:
    """Add the checksums of all files of a folder to it."""
    names = sorted(set(os.listdir(folder)) - {NAME})
    lines = [f"{_digest(os.path.join(folder, name))}  {name}\n" for name in names]
    with open(os.path.join(folder, NAME), "w", encoding="utf-8") as stream:
        stream.writelines(lines)


def _parse(content: bytes, origin: str) -> Dict[str, str]:
    expected = {}
    for line in content.decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{origin}: its {NAME} is damaged; make the folder anew")
        expected[match[2]] = match[1]
    return expected


def check_export(files: Mapping[str, bytes], origin: str) -> None:
    """Compare the files of an exported model with their checksums.

    Args:
        files: content by name, the checksums' own among them.
        origin: option and folder, for messages.

    Raises:
        UserError: one is damaged or missing, or was not there when the model was exported.
    """
    if NAME not in files:
        logger.warning(f"{origin}: has no {NAME} (an older export); damage would not be noticed")
        return
    expected = _parse(files[NAME], origin)
    for name in sorted({*expected, *files} - {NAME}):
        if name not in files:
            raise UserError(f"{origin}: its {name} is missing; export anew")
        if name not in expected:
            raise UserError(f"{origin}: its {name} is of another export; export anew")
        if hashlib.sha256(files[name]).hexdigest() != expected[name]:
            raise UserError(f"{origin}: its {name} is damaged (not what {NAME} says); export anew")


def check_data(folder: str, names: Iterable[str], origin: str) -> None:
    """Compare files of a data folder with their checksums, as far as there are any.

    fairseq-preprocess writes none; ``scripts/preprocess.py``, ``distill_data.py`` and
    ``trim_vocabulary.py`` do.

    Raises:
        UserError: one is not what it was.
    """
    path = os.path.join(folder, NAME)
    if not os.path.isfile(path):
        return
    with open(path, "rb") as stream:
        expected = _parse(stream.read(), f"data {folder}")
    for name in names:
        if name in expected and expected[name] != _digest(os.path.join(folder, name)):
            raise UserError(
                f"{origin}: {os.path.join(folder, name)} is damaged (not what {NAME} says); make "
                f"the data anew, or remove {NAME} if you changed it yourself"
            )
