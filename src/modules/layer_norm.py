"""Layer normalization that is safe to prune: weighted by connectivity."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..connectivity.groups import ChannelGroup
from .layout import lies_transposed
from .scriptable import ScriptForm, copy_as


class _WeightedNorm(torch.autograd.Function):
    """x̂γ + β with x̂ = (x-μ)/√(σ²+eps), μ = Σwᵢxᵢ, σ² = Σwᵢ(xᵢ-μ)², Σwᵢ = 1.

    Written out because autograd through the plain operators keeps five
    activations of the size of x instead of one and takes twice the time.
    """

    @staticmethod
    def forward(ctx, x, w, gamma, beta, eps):
        rows = x.reshape(-1, x.shape[-1])
        normalized = rows - (rows @ w).unsqueeze(-1)
        rstd = torch.rsqrt(normalized.square() @ w + eps).unsqueeze(-1)
        normalized *= rstd
        ctx.save_for_backward(normalized, rstd, w, gamma)
        return torch.addcmul(beta, normalized, gamma).view(x.shape)

    @staticmethod
    def backward(ctx, grad):
        normalized, rstd, w, gamma = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        product = rows * normalized
        grad_gamma, grad_beta = product.sum(0), rows.sum(0)
        mean = (rows @ gamma).unsqueeze(-1)
        slope = (product @ gamma).unsqueeze(-1)
        grad_x = torch.addcmul(mean, normalized, slope).mul_(w)
        grad_x = torch.addcmul(grad_x.neg_(), rows, gamma).mul_(rstd)
        return grad_x.view(grad.shape), None, grad_gamma, grad_beta, None


class PaddedLayerNorm(nn.Module):
    """Layer normalization over more channels than there are, the others being zeros.

    Args:
        norm: weight, bias and eps of the channels that there are.
        width: number of all channels.
    """

    def __init__(self, norm: nn.Module, width: int):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.width, self.eps = width, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return normalize_padded(x, self.weight, self.bias, self.width, self.eps)


def normalize_padded(x: Tensor, weight: Tensor, bias: Tensor, width: int, eps: float) -> Tensor:
    """Mean and variance over ``width`` channels, absent ones being zeros."""
    dtype = x.dtype
    x = x if dtype == torch.float64 else x.float()
    mean = x.sum(-1, keepdim=True) / width
    centred = x - mean
    absent = width - x.shape[-1]
    variance = (centred.square().sum(-1, keepdim=True) + mean.square() * absent) / width
    y = centred * torch.rsqrt(variance + eps)
    return (y * weight.to(y.dtype) + bias.to(y.dtype)).to(dtype)


class WeightedLayerNorm(ScriptForm, nn.Module):
    """c ⊙ LayerNorm over the channels of a group with connectivity c.

    With ``weighted`` each channel counts by its connectivity in mean and
    variance: μ = Σcᵢxᵢ/Σcᵢ, σ² = Σcᵢ(xᵢ-μ)²/Σcᵢ (SRP's weighted layer
    normalization). Without, the input is gated and mean and variance are taken
    over the channels of the *uncut* model, removed ones counting as zeros. Both
    give the same output before and after a channel of connectivity 0 is cut;
    both are ``nn.LayerNorm`` for c = 1, and then run as it.

    Args:
        group: the channels that are normalized; gates the output.
        weighted: which of the two.
        stream: whether the output goes on in the residual stream, where the group's
            activations are measured.

    Shapes:
        ``[..., D]`` to ``[..., D]``, D the group's width.
    """

    __jit_unused_properties__ = ["group"]

    def __init__(
        self,
        group: ChannelGroup,
        weighted: bool,
        stream: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__()
        self._group = (group,)  # in a tuple: the group belongs to the encoder/decoder
        self.weighted = weighted
        self.stream = stream
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(group.width))
        self.bias = nn.Parameter(torch.zeros(group.width))
        group.tie(self, weight=0, bias=0)

    def script_form(self) -> nn.Module:
        width = self.group.width
        if not self.weighted and width != self.group.original_width:
            return PaddedLayerNorm(self, self.group.original_width)
        return copy_as(self, nn.LayerNorm, normalized_shape=(width,), elementwise_affine=True)

    @property
    def group(self) -> ChannelGroup:
        return self._group[0]

    def forward(self, x: Tensor) -> Tensor:
        if lies_transposed(x):
            x = self.normalize(x.transpose(0, 1)).transpose(0, 1)
        else:
            x = self.normalize(x)
        return self.group.measure(x) if self.stream else x

    def normalize(self, x: Tensor) -> Tensor:
        group = self.group
        weight, bias = self.weight, self.bias
        if group.gated:
            connectivity = group.connectivity.to(weight.dtype)
            weight, bias = weight * connectivity, bias * connectivity
            if self.weighted:
                return self._normalize_weighted(x, connectivity, weight, bias)
            x = x * connectivity
        if self.weighted or group.width == group.original_width:
            return F.layer_norm(x, (group.width,), weight, bias, self.eps)
        return normalize_padded(x, weight, bias, group.original_width, self.eps)

    def _normalize_weighted(self, x, connectivity, weight, bias):
        # float16 and bfloat16 sums over channels lose too much: as layer_norm does.
        dtype = x.dtype
        wide = dtype if dtype == torch.float64 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            x, connectivity = x.to(wide), connectivity.to(wide)
            share = connectivity / connectivity.sum()
            weight, bias = weight.to(wide), bias.to(wide)
            # scoring asks for the gradient by connectivity, a traced graph for operators
            if share.requires_grad or torch.jit.is_tracing():
                centred = x - (x * share).sum(-1, keepdim=True)
                variance = (centred.square() * share).sum(-1, keepdim=True)
                y = centred * torch.rsqrt(variance + self.eps) * weight + bias
            else:
                y = _WeightedNorm.apply(x, share, weight, bias, self.eps)
        return y.to(dtype)

    def extra_repr(self) -> str:
        return f"{self.group.width}, weighted={self.weighted}, eps={self.eps}"
