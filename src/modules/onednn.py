"""Which library multiplies float32 matrices: PyTorch's own choice, or oneDNN.

PyTorch multiplies float32 matrices on x86 with MKL, which uses AVX2 on processors
that are not Intel's; oneDNN, which PyTorch ships too, uses what the processor has.
With AVX-512 that is twice as fast. The processor alone decides, never a measurement, so
that a run repeats bit for bit.
"""

import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .torch_private import has_onednn

VARIABLE = "SRP_ONEDNN"
# Vendors whose processors MKL gives AVX2 at most.
_NOT_INTEL = ("AuthenticAMD", "HygonGenuine")
# Multiply-adds and rows from which oneDNN's larger fixed cost of a call pays.
_LEAST_WORK = 1 << 21
LEAST_ROWS = 4


def _vendor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        if line.startswith("vendor_id"):
            return line.partition(":")[2].strip()
    return ""


@functools.cache
def uses_onednn() -> bool:
    """Whether large float32 products run on oneDNN in this process.

    Where PyTorch has it: on AMD's processors with AVX-512. The environment variable
    ``SRP_ONEDNN`` overrides that with 1 or 0, ahead of the first product.

    Raises:
        UserError: SRP_ONEDNN is neither, or is 1 and PyTorch was built without oneDNN.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "0", "1"):
        raise UserError(
            f"{VARIABLE}={wanted}: must be 1 (multiply float32 matrices with oneDNN), 0 "
            "(with PyTorch's own choice) or unset (1 on AMD's processors with AVX-512)"
        )
    present = has_onednn()
    if wanted == "1" and not present:
        raise UserError(f"{VARIABLE}=1: this PyTorch was built without oneDNN; unset it")
    if wanted:
        return wanted == "1"
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return present and wide and _vendor() in _NOT_INTEL


def worth_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether ``x Wᵀ`` is a product that this process runs on oneDNN."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() * weight.shape[0] >= _LEAST_WORK
        and x.numel() >= LEAST_ROWS * x.shape[-1]
        and uses_onednn()
        and not torch.jit.is_tracing()
    )
