"""Linear layers whose large float32 products run on oneDNN where that is faster.

Where that is, ``onednn.py`` decides.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .layout import lies_transposed
from .onednn import worth_onednn
from .scriptable import ScriptForm
from .torch_private import onednn_linear


def matmul_t(a: Tensor, b: Tensor) -> Tensor:
    """``a bᵀ``, not differentiable.

    Shapes:
        a ``[m, k]``, b ``[n, k]``, result ``[m, n]``; any strides.
    """
    return onednn_linear(a, b) if worth_onednn(a, b) else a @ b.t()


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of ``x Wᵀ`` by W, ``gradᵀ x``.

    Shapes:
        grad ``[rows, out]``, x ``[rows, in]``, result ``[out, in]``.
    """
    # oneDNN is up to four times slower with the larger dimension first
    if grad.shape[1] <= x.shape[1]:
        return matmul_t(grad.t(), x.t())
    return matmul_t(x.t(), grad.t()).t()


class _Linear(torch.autograd.Function):
    """``x Wᵀ + b``, forward and backward on oneDNN."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows, weight)
        ctx.shape = x.shape
        return onednn_linear(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1]).contiguous()
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = matmul_t(grad, weight.t()).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            by_weight = weight_gradient(grad, x)
        if ctx.needs_input_grad[2]:
            by_bias = grad.sum(0)
        return by_x, by_weight, by_bias


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """``F.linear``; large float32 products on oneDNN where that is faster.

    Outputs and gradients are those of ``F.linear`` to float32 rounding. What runs in
    another precision, on another device or under autocast is left to ``F.linear``.

    Shapes:
        x ``[..., in]``, weight ``[out, in]``, bias ``[out]``, result ``[..., out]``.
    """
    if lies_transposed(x):
        return linear(x.transpose(0, 1), weight, bias).transpose(0, 1)
    if not worth_onednn(x, weight) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _Linear.apply(x, weight, bias)
    return onednn_linear(x, weight, bias)


class Linear(ScriptForm, nn.Linear):
    """``nn.Linear`` on :func:`linear`; nothing but ``forward`` differs."""

    script_class = nn.Linear
    product = staticmethod(linear)  # what adapted layers of this class multiply with

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def accelerate(model: nn.Module) -> None:
    """Make every plain ``nn.Linear`` of a model a :class:`Linear`, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
