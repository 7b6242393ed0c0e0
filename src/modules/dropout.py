"""Dropout with cheap masks on CPUs, and the gate of an embedding."""

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.modules import FairseqDropout
from torch import Tensor

from ..connectivity.groups import ChannelGroup
from .scriptable import ScriptForm

_LEVELS = 1 << 16


def _draws(count: int) -> Tensor:
    """``[count]`` random int16, drawn by a generator that PyTorch's seeds."""
    seed = int(torch.empty((), dtype=torch.int64).random_())
    raw = np.random.SFC64(seed).random_raw((count + 3) // 4)
    return torch.from_numpy(raw.view(np.int16))[:count]


def _kept(draws: Tensor, threshold: int, size, stride, dtype) -> Tensor:
    """1 where an element is kept, 0 where it is dropped, in the order of memory."""
    kept = torch.empty_strided(size, stride, dtype=dtype)
    torch.ge(draws, threshold - _LEVELS // 2, out=kept.as_strided(draws.shape, (1,)))
    return kept


class _CpuDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, draws, threshold):
        ctx.save_for_backward(draws)
        ctx.threshold = threshold
        ctx.layout = x.shape, torch.empty_like(x).stride()
        ctx.scale = _LEVELS / (_LEVELS - threshold)
        return _kept(draws, threshold, *ctx.layout, x.dtype).mul_(x).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad):
        (draws,) = ctx.saved_tensors
        kept = _kept(draws, ctx.threshold, *ctx.layout, grad.dtype)
        return kept.mul_(grad).mul_(ctx.scale), None, None


def cpu_dropout(x: Tensor, p: float) -> Tensor:
    """Dropout with the drop probability rounded to 1/65536.

    ``F.dropout`` draws one number per element in one thread, 13 % of a training
    step; here every 64-bit draw makes four decisions.
    """
    return _CpuDropout.apply(x, _draws(x.numel()), round(p * _LEVELS))


class Dropout(ScriptForm, FairseqDropout):
    """``FairseqDropout`` with :func:`cpu_dropout` where the tensor is on a CPU."""

    script_class = FairseqDropout

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
        group = self._group[0]
        return group.measure(group.gate(super().forward(x, inplace)), sentences=0)
