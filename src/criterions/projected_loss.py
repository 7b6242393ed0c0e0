"""Output projection and label-smoothed loss in one, without the matrix of logits."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules.layout import lies_transposed
from ..modules.linear import Linear, linear, matmul_t, weight_gradient

# Logits in memory at once: 16 MB, so that buffers are used again instead of paged in.
_LOGITS = 1 << 22
_LEAST_ROWS = 256


class _ProjectedNLL(torch.autograd.Function):
    """Sums of label-smoothed nll and of nll over rows, gradients made on the way.

    The gradient by the logits is softmax - ε/(N-1) - (1-ε-ε/(N-1))·onehot, times the
    gradient by the loss, which is known only later but is the same for all rows.
    """

    @staticmethod
    def forward(ctx, features, weight, bias, index, target, epsilon, dtype, differentiate):
        words = weight.shape[0]
        each = epsilon / (words - 1)
        rest = 1.0 - epsilon - each
        by_x, by_weight, by_bias = ctx.needs_input_grad[:3] if differentiate else [False] * 3
        rows = features.index_select(0, index).to(dtype)
        narrow = weight.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        x_grad = torch.empty_like(rows) if by_x else None
        weight_grad = torch.zeros_like(weight) if by_weight else None
        bias_grad = torch.zeros_like(bias) if by_bias else None
        nll, smooth = rows.new_zeros((), dtype=wide), rows.new_zeros((), dtype=wide)
        step = max(_LOGITS // words, _LEAST_ROWS)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            x, chosen = rows[part], target[part].unsqueeze(1)
            logits = linear(x, narrow, None if bias is None else bias.to(dtype)).to(wide)
            shares = F.softmax(logits, dim=-1)
            # log Σexp from the largest share, which can't underflow
            total = logits.amax(-1) - shares.amax(-1).log_()
            nll += (total - logits.gather(1, chosen).squeeze(1)).sum()
            smooth += (total * words - logits.sum(-1)).sum()
            if not (by_x or by_weight or by_bias):
                continue
            del logits
            if each:
                shares.sub_(each)
            shares.scatter_add_(1, chosen, shares.new_full(chosen.shape, -rest))
            grad = shares.to(dtype)
            if by_x:
                x_grad[part] = matmul_t(grad, narrow.t())
            if by_weight:
                weight_grad += weight_gradient(grad, x)
            if by_bias:
                bias_grad += shares.sum(0)
        ctx.save_for_backward(x_grad, weight_grad, bias_grad, index)
        ctx.like = features.shape, features.dtype
        ctx.mark_non_differentiable(nll)
        return rest * nll + each * smooth, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):
        x_grad, weight_grad, bias_grad, index = ctx.saved_tensors
        shape, dtype = ctx.like
        features_grad = None
        if x_grad is not None:
            features_grad = x_grad.new_zeros(shape, dtype=dtype)
            features_grad.index_copy_(0, index, x_grad.to(dtype) * grad.to(dtype))
        by_weight, by_bias = (
            None if g is None else g * grad.to(g.dtype) for g in (weight_grad, bias_grad)
        )
        return features_grad, by_weight, by_bias, None, None, None, None, None


def is_plain(projection: nn.Module) -> bool:
    """Whether a projection does nothing but ``x Wᵀ + b``: no adapter, no hook."""
    return type(projection) in (nn.Linear, Linear) and not (
        projection._forward_hooks or projection._forward_pre_hooks
    )


def projected_nll(
    features: Tensor,
    projection: nn.Linear,
    target: Tensor,
    epsilon: float,
    padding_idx: int,
) -> Tuple[Tensor, Tensor]:
    """Label-smoothed loss and nll of ``projection(features)``, summed over targets.

    Padding is left out before the projection; under autocast the products run in its
    type. The loss is the same as :func:`..srp.smoothed_nll` of all logits, which need
    many times the memory: most of a training step's page faults were theirs.

    Shapes:
        features ``[B, T, D]``, target ``[B, T]``.
    """
    if lies_transposed(features):
        features, target = features.transpose(0, 1), target.t()
    features = features.reshape(-1, features.shape[-1])
    target = target.reshape(-1)
    index = target.ne(padding_idx).nonzero().squeeze(1)
    device, dtype = features.device.type, features.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _ProjectedNLL.apply(
            *(features, projection.weight, projection.bias, index, target[index]),
            *(epsilon, dtype, torch.is_grad_enabled()),
        )
