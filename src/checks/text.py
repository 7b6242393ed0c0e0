"""Text that is read line by line, refused where it is none."""

import gzip
from typing import Iterator

from ..errors import UserError
from ..files import reason


def read_lines(path: str, option: str) -> Iterator[str]:
    """Lines of a file of text, plain or gzipped, without a byte order mark.

    Raises:
        UserError: it can't be read as UTF-8 text.
    """
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as stream:
            for line in stream:
                yield line.rstrip("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path}: can't be read as UTF-8 text ({reason(error)})") from None
