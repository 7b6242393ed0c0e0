"""Linear layers whose float32 products run on the faster library of the processor.

PyTorch multiplies float32 matrices on x86 with MKL, which uses AVX2 on processors
that are not Intel's; oneDNN, which PyTorch ships too, uses what the processor has.
With AVX-512 that is twice as fast. Which library is used depends on the processor
alone, never on a measurement, so that a run repeats bit for bit.
"""

import functools
import os
import time
from pathlib import Path
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import UserError
from ..sparsity.execution.layouts import ByRows

VARIABLE = "SRP_ONEDNN"
# Vendors whose processors MKL gives AVX2 at most.
_NOT_INTEL = ("AuthenticAMD", "HygonGenuine")
# Multiply-adds and rows from which oneDNN's larger fixed cost of a call pays.
_LEAST_WORK = 1 << 21
_LEAST_ROWS = 4
# The same of a product with a weight that is laid out for oneDNN already.
_LEAST_PACKED_WORK = 400_000


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
    present = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    if wanted == "1" and not present:
        raise UserError(f"{VARIABLE}=1: this PyTorch was built without oneDNN; unset it")
    if wanted:
        return wanted == "1"
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return present and wide and _vendor() in _NOT_INTEL


def _pays(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() * weight.shape[0] >= _LEAST_WORK
        and x.numel() >= _LEAST_ROWS * x.shape[-1]
        and uses_onednn()
    )


def _onednn(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def times(a: Tensor, b: Tensor) -> Tensor:
    """``a bᵀ``, not differentiable.

    Shapes:
        a ``[m, k]``, b ``[n, k]``, result ``[m, n]``; any strides.
    """
    return _onednn(a, b) if _pays(a, b) else a @ b.t()


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of ``x Wᵀ`` by W, ``gradᵀ x``.

    Shapes:
        grad ``[rows, out]``, x ``[rows, in]``, result ``[out, in]``.
    """
    # oneDNN is up to four times slower with the larger dimension first
    if grad.shape[1] <= x.shape[1]:
        return times(grad.t(), x.t())
    return times(x.t(), grad.t()).t()


class _Linear(torch.autograd.Function):
    """``x Wᵀ + b``, forward and backward on oneDNN."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows, weight)
        ctx.shape = x.shape
        return _onednn(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1]).contiguous()
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = times(grad, weight.t()).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            by_weight = weight_gradient(grad, x)
        if ctx.needs_input_grad[2]:
            by_bias = grad.sum(0)
        return by_x, by_weight, by_bias


def lies_transposed(x: Tensor) -> bool:
    """Whether ``x [T, B, D]`` lies in memory as ``[B, T, D]``.

    fairseq's layers take the former, embeddings and attention make the latter. What
    works row by row goes through the transposed view, which needs no copy.
    """
    return x.dim() == 3 and not x.is_contiguous() and x.transpose(0, 1).is_contiguous()


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """``F.linear``; large float32 products on oneDNN where that is faster.

    Outputs and gradients are those of ``F.linear`` to float32 rounding. What runs in
    another precision, on another device or under autocast is left to ``F.linear``.

    Shapes:
        x ``[..., in]``, weight ``[out, in]``, bias ``[out]``, result ``[..., out]``.
    """
    if lies_transposed(x):
        return linear(x.transpose(0, 1), weight, bias).transpose(0, 1)
    if not _pays(x, weight) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _Linear.apply(x, weight, bias)
    return _onednn(x, weight, bias)


@functools.cache
def bfloat16_gain(rounds: int = 5) -> float:
    """How many times as fast this processor multiplies bfloat16 matrices as float32 ones.

    Not every one with instructions for bfloat16 gains by them: Intel's need AMX, which
    virtual machines may hide. The least times of some products tell; it takes 0.1 s.
    """
    products = []
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = (torch.full((n, 512), 0.01, dtype=dtype) for n in (1024, 512))
        products.append(functools.partial(linear, x, weight))
    least = [float("inf")] * len(products)
    with torch.no_grad():
        for _ in range(rounds):
            for i, product in enumerate(products):
                begin = time.perf_counter()
                product()
                least[i] = min(least[i], time.perf_counter() - begin)
    return least[0] / least[1]


class PackedLinear:
    """``x Wᵀ + b`` with a constant weight, laid out as the library that runs it reads it.

    Few rows profit most. oneDNN lays an unpacked weight out anew for every product; MKL
    takes up to twice as long for a weight that lies by outputs as for one by inputs.

    Args:
        weight: ``[out, in]``, float32 or bfloat16 to be packed.
        bias: ``[out]`` or None.
    """

    def __init__(self, weight: Tensor, bias: Optional[Tensor] = None):
        self.weight, self.bias = weight.detach(), bias
        self._packed = self._by_inputs = None
        if weight.device.type != "cpu" or not len(weight):
            return
        if weight.dtype in (torch.float32, torch.bfloat16) and uses_onednn():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), 64)
        elif weight.dtype == torch.float32:
            self._by_inputs = self.weight.t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, in]`` to ``[rows, out]``."""
        if self._by_inputs is not None and len(x) >= _LEAST_ROWS:
            if self.bias is None:
                return x @ self._by_inputs
            return torch.addmm(self.bias, x, self._by_inputs)
        if self._packed is None or x.numel() * len(self.weight) < _LEAST_PACKED_WORK:
            return F.linear(x, self.weight, self.bias)
        return _onednn(x, self._packed, self.bias)


# Zeros below this share make no product faster.
_LEAST_SPARSITY = 0.25


def constant_product(weight: Tensor, bias: Optional[Tensor] = None):
    """``x Wᵀ + b`` with a constant weight, without its zeros where that is faster.

    Shapes:
        weight ``[out, in]``, bias ``[out]``; a function of ``[rows, in]`` to
        ``[rows, out]``.
    """
    zeros = 1 - int(torch.count_nonzero(weight)) / max(1, weight.numel())
    if zeros < _LEAST_SPARSITY:
        return PackedLinear(weight, bias)
    return ByRows(weight, bias, dense=PackedLinear)


class ConstantLinear(nn.Module):
    """A linear layer for translation alone, see :func:`constant_product`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.product = constant_product(linear.weight.detach(), linear.bias)

    def forward(self, input: Tensor) -> Tensor:
        rows = self.product(input.reshape(-1, input.shape[-1]))
        return rows.view(*input.shape[:-1], rows.shape[-1])


def use_sparse_products(model: nn.Module) -> None:
    """Prepare an encoder's linear layers for ``--sparse-inference``, in place.

    The decoder's are folded by the beam search. fairseq's own layers read their
    weights past the modules and stay as they are.
    """
    encoder = getattr(model, "encoder", None)
    found = [] if encoder is None else list(encoder.named_modules())
    for name, module in found:
        if type(module) is Linear:
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, ConstantLinear(module))


class Linear(nn.Linear):
    """``nn.Linear`` on :func:`linear`; nothing but ``forward`` differs."""

    product = staticmethod(linear)  # what adapted layers of this class multiply with

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def accelerate(model: nn.Module) -> None:
    """Make every plain ``nn.Linear`` of a model a :class:`Linear`, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
