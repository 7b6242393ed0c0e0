"""The results of a run: one row a validation, in a CSV."""

import csv
import os
from typing import Any, Dict, List

from torch import nn

from ..connectivity.budget import ParameterCount
from ..connectivity.layers import widths_in_uncut
from ..errors import UserError
from ..files import atomic_write, reason


def read_results(path: str) -> List[Dict[str, str]]:
    """The rows of a run's results; none where there is no file.

    Raises:
        UserError: another program has changed it to something else.
    """
    if not os.path.exists(path):
        return []
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream, strict=True))
        for row in rows:
            int(row["num_updates"])
            for column in ("valid_loss", "bleu", "parameters"):
                float(row.get(column) or 0)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path}: can't be read as the results of a run ({reason(error)}), with commas "
            "between columns of which one is num_updates; undo what was changed, or remove it"
        ) from None
    return rows


def append_result(path: str, row: dict) -> None:
    """Add a row to a CSV; rows of the same or later updates (before a resume) go.

    Raises:
        UserError: another program has changed it to something else.
    """
    rows = [old for old in read_results(path) if int(old["num_updates"]) < row["num_updates"]]
    with atomic_write(path, newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows + [row])


def validation_row(
    model: nn.Module, stats: Dict[str, Any], pruning: Dict[str, Any]
) -> Dict[str, Any]:
    """The row of a validation: losses, BLEU where measured, and the model's size.

    Args:
        stats: fairseq's, of the validation.
        pruning: columns of what prunes.
    """
    count = ParameterCount(model)
    return {
        "num_updates": int(stats["num_updates"]),
        "parameters": count(count.current),
        "rate": round(count.share, 6),
        "valid_loss": float(stats["loss"]),
        # a criterion without label smoothing has one loss
        "valid_nll_loss": float(stats.get("nll_loss", stats["loss"])),
        "bleu": float(stats["bleu"]) if "bleu" in stats else "",
        **pruning,
        **{f"width:{name}": width for name, (width, _) in widths_in_uncut(model).items()},
    }
