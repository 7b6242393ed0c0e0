"""Encoder and decoder layers that declare their channels."""

from typing import Callable

import torch
import torch.nn.functional as F
from fairseq.modules.transformer_layer import (
    TransformerDecoderLayerBase,
    TransformerEncoderLayerBase,
)
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..connectivity.groups import ChannelGroup
from .dropout import Dropout
from .layer_norm import WeightedLayerNorm
from .multihead_attention import SRPMultiheadAttention
from .scriptable import ScriptForm, copy_as
from .torch_private import threshold_backward


class _GatedReLU(torch.autograd.Function):
    """relu(x) ⊙ c with constant c >= 0, keeping the product alone for the backward pass.

    Autograd would keep relu's output, too: an eighth of a shrinking step's activations.
    """

    @staticmethod
    def forward(ctx, x, connectivity):
        product = torch.relu(x).mul_(connectivity)
        ctx.save_for_backward(product, connectivity)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        product, connectivity = ctx.saved_tensors
        return threshold_backward(grad * connectivity, product), None


class GatedActivation:
    """The feed-forward activation, then the gate of its units.

    Args:
        function: of ``[..., width]``, element by element.
        group: the feed-forward units.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], group: ChannelGroup):
        self.function = function
        self.group = group

    def __call__(self, x: Tensor) -> Tensor:
        group = self.group
        plain = group.connectivity.requires_grad or torch.jit.is_tracing()
        if group.gated and self.function is F.relu and not plain:
            return _GatedReLU.apply(x, group.connectivity.to(x.dtype))
        return group.gate(self.function(x))


class _ActivationDropout(Dropout):
    """Dropout of the feed-forward activation, which importance measures after it."""

    def __init__(self, p: float, group: ChannelGroup, module_name: str):
        super().__init__(p, module_name)
        self._group = (group,)

    def forward(self, x, inplace: bool = False):
        return self._group[0].measure(super().forward(x, inplace))


def _declare(layer: nn.Module, residual: ChannelGroup, weighted: bool) -> None:
    """What encoder and decoder layers share: feed-forward units, norms, dropout."""
    name = type(layer).__name__
    layer.ffn = ChannelGroup("ffn", layer.fc1.out_features)
    layer.ffn.tie(layer.fc1, weight=0, bias=0)
    layer.ffn.tie(layer.fc2, weight=1)
    residual.tie(layer.fc1, weight=1)
    residual.tie(layer.fc2, weight=0, bias=0)
    layer.activation_fn = GatedActivation(layer.activation_fn, layer.ffn)
    layer.activation_dropout_module = _ActivationDropout(
        layer.activation_dropout_module.p, layer.ffn, name
    )
    layer.dropout_module = Dropout(layer.dropout_module.p, name)
    layer.depth = ()  # the group of the side's layers, once it has them
    stream = not layer.normalize_before
    layer.self_attn_layer_norm = WeightedLayerNorm(residual, weighted, stream)
    layer.final_layer_norm = WeightedLayerNorm(residual, weighted, stream)


def _add(layer: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    """The residual sum; with post-norm its gate and its site are the norm's that follows."""
    if not layer.normalize_before:
        return residual + x
    group = layer._residual[0]
    return group.measure(residual + group.gate(x))


def _is_skipped(layer: nn.Module) -> bool:
    return any(group.skips(layer) for group in layer.depth)


def _blended(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A layer's input x and what it makes of it, mixed by the layer's connectivity."""
    for group in layer.depth:
        y = group.blend(layer, x, y)
    return y


def _run(layer: nn.Module, forward: Callable, *args, **kwargs):
    """A forward pass in training, of which --checkpoint-activations keeps the input alone.

    The backward pass computes the rest again, with the same random numbers. Unlike fairseq's
    wrapper it leaves evaluation and the gradients of scoring alone.
    """
    if layer.recomputes and layer.training:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)


class _ScriptedLayer(ScriptForm):
    def script_form(self) -> nn.Module:
        return copy_as(self, self.script_class, activation_fn=self.activation_fn.function)


class SRPEncoderLayer(_ScriptedLayer, TransformerEncoderLayerBase):
    """fairseq's encoder layer with ``self_attn.{qk,vo}`` and ``ffn`` channel groups.

    Args:
        cfg: model configuration.
        residual: the encoder's embedding channels.
    """

    script_class = TransformerEncoderLayerBase

    def __init__(self, cfg, residual: ChannelGroup):
        self._residual = (residual,)  # build_self_attention runs in super().__init__
        super().__init__(cfg)
        self.recomputes = cfg.checkpoint_activations
        _declare(self, residual, cfg.weighted_layernorm)

    def build_self_attention(self, embed_dim, cfg):
        residual = self._residual[0]
        return SRPMultiheadAttention(residual, cfg.encoder.attention_heads, cfg.attention_dropout)

    def residual_connection(self, x, residual):
        return _add(self, x, residual)

    def forward(self, x, *args, **kwargs):
        if _is_skipped(self):
            return x
        return _blended(self, x, _run(self, super().forward, x, *args, **kwargs))


class SRPDecoderLayer(_ScriptedLayer, TransformerDecoderLayerBase):
    """fairseq's decoder layer with ``self_attn``, ``encoder_attn`` and ``ffn`` groups.

    Args:
        cfg: model configuration.
        residual: the decoder's embedding channels. The encoder's, which
            cross-attention reads, are tied by the model (``tie_memory``).
    """

    script_class = TransformerDecoderLayerBase

    def __init__(self, cfg, residual: ChannelGroup):
        self._residual = (residual,)
        super().__init__(cfg)
        self.recomputes = cfg.checkpoint_activations
        _declare(self, residual, cfg.weighted_layernorm)
        self.encoder_attn_layer_norm = WeightedLayerNorm(
            residual, cfg.weighted_layernorm, stream=not self.normalize_before
        )
        self.gives_attention = False  # in training, to a loss of alignments
        self.keep_attention_map = False
        self.attention_map = None  # [B, T, S], for distillation

    def build_self_attention(self, embed_dim, cfg, **kwargs):
        residual = self._residual[0]
        return SRPMultiheadAttention(residual, cfg.decoder.attention_heads, cfg.attention_dropout)

    def build_encoder_attention(self, embed_dim, cfg):
        return SRPMultiheadAttention(
            self._residual[0],
            cfg.decoder.attention_heads,
            cfg.attention_dropout,
            memory_width=cfg.encoder.embed_dim,
        )

    def residual_connection(self, x, residual):
        return _add(self, x, residual)

    def forward(self, x, *args, need_attn=False, need_head_weights=False, **kwargs):
        if self.training and not (self.keep_attention_map or self.gives_attention):
            # fairseq computes the last layer's attention map in training and drops it
            need_attn = need_head_weights = False
        elif self.keep_attention_map:
            need_attn = True
        if _is_skipped(self):
            self.attention_map = None
            return x, None, None
        y, attn, state = _run(
            self,
            super().forward,
            x,
            *args,
            need_attn=need_attn,
            need_head_weights=need_head_weights,
            **kwargs,
        )
        if self.keep_attention_map:
            per_head = attn.dim() == 4
            self.attention_map = self.encoder_attn.mean_over_heads(attn) if per_head else attn
        return _blended(self, x, y), attn, state
