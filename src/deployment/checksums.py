"""Checksums of an exported model's files, beside them, in the form of ``sha256sum``."""

import hashlib
import logging
import os
import re
from typing import Dict, Mapping

from ..errors import UserError

logger = logging.getLogger(__name__)

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def write(folder: str) -> None:
    """Add the checksums of all files of a folder to it."""
    lines = []
    for name in sorted(set(os.listdir(folder)) - {NAME}):
        with open(os.path.join(folder, name), "rb") as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {name}\n")
    with open(os.path.join(folder, NAME), "w", encoding="utf-8") as stream:
        stream.writelines(lines)


def check(files: Mapping[str, bytes], origin: str) -> None:
    """Compare the files of a folder with their checksums.

    Args:
        files: content by name, the checksums' own among them.
        origin: option and folder, for messages.

    Raises:
        UserError: one is damaged or missing, or was not there when the model was exported.
    """
    if NAME not in files:
        logger.warning(f"{origin}: has no {NAME} (an older export); damage would not be noticed")
        return
    expected: Dict[str, str] = {}
    for line in files[NAME].decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{origin}: its {NAME} is damaged; export anew")
        expected[match[2]] = match[1]
    for name in sorted({*expected, *files} - {NAME}):
        if name not in files:
            raise UserError(f"{origin}: its {name} is missing; export anew")
        if name not in expected:
            raise UserError(f"{origin}: its {name} is of another export; export anew")
        if hashlib.sha256(files[name]).hexdigest() != expected[name]:
            raise UserError(f"{origin}: its {name} is damaged (not what {NAME} says); export anew")
