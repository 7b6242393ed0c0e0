"""The processes of a training: one that writes its folder, several that end together."""

import ctypes
import os
import signal
from typing import Optional

from fairseq.distributed import utils as distributed_utils

from ..errors import UserError
from ..files import FolderLock, lock_folder

_PR_SET_PDEATHSIG = 1  # of Linux


def claim_folder(folder: str) -> Optional[FolderLock]:
    """Refuse a folder in which another process trains, and keep others out.

    Returns:
        None if there is no such folder; a trainer without a run needs none.

    Raises:
        UserError: names the folder and what to do.
    """
    if not os.path.isdir(folder):
        return None
    return lock_folder(
        folder,
        lambda: UserError(
            f"--save-dir {folder}: another process trains there; wait until it ends, or give "
            "another folder"
        ),
    )


def is_first() -> bool:
    """Whether this is the process that writes the folder."""
    return distributed_utils.get_global_rank() == 0


def end_with_launcher() -> None:
    """Let this process end when torchrun ends, be it killed.

    It would train on without, and a second start would train beside it. Processes that
    fairseq or ``cpu_distributed.py`` start are told so when they are started.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
