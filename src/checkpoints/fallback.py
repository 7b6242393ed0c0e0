"""What a run goes on from when its last checkpoint is damaged: one that it wrote before."""

import glob
import logging
import os
import re
from typing import Any, Mapping, Optional

from ..checkpoint_utils import damage, safe_pickle
from ..errors import UserError
from ..files import UNREADABLE

logger = logging.getLogger(__name__)

# What a run calls its checkpoints.
WRITTEN = re.compile(r"checkpoint(_last|_best|\d+|_\d+_\d+|\.best_.*)\.pt")


def undamaged(path: str, save_dir: str) -> str:
    """The checkpoint that a run goes on from: the last one, or the one before it.

    Files that lie elsewhere are as they are: another one has another meaning.

    Args:
        path: what fairseq is about to read.
        save_dir: of the run.

    Raises:
        UserError: the last one is damaged, and the run has left no other.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if folder != os.path.abspath(save_dir) or not name.startswith("checkpoint_last"):
        return path
    problem = damage(path)
    if not problem:
        return path
    other = previous_checkpoint(path, save_dir)
    if other is None:
        raise UserError(
            f"checkpoint {path}: {problem}, and there is no other that this run has written "
            f"(with --save-dir {save_dir}); give one to go on from as --restore-file, or "
            "remove the damaged one to start anew"
        )
    logger.error(f"checkpoint {path}: {problem}; going on from {other}")
    return other


def previous_checkpoint(path: str, save_dir: str) -> Optional[str]:
    """The most recent undamaged checkpoint that the run beside ``path`` has written."""
    others = glob.glob(os.path.join(glob.escape(os.path.dirname(path) or "."), "checkpoint*.pt"))
    others = [p for p in others if WRITTEN.fullmatch(os.path.basename(p))]
    others = [p for p in others if os.path.abspath(p) != os.path.abspath(path)]
    for other in sorted(others, key=os.path.getmtime, reverse=True):
        if damage(other) is None and _was_written_by(other, save_dir):
            return other
    return None


def _was_written_by(path: str, save_dir: str) -> bool:
    """Whether a file is of the run in a folder: no average, no sparse file, no other run's."""
    try:
        state = safe_pickle.load(path, mmap=True)
        is_run = "train_iterator" in state["extra_state"] and "model" in state
        is_run = is_run and "averaged" not in state and bool(state["optimizer_history"])
        return is_run and _same_folder(state["cfg"], save_dir)
    except UNREADABLE:
        return False  # an old format, or objects that need trust: not ours


def _same_folder(cfg: Mapping[str, Any], save_dir: str) -> bool:
    written = cfg["checkpoint"]["save_dir"]
    return written == save_dir or os.path.realpath(written) == os.path.realpath(save_dir)
