"""Products with weights that no longer change, laid out ahead for translation."""

from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules.linear import Linear
from ..modules.onednn import LEAST_ROWS, uses_onednn
from ..modules.torch_private import onednn_linear, onednn_weight
from ..sparsity.execution.layouts import ByRows

# Multiply-adds from which oneDNN pays for a weight that is laid out for it already.
_LEAST_PACKED_WORK = 400_000
# Zeros below this share make no product faster.
_LEAST_SPARSITY = 0.25


def _is_packable(dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out weights of a type on this processor."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return dtype == torch.float32 or (dtype == torch.bfloat16 and wide)


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
        self._packed: Optional[Tensor] = None
        self._by_inputs: Optional[Tensor] = None
        if weight.device.type != "cpu" or not len(weight):
            return
        if _is_packable(weight.dtype) and uses_onednn():
            self._packed = onednn_weight(self.weight)
        elif weight.dtype == torch.float32:
            self._by_inputs = self.weight.t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, in]`` to ``[rows, out]``."""
        if self._by_inputs is not None and len(x) >= LEAST_ROWS:
            if self.bias is None:
                return x @ self._by_inputs
            return torch.addmm(self.bias, x, self._by_inputs)
        if self._packed is None or x.numel() * len(self.weight) < _LEAST_PACKED_WORK:
            return F.linear(x, self.weight, self.bias)
        return onednn_linear(x, self._packed, self.bias)


def constant_product(weight: Tensor, bias: Optional[Tensor] = None) -> Callable[[Tensor], Tensor]:
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
    modules = [] if encoder is None else list(encoder.named_modules())
    for name, module in modules:
        if type(module) is Linear:
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, ConstantLinear(module))
