"""Multi-head attention whose query/key and value widths can be cut."""

from contextlib import nullcontext
from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from ..connectivity.groups import ChannelGroup
from .scriptable import ScriptForm, copy_as


def _in_autocast_type(query: Tensor, key: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
    """Inputs of several projections, cast once where each would cast them for itself."""
    if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return query, key
    dtype = torch.get_autocast_dtype("cpu")
    if key is query:
        query = key = query.to(dtype)
        return query, key
    return query, key if key is None else key.to(dtype)


class PlainAttention(MultiheadAttention):
    """fairseq's attention on ``scaled_dot_product_attention``, with projections of any width.

    TorchScript compiles it. The scale is that of the heads that it was made with, and the
    projections are called as modules, so that wrapped ones (adapters) are not bypassed.
    """

    def _split_heads(self, x: Tensor) -> Tensor:
        """``[T, B, H*K]`` to ``[B, H, T, K]``."""
        length, batch, width = x.shape
        return x.view(length, batch, self.num_heads, width // self.num_heads).permute(1, 2, 0, 3)

    def _inputs(self, query: Tensor, key: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
        return query, key

    def _queries(self, x: Tensor) -> Tensor:
        return self.q_proj(x)

    def _values(self, x: Tensor) -> Tensor:
        return self.v_proj(x)

    def _output(self, heads: Tensor) -> Tensor:
        return self.out_proj(heads)

    def mean_over_heads(self, weights: Tensor) -> Tensor:
        """``[H, B, T, S]`` to ``[B, T, S]``."""
        return weights.mean(dim=0)

    def forward(
        self,
        query: Tensor,
        key: Optional[Tensor],
        value: Optional[Tensor],
        key_padding_mask: Optional[Tensor] = None,
        incremental_state: Optional[Dict[str, Dict[str, Optional[Tensor]]]] = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Optional[Tensor] = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """As in fairseq.

        Shapes:
            query ``[T, B, D]``, key and value ``[S, B, D']`` (``[S, B/beam, D']``
            in cross-attention during beam search), key_padding_mask ``[B, S]``
            with True at padding, attn_mask ``[T, S]`` added to the scores.

        Returns:
            ``[T, B, D]``, and if asked for the attention weights ``[B, T, S]``
            averaged over heads or ``[H, B, T, S]`` per head.
        """
        length, batch, _ = query.shape
        query, key = self._inputs(query, key)
        q = self._split_heads(self._queries(query))

        known_key: Optional[Tensor] = None
        known_value: Optional[Tensor] = None
        known_padding: Optional[Tensor] = None
        if incremental_state is not None:
            saved = self._get_input_buffer(incremental_state)
            if "prev_key" in saved:
                known_key, known_value = saved["prev_key"], saved["prev_value"]
                known_padding = saved["prev_key_padding_mask"]
        if static_kv and known_key is not None and known_value is not None:
            k, v, key_padding_mask = known_key, known_value, known_padding
        else:
            assert key is not None
            if static_kv and self.beam_size > 1 and batch == key.size(1):
                # the beams of a sentence attend to one and the same memory
                key = key.view(key.size(0), -1, self.beam_size, key.size(2))[:, :, 0]
                if key_padding_mask is not None:
                    key_padding_mask = key_padding_mask.view(
                        -1, self.beam_size, key_padding_mask.size(1)
                    )[:, 0]
            k = self._split_heads(self.k_proj(key))
            # values are gated rather than what attention makes of them, which is the
            # same and would be kept twice for the backward pass
            v = self._split_heads(self._values(key))
            if incremental_state is not None:
                if not static_kv:
                    if known_key is not None and known_value is not None:
                        k = torch.cat([known_key, k], dim=2)
                        v = torch.cat([known_value, v], dim=2)
                    key_padding_mask = self._append_prev_key_padding_mask(
                        key_padding_mask, known_padding, k.size(0), k.size(2), static_kv
                    )
                buffer: Dict[str, Optional[Tensor]] = {
                    "prev_key": k,
                    "prev_value": v,
                    "prev_key_padding_mask": key_padding_mask,
                }
                self._set_input_buffer(incremental_state, buffer)

        beams = batch // k.size(0)
        if beams > 1:  # [B, H, T, K] to [B/beam, H, beam*T, K]
            q = q.unflatten(0, (-1, beams)).transpose(1, 2).flatten(2, 3)

        mask = self._additive_mask(q, attn_mask, key_padding_mask, beams)
        weights: Optional[Tensor] = None
        if need_weights or need_head_weights:
            heads, weights = self._attention_with_weights(q, k, v, mask)
        else:
            heads = self._attention(q, k, v, mask)

        if beams > 1:
            heads = heads.unflatten(2, (beams, length)).transpose(1, 2).flatten(0, 1)
        heads = heads.permute(2, 0, 1, 3).reshape(length, batch, -1)
        output = self._output(heads)

        if weights is not None:
            if beams > 1:
                weights = weights.unflatten(2, (beams, length))
                weights = weights.transpose(1, 2).flatten(0, 1)
            weights = weights.transpose(0, 1)
            if not need_head_weights:
                weights = self.mean_over_heads(weights)
        return output, weights

    @staticmethod
    def _additive_mask(
        q: Tensor, attn_mask: Optional[Tensor], key_padding_mask: Optional[Tensor], beams: int
    ) -> Optional[Tensor]:
        """One mask ``[B or 1, 1, T, S]`` in q's type, or None."""
        mask: Optional[Tensor] = None
        if attn_mask is not None:
            mask = attn_mask.to(q.dtype)
            if beams > 1:
                mask = mask.repeat(beams, 1)
            mask = mask[None, None]
        if key_padding_mask is not None:
            padding = torch.zeros(
                key_padding_mask.shape, dtype=q.dtype, device=q.device
            ).masked_fill_(key_padding_mask.to(torch.bool), float("-inf"))
            padding = padding[:, None, None, :]
            mask = padding if mask is None else mask + padding
        return mask

    def _drop_probability(self) -> float:
        drops = self.training or self.dropout_module.apply_during_inference
        return self.dropout_module.p if drops else 0.0

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor]) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self._drop_probability(), scale=self.scaling
        )

    def _attention_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        scores = torch.matmul(q * self.scaling, k.transpose(-2, -1))
        if mask is not None:
            scores = scores + mask
        wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
        weights = F.softmax(scores, dim=-1, dtype=wide)
        return torch.matmul(self.dropout_module(weights).to(v.dtype), v), weights


class SRPMultiheadAttention(ScriptForm, PlainAttention):
    """Attention with two channel groups.

    ``qk`` are the query and key channels, ``vo`` the value channels and the
    output projection's inputs, each spread evenly over the heads. A head whose
    channels are all cut is gone. The scale stays that of the uncut head.

    Args:
        query: residual channels that queries read and outputs are added to.
        heads: number of heads.
        dropout: drop probability of attention weights.
        memory_width: width of the encoder's output, in cross-attention; its
            channels are tied by :meth:`tie_memory`.
    """

    script_class = PlainAttention
    __jit_unused_properties__ = ["num_heads"]

    def __init__(
        self,
        query: ChannelGroup,
        heads: int,
        dropout: float = 0.0,
        memory_width: Optional[int] = None,
    ):
        width = query.width
        super().__init__(
            width,
            heads,
            kdim=memory_width,
            vdim=memory_width,
            dropout=dropout,
            self_attention=memory_width is None,
            encoder_decoder_attention=memory_width is not None,
        )
        self.qk = ChannelGroup("qk", width, heads)
        self.vo = ChannelGroup("vo", width, heads, same_heads=self.qk)
        self.qk.tie(self.q_proj, weight=0, bias=0)
        self.qk.tie(self.k_proj, weight=0, bias=0)
        self.vo.tie(self.v_proj, weight=0, bias=0)
        self.vo.tie(self.out_proj, weight=1)
        query.tie(self.q_proj, weight=1)
        query.tie(self.out_proj, weight=0, bias=0)
        if memory_width is None:
            self.tie_memory(query)

    @property
    def num_heads(self) -> int:
        """Heads that are present."""
        return self.qk.heads

    @num_heads.setter
    def num_heads(self, heads: int) -> None:
        # fairseq's constructor sets it before there are groups, which know it
        if "qk" in self._modules and heads != self.qk.heads:
            raise AttributeError("num_heads follows from the channels that are present")

    def script_form(self) -> nn.Module:
        return copy_as(self, PlainAttention, num_heads=self.num_heads)

    def tie_memory(self, memory: ChannelGroup) -> None:
        """Declare the residual channels that keys and values read."""
        memory.tie(self.k_proj, weight=1)
        memory.tie(self.v_proj, weight=1)

    def _inputs(self, query: Tensor, key: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
        return _in_autocast_type(query, key)

    def _queries(self, x: Tensor) -> Tensor:
        return self.qk.measure(self.qk.gate(self.q_proj(x)))

    def _values(self, x: Tensor) -> Tensor:
        return self.vo.gate(self.v_proj(x))

    def _output(self, heads: Tensor) -> Tensor:
        return self.out_proj(self.vo.measure(heads))

    def mean_over_heads(self, weights: Tensor) -> Tensor:
        """``[H, B, T, S]`` to ``[B, T, S]``.

        A head counts as far as its values are connected: so the mean does not change
        when a head is cut.
        """
        if not self.vo.gated:
            return weights.mean(dim=0)
        share = self.vo.connectivity.view(self.num_heads, -1).sum(dim=1)
        share = (share / share.sum()).to(weights.dtype)
        return torch.einsum("h,hbts->bts", share, weights)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor]) -> Tensor:
        dtype = q.dtype
        if dtype == torch.bfloat16 and q.device.type == "cpu":
            # the backward pass of fused attention takes four times as long in bfloat16
            q, k, v = q.float(), k.float(), v.float()
            mask = mask if mask is None else mask.float()
        on_cpu = q.device.type == "cpu"
        with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
            heads = super()._attention(q, k, v, mask)
        return heads.to(dtype)
