"""One decoding step of a Transformer decoder, for all hypotheses of a batch at once.

The weights are folded once: query, key and value products joined, connectivity
and adapters multiplied in. Keys and values are in a cache (``decoder_cache.py``).
"""

from itertools import chain
from typing import Callable, Dict, List, Optional, Tuple, Union

import torch
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from torch import Tensor, nn

from ..acceleration.constant_products import PackedLinear, constant_product
from ..adapters import adapted_weight
from ..modules.layer_norm import WeightedLayerNorm
from ..modules.srp_layer import GatedActivation
from .cache import BeamCache, Heads, SingleCache

Cache = Union[BeamCache, SingleCache]


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
        if x.dtype == self.dtype:
            return self.linear(x)
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
        cross = layer.encoder_attn
        self.query = product(query(cross))
        self.memory = product(_scaled(cross.k_proj), _scaled(cross.v_proj))
        self.memory_widths = [len(cross.k_proj.weight), len(cross.v_proj.weight)]
        self.cross_output = product(_scaled(cross.out_proj, residual, _gate(cross, "vo")))
        self.fc1 = product(_scaled(layer.fc1))
        self.fc2 = product(_scaled(layer.fc2, residual, _gate(layer, "ffn")))
        self.heads = Heads(own.num_heads, cross.num_heads)
        self.activation = layer.activation_fn
        if isinstance(self.activation, GatedActivation):
            self.activation = self.activation.function  # fc2 has the gate
        self.before = layer.normalize_before
        self.module = layer
        self.depth = [group for group in getattr(layer, "depth", ()) if group.gated]
        self.norms = [
            _norm(module)
            for module in (
                layer.self_attn_layer_norm,
                layer.encoder_attn_layer_norm,
                layer.final_layer_norm,
            )
        ]

    def __call__(self, x: Tensor, number: int, cache: Cache) -> Tensor:
        """``[B*n, D]`` to ``[B*n, D]``; ``number`` is the layer's in the cache."""
        y = self._all(x, number, cache)
        for group in self.depth:
            y = group.blend(self.module, x, y)
        return y

    def _all(self, x: Tensor, number: int, cache: Cache) -> Tensor:
        own, cross, last = self.norms
        if self.before:
            x = x + self._own(own(x), number, cache)
            x = x + self._memory(cross(x), number, cache)
            return x + self._feed_forward(last(x))
        x = own(x + self._own(x, number, cache))
        x = cross(x + self._memory(x, number, cache))
        return last(x + self._feed_forward(x))

    def _own(self, x: Tensor, number: int, cache: Cache) -> Tensor:
        q, k, v = self.inputs(x).split(self.widths, dim=1)
        return self.output(cache.attend(number, q, k, v))

    def _memory(self, x: Tensor, number: int, cache: Cache) -> Tensor:
        return self.cross_output(cache.attend_memory(number, self.query(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A layer normalization as a plain function of ``[rows, D]``."""
    if isinstance(module, WeightedLayerNorm):
        group = module.group
        if group.gated or not (module.weighted or group.width == group.original_width):
            return module.normalize
        shape = module.weight.shape
    elif type(module) is nn.LayerNorm:
        shape = module.normalized_shape
    else:
        return module
    weight, bias, eps = module.weight, module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


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
        self._positions: List[Tensor] = []  # embedding of each step's, once it was used
        self.layers = [
            _Layer(layer, bfloat16, sparse)
            for layer in decoder.layers
            if not any(group.skips(layer) for group in getattr(layer, "depth", ()))
        ]
        self.vocabulary = _Product(
            _scaled(decoder.output_projection), bfloat16=bfloat16, sparse=sparse
        )

    def start(self, encoder_out: Dict[str, List[Tensor]], beam: int) -> Cache:
        """The cache of a batch, from what fairseq's encoder returns.

        Args:
            beam: the most hypotheses that a sentence will have.
        """
        (memory,) = encoder_out["encoder_out"]  # [S, B, D]
        rows = memory.reshape(-1, memory.shape[2])
        pairs = []
        for layer in self.layers:
            joined = layer.memory(rows).unflatten(0, memory.shape[:2])
            pairs.append(joined.split(layer.memory_widths, dim=2))
        padding = encoder_out["encoder_padding_mask"]
        given = pairs, padding[0] if padding else None, [layer.heads for layer in self.layers]
        return SingleCache(*given) if beam == 1 else BeamCache(*given, beam)

    def _position(self, step: int) -> Tensor:
        """Embedding of a step's position, ``[1, D]``."""
        embed, pad = self.decoder.embed_positions, self.decoder.padding_idx
        while len(self._positions) <= step:
            device = self.decoder.embed_tokens.weight.device
            tokens = torch.full((1, len(self._positions) + 1), pad + 1, device=device)
            with torch.inference_mode(False):  # a sinusoidal table may grow and is kept
                row = embed(tokens, incremental_state={})[:, -1].detach()
            self._positions.append(row)
        return self._positions[step]

    def __call__(self, tokens: Tensor, cache: Cache, step: int) -> Tensor:
        """Logits ``[B*n, N]`` after the ``step``-th token of each hypothesis.

        Args:
            tokens: ``[B, n]``, the last token of n hypotheses a sentence.
            cache: as :meth:`start` made it, told of every choice of parents.
        """
        decoder = self.decoder
        x = decoder.embed_tokens(tokens.reshape(-1))
        if decoder.embed_positions is None:
            x = decoder.embed_scale * x
        else:
            x = torch.add(self._position(step), x, alpha=decoder.embed_scale)
        if decoder.layernorm_embedding is not None:
            x = decoder.layernorm_embedding(x)
        x = decoder.dropout_module(x)
        cache.open(tokens.shape[1])
        for number, layer in enumerate(self.layers):
            x = layer(x, number, cache)
        if decoder.layer_norm is not None:
            x = decoder.layer_norm(x)
        return self.vocabulary(x)


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
    if any(getattr(module, "apply_during_inference", False) for module in decoder.modules()):
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
