"""Dropout with cheap masks on CPUs, and the gate of an embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor
from fairseq.modules import FairseqDropout

from ..connectivity.groups import ChannelGroup

_LEVELS = 1 << 16


class _MaskedScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mask, scale):
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return torch.mul(x, mask).mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return torch.mul(grad, mask).mul_(ctx.scale), None, None


def cpu_dropout(x: Tensor, p: float) -> Tensor:
    """Dropout with the drop probability rounded to 1/65536.

    ``F.dropout`` draws one number per element in one thread, 13 % of a training
    step; here every 64-bit draw makes four decisions.
    """
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
    draws.random_(-(2**63), None)
    threshold = round(p * _LEVELS)
    mask = draws.view(torch.int16)[: x.numel()] >= threshold - _LEVELS // 2
    return _MaskedScale.apply(x, mask.view(x.shape), _LEVELS / (_LEVELS - threshold))


class Dropout(FairseqDropout):
    """``FairseqDropout`` with :func:`cpu_dropout` where the tensor is on a CPU."""

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        if self.p <= 0 or not (self.training or self.apply_during_inference):
            return x
        if x.device.type == "cpu" and self.p < 1:
            return cpu_dropout(x, self.p)
        return F.dropout(x, p=self.p, training=True, inplace=inplace)


class EmbeddingDropout(Dropout):
    """Dropout of an embedding, then the gate of its channels."""

    def __init__(self, p: float, group: ChannelGroup, module_name: str):
        super().__init__(p, module_name)
        self._group = (group,)

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        return self._group[0].gate(super().forward(x, inplace))
