"""One decoding step of a Transformer decoder, for all hypotheses of a batch at once.

The weights are folded once: query, key and value products joined, connectivity
and adapters multiplied in. Keys and values are written once and never moved:
the hypotheses of a sentence attend to everything that any of them has written,
under a mask that says whose ancestors wrote what.
"""

from itertools import chain
from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase

from ..adapters import adapted_weight
from .linear import PackedLinear, constant_product

_SLOTS = 64  # of keys and values, to begin with; doubled when they are full


class _Product:
    """x Wᵀ + b; several linear modules with the same input are joined.

    Args:
        parts: weight ``[out, in]`` and bias (or None) of each.
        bfloat16: multiply in bfloat16; inputs and outputs stay as they are.
        sparse: leave out zeros where that is faster.
    """

    def __init__(
        self,
        *parts: Tuple[Tensor, Optional[Tensor]],
        bfloat16: bool = False,
        sparse: bool = False,
    ):
        weights, biases = zip(*parts)
        weight, bias = torch.cat(weights) if len(parts) > 1 else weights[0], None
        if any(bias is not None for bias in biases):
            bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in parts])
        self.dtype = torch.bfloat16 if bfloat16 else weight.dtype
        bias = bias if bias is None else bias.to(self.dtype)
        make = constant_product if sparse else PackedLinear
        self.linear = make(weight.to(self.dtype), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, in]`` to ``[rows, out]``."""
        return self.linear(x.to(self.dtype)).to(x.dtype)


def _gate(module: nn.Module, name: str) -> Optional[Tensor]:
    """Connectivity of a layer's channel group, or None where all is connected."""
    group = getattr(module, name, None)
    return group.connectivity if group is not None and group.gated else None


def _scaled(
    module: nn.Module, rows: Optional[Tensor] = None, columns: Optional[Tensor] = None
) -> Tuple[Tensor, Optional[Tensor]]:
    """A linear module's weight and bias, outputs and inputs multiplied by factors."""
    weight, bias = adapted_weight(module), module.bias
    if rows is not None:
        rows = rows.to(weight.dtype)
        weight = weight * rows.unsqueeze(1)
        bias = None if bias is None else bias * rows
    if columns is not None:
        weight = weight * columns.to(weight.dtype)
    return weight, bias


class _Layer:
    """Folded weights of one decoder layer."""

    def __init__(self, layer: nn.Module, bfloat16: bool, sparse: bool):
        self.module = layer
        residual = None
        if layer.normalize_before and hasattr(layer, "_residual"):
            group = layer._residual[0]
            residual = group.connectivity if group.gated else None

        def product(*parts):
            return _Product(*parts, bfloat16=bfloat16, sparse=sparse)

        def query(attention):
            rows, gate = attention.scaling, _gate(attention, "qk")
            rows = torch.full_like(attention.q_proj.weight[:, 0], rows)
            return _scaled(attention.q_proj, rows if gate is None else rows * gate)

        own = layer.self_attn
        self.inputs = product(query(own), _scaled(own.k_proj), _scaled(own.v_proj))
        self.widths = [len(own.q_proj.weight), len(own.k_proj.weight), len(own.v_proj.weight)]
        self.output = product(_scaled(own.out_proj, residual, _gate(own, "vo")))
        cross = self.cross = layer.encoder_attn
        self.query = product(query(cross))
        self.memory = product(_scaled(cross.k_proj), _scaled(cross.v_proj))
        self.memory_widths = [len(cross.k_proj.weight), len(cross.v_proj.weight)]
        self.cross_output = product(_scaled(cross.out_proj, residual, _gate(cross, "vo")))
        self.fc1 = product(_scaled(layer.fc1))
        self.fc2 = product(_scaled(layer.fc2, residual, _gate(layer, "ffn")))
        self.heads = own.num_heads


def _split(x: Tensor, sentences: int, heads: int) -> Tensor:
    """``[B*n, H*K]`` to ``[B, H, n, K]``."""
    return x.view(sentences, -1, heads, x.shape[-1] // heads).transpose(1, 2)


class Cache:
    """What the hypotheses of a batch of sentences have written so far.

    Attributes:
        memory: per layer the encoder's keys and values, ``[B, H, S, K]`` and
            ``[B, H, S, V]``; beams of a sentence share them.
        memory_mask: ``[B, 1, 1, S]``, -inf at padding, or None.
        mask: ``[B, n, slots]``, 0 where slot was written by an ancestor of the
            hypothesis, else -inf.
        used: slots written.
    """

    def __init__(self, memory: List[Tuple[Tensor, Tensor]], memory_mask, layers):
        self.memory, self.memory_mask = memory, memory_mask
        keys, _ = memory[0]
        sentences = len(keys)
        self.written = [
            (
                keys.new_empty(sentences, layer.heads, _SLOTS, layer.widths[1] // layer.heads),
                keys.new_empty(sentences, layer.heads, _SLOTS, layer.widths[2] // layer.heads),
            )
            for layer in layers
        ]
        self.mask = keys.new_full((sentences, 1, _SLOTS), float("-inf"))
        self.used = 0

    def open(self, hypotheses: int) -> None:
        """Make room for one position of each hypothesis, seen by itself alone."""
        slots = self.mask.shape[-1]
        if self.used + hypotheses > slots:
            self.mask = F.pad(self.mask, (0, slots), value=float("-inf"))
            self.written = [
                (F.pad(k, (0, 0, 0, slots)), F.pad(v, (0, 0, 0, slots)))
                for k, v in self.written
            ]
        self.used += hypotheses
        self.mask[:, :, self.used - hypotheses : self.used].diagonal(dim1=1, dim2=2).zero_()

    def follow(self, parents: Tensor) -> None:
        """Hypothesis j goes on from ``parents[:, j]``, ``[B, beam]``."""
        index = parents.unsqueeze(-1).expand(-1, -1, self.mask.shape[-1])
        self.mask = self.mask.gather(1, index)

    def keep(self, sentences: Tensor) -> None:
        """Forget all but these sentences."""

        def select(x):
            return x.index_select(0, sentences)

        self.memory = [(select(k), select(v)) for k, v in self.memory]
        if self.memory_mask is not None:
            self.memory_mask = select(self.memory_mask)
        self.mask = select(self.mask)
        used = self.used
        for number, pair in enumerate(self.written):
            smaller = tuple(x.new_empty(len(sentences), *x.shape[1:]) for x in pair)
            for old, new in zip(pair, smaller):
                new[:, :, :used] = old[:, :, :used].index_select(0, sentences)
            self.written[number] = smaller


class DecoderStep:
    """A decoder with its weights folded; see the module's docstring.

    Args:
        decoder: fairseq's Transformer decoder or SRP's, in evaluation mode.
        bfloat16: matrix products in bfloat16 (CPUs with AVX512-BF16 or AMX).
        sparse: sparse products where a short timing finds them faster.
    """

    def __init__(
        self,
        decoder: TransformerDecoderBase,
        bfloat16: bool = False,
        sparse: bool = False,
    ):
        self.decoder = decoder
        self.layers = [_Layer(layer, bfloat16, sparse) for layer in decoder.layers]
        self.vocabulary = _Product(
            _scaled(decoder.output_projection), bfloat16=bfloat16, sparse=sparse
        )

    def start(self, encoder_out: Dict[str, List[Tensor]]) -> Cache:
        """The cache of a batch, from what fairseq's encoder returns."""
        (memory,) = encoder_out["encoder_out"]  # [S, B, D]
        memory = memory.transpose(0, 1)
        sentences, length, width = memory.shape
        rows = memory.reshape(-1, width)
        pairs = []
        for layer in self.layers:
            keys, values = layer.memory(rows).split(layer.memory_widths, dim=1)
            heads = layer.cross.num_heads
            pairs.append(
                tuple(_split(x, sentences, heads).contiguous() for x in (keys, values))
            )
        mask = None
        padding = encoder_out["encoder_padding_mask"]
        if padding and padding[0] is not None and padding[0].any():
            mask = memory.new_zeros(sentences, 1, 1, length)
            mask.masked_fill_(padding[0][:, None, None].bool(), float("-inf"))
        return Cache(pairs, mask, self.layers)

    def __call__(self, tokens: Tensor, cache: Cache, step: int) -> Tensor:
        """Logits ``[B*n, N]`` after the ``step``-th token of each hypothesis.

        Args:
            tokens: ``[B, n]``, the last token of n hypotheses a sentence.
            cache: as :meth:`start` made it, told of every choice of parents.
        """
        decoder, (sentences, hypotheses) = self.decoder, tokens.shape
        x = decoder.embed_scale * decoder.embed_tokens(tokens.reshape(-1))
        if decoder.embed_positions is not None:
            position = tokens.new_full((1, step + 1), decoder.padding_idx + 1)
            x = x + decoder.embed_positions(position, incremental_state={})[:, -1]
        if decoder.layernorm_embedding is not None:
            x = decoder.layernorm_embedding(x)
        x = decoder.dropout_module(x)
        cache.open(hypotheses)
        mask = cache.mask[:, None, :, : cache.used]
        for layer, written, memory in zip(self.layers, cache.written, cache.memory):
            x = self._layer(layer, x, written, memory, mask, cache, sentences, hypotheses)
        if decoder.layer_norm is not None:
            x = decoder.layer_norm(x)
        return self.vocabulary(x)

    @staticmethod
    def _layer(layer, x, written, memory, mask, cache, sentences, hypotheses) -> Tensor:
        module, used = layer.module, cache.used
        first = module.normalize_before

        h = module.self_attn_layer_norm(x) if first else x
        q, k, v = layer.inputs(h).split(layer.widths, dim=1)
        for old, new in zip(written, (k, v)):
            old[:, :, used - hypotheses : used] = _split(new, sentences, layer.heads)
        k, v = (old[:, :, :used] for old in written)
        x = x + layer.output(_attend(_split(q, sentences, layer.heads), k, v, mask))
        x = x if first else module.self_attn_layer_norm(x)

        h = module.encoder_attn_layer_norm(x) if first else x
        q = _split(layer.query(h), sentences, layer.cross.num_heads)
        x = x + layer.cross_output(_attend(q, *memory, cache.memory_mask))
        x = x if first else module.encoder_attn_layer_norm(x)

        h = module.final_layer_norm(x) if first else x
        x = x + layer.fc2(module.activation_fn(layer.fc1(h)))
        return x if first else module.final_layer_norm(x)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Attention of scaled queries ``[B, H, n, K]``; ``[B*n, H*V]``.

    Plain products: with n of a few rows they are a tenth faster than the fused
    operator, whose blocks are made for long queries.
    """
    scores = torch.matmul(q, k.transpose(-2, -1))
    if mask is not None:
        scores += mask
    heads = torch.matmul(F.softmax(scores, dim=-1), v)
    return heads.transpose(1, 2).reshape(-1, heads.shape[1] * heads.shape[3])


def unsupported(model: nn.Module) -> Optional[str]:
    """Why a model's decoder can't be folded, or None if it can."""
    decoder = getattr(model, "decoder", None)
    if not isinstance(decoder, TransformerDecoderBase):
        return f"the model ({type(model).__name__}) is no Transformer"
    if any(
        getattr(decoder, name, None) is not None
        for name in ("adaptive_softmax", "project_in_dim", "project_out_dim", "quant_noise")
    ):
        return "its decoder has adaptive softmax, extra projections or quantization noise"
    if not isinstance(decoder.output_projection, nn.Linear) or decoder.cross_self_attention:
        return "its decoder is not a plain Transformer's"
    for layer in decoder.layers:
        extra = ("c_attn", "w_resid", "attn_ln", "ffn_layernorm")
        if (
            not isinstance(layer, TransformerDecoderLayerBase)
            or layer.encoder_attn is None
            or any(getattr(layer, name, None) is not None for name in extra)
            or any(
                a.bias_k is not None or a.add_zero_attn
                for a in (layer.self_attn, layer.encoder_attn)
            )
        ):
            return "its decoder's layers are not a plain Transformer's"
    if any(
        getattr(module, "apply_during_inference", False) for module in decoder.modules()
    ):
        return "--retain-dropout draws at random"
    return None


def fingerprint(model: nn.Module) -> tuple:
    """Changes whenever a weight of the model's decoder is written or replaced.

    torch's fused optimizers leave no trace on the weights that they write; an SRP
    model counts its changes between training and evaluation for their sake. Of other
    models every fingerprint is a new one.
    """
    tensors = chain(model.decoder.parameters(), model.decoder.buffers())
    changes = getattr(model, "mode_changes", None)
    return (
        object() if changes is None else changes,
        *((t.data_ptr(), t._version, t.dtype) for t in tensors),
    )
