"""Keeping freed memory in the process, between training steps."""

import ctypes
import sys

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_IN_HEAP = 32 << 20


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the next step.

    glibc gives the activations of a step back to the system when they are freed, and
    the system zeroes and maps every page again in the next one: a tenth of a step's
    time on a CPU. The peak stays the same, within the pieces that no longer fit.

    Returns:
        Whether the C library took the settings; others than glibc have none.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
    )
