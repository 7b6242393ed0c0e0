"""Freed memory stays in the process between steps and batches, without growing for ever."""

import ctypes
import os
import sys
from typing import Optional

# What oneDNN prepares for a shape is cached twice, by oneDNN and by PyTorch's layer above
# it: by default for 1024 shapes each, at about 0.3 MB a shape.
_KEPT_SHAPES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": 16, "LRU_CACHE_CAPACITY": 16}
# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_IN_HEAP = 32 << 20


def limit_kept_shapes() -> None:
    """Let oneDNN cache what it prepares for a few shapes only, instead of a thousand.

    The layers of a step share a few shapes, but every batch of real data brings new ones,
    and what is cached for them comes to lie between a step's activations. For training
    only: a search has many more shapes, and uses the same ones again and again. Variables
    that are set in the environment stay as they are. Call it before the first product.
    """
    for name, count in _KEPT_SHAPES.items():
        os.environ.setdefault(name, str(count))


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the next step.

    glibc gives the activations of a step back to the system when they are freed, and
    the system zeroes and maps every page again in the next one: a tenth of a training
    step's time on a CPU, a twentieth of a beam search's. The peak stays the same, but for
    fragmentation.

    Returns:
        Whether the C library took the settings; others than glibc have none.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP))


def resident() -> Optional[int]:
    """Bytes of this process that are in memory; None where the system doesn't tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


class HeapKeeper:
    """Keeps freed memory, and gives it back when steps leave more and more of it.

    A step is one of training, or a batch that is translated.

    Small blocks that outlive a step come to lie between its activations; the next step's
    no longer fit in the gaps, and the heap grows: much with what oneDNN caches, see
    :func:`limit_kept_shapes`, little without. Giving free pages back costs the next step
    what :func:`keep_freed_memory` saves, so it is done only when the process is ``growth``
    times as large as a step needs.
    """

    def __init__(self, growth: float = 1.5):
        self.growth = growth
        self.active = keep_freed_memory() and resident() is not None
        self._needed = 0  # most memory after a step that began with a trimmed heap
        self._trimmed = True

    def after_step(self) -> bool:
        """Call after every step; returns whether memory was given back."""
        if not self.active:
            return False
        now = resident()
        if self._trimmed:
            self._needed = max(self._needed, now)
        self._trimmed = now > self.growth * self._needed
        if self._trimmed:
            ctypes.CDLL(None).malloc_trim(0)
        return self._trimmed
