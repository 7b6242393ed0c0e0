"""The results of a run: one row a validation, in a CSV."""

import csv
import os

from ..checkpoint_utils import atomic_write


def append_result(path: str, row: dict) -> None:
    """Add a row to a CSV; rows of the same or later updates (before a resume) go."""
    rows = []
    if os.path.exists(path):
        with open(path, newline="", encoding="utf-8") as stream:
            rows = [
                old
                for old in csv.DictReader(stream)
                if int(old["num_updates"]) < row["num_updates"]
            ]
    with atomic_write(path, newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows + [row])
