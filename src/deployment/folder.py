"""The folder of an exported model: its files, and where it may appear."""

import os

from ..checks import checksums
from ..checks.ctranslate2_package import MODEL, VOCABULARY_MAP
from ..errors import UserError
from . import text

# What export.py writes; nothing else is ever deleted with --force.
FILES = {MODEL, checksums.NAME, "config.json", "shared_vocabulary.json", VOCABULARY_MAP}
FILES |= {"source_vocabulary.json", "target_vocabulary.json", *text.FILES}


def check_output(output: str, force: bool, option: str = "--output") -> None:
    """Refuse a place where the folder can't appear, before any work.

    Raises:
        UserError: it exists, or its parent does not.
    """
    path = os.path.abspath(output)
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        raise UserError(f"{option} {output}: there is no folder {parent}")
    if not os.access(parent, os.W_OK):
        raise UserError(f"{option} {output}: the folder {parent} can't be written to")
    if not os.path.lexists(path):
        return
    if not force:
        raise UserError(f"{option} {output}: exists; choose another or add --force")
    if os.path.islink(path) or not os.path.isdir(path):
        raise UserError(f"{option} {output}: is no folder; choose another")
    others = sorted(set(os.listdir(path)) - FILES)
    if others:
        raise UserError(
            f"{option} {output}: holds more than a CTranslate2 model ({others[0]}), "
            "so --force does not replace it; choose another"
        )
