"""The weights of a model, cut or not, in the arrays of ``ctranslate2.specs``."""

import logging
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch import nn

from ..errors import UserError
from ..modules.layer_norm import WeightedLayerNorm

logger = logging.getLogger(__name__)

# fairseq's --activation-fn to the name in ctranslate2.specs.common_spec.Activation
ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "gelu_accurate": "GELUTanh",
    "gelu_fast": "GELUTanh",
    "tanh": "Tanh",
}


class _Shape(NamedTuple):
    """What zeros complete one side of the model to."""

    width: int  # of the residual stream
    heads: int
    memory: Optional[int] = None  # width of the encoder's output


def _array(tensor: torch.Tensor, *shape: int) -> np.ndarray:
    """A float32 copy, with zeros at the end of each dimension up to ``shape``.

    Always a copy: the quantizer edits arrays in place.
    """
    source = tensor.detach().to("cpu", torch.float32).numpy()
    result = np.zeros(shape or source.shape, np.float32)
    result[tuple(slice(size) for size in source.shape)] = source
    return result


def _per_head(array: np.ndarray, present: int, heads: int, width: int) -> np.ndarray:
    """``[present*K, ...]`` to ``[heads*width, ...]``, zeros at the end of each head."""
    split = array.reshape(present, len(array) // present, *array.shape[1:])
    result = np.zeros((heads, width, *array.shape[1:]), np.float32)
    result[:present, : split.shape[1]] = split
    return result.reshape(heads * width, *array.shape[1:])


def _side_shape(side: nn.Module, attentions: List[nn.Module], memory=None) -> _Shape:
    """Heads and width; the uncut width where layer norms count absent channels.

    Such a layer norm takes mean and variance over the uncut width, absent channels
    being zeros: with the zeros in place it is a plain one.
    """
    width = side.embed_tokens.weight.shape[1]
    for norm in side.modules():
        if isinstance(norm, WeightedLayerNorm) and not norm.weighted:
            width = max(width, norm.group.original_width)
    return _Shape(width, max(a.num_heads for a in attentions), memory)


class SpecBuilder:
    """Fills a ``TransformerSpec`` from the modules of a model.

    Args:
        specs: the module ``ctranslate2.specs``.
        origin: option and file of the model, for messages.
        lengths: rows of the position tables of encoder and decoder.

    Attributes:
        spec: the specification, without vocabularies.

    Raises:
        UserError: the layer norms' eps differ.
    """

    def __init__(self, specs, model: nn.Module, origin: str, lengths: Sequence[int]):
        self.eps: Dict[float, None] = {}
        activation = ACTIVATIONS[str(model.cfg.activation_fn)]
        activation = specs.common_spec.Activation[activation]
        encoder, decoder = model.encoder, model.decoder
        readers = [x.self_attn for x in encoder.layers]
        writers = [a for x in decoder.layers for a in (x.self_attn, x.encoder_attn)]
        self.encoder = _side_shape(encoder, readers)
        self.decoder = _side_shape(decoder, writers, self.encoder.width)
        for name, side, shape, attentions in (
            ("encoder", encoder, self.encoder, readers),
            ("decoder", decoder, self.decoder, writers),
        ):
            heads = [attention.num_heads for attention in attentions]
            if min(heads) < shape.heads:
                logger.warning(
                    f"the {name}'s attention modules have {', '.join(map(str, heads))} "
                    f"heads, CTranslate2 has one number: all are exported with "
                    f"{shape.heads}, zeros among them, which costs speed"
                )
            present = side.embed_tokens.weight.shape[1]
            if shape.width > present:
                logger.warning(
                    f"the {name} was cut without --weighted-layernorm: its {present} "
                    f"embedding channels are exported as {shape.width}, zeros among "
                    "them, which costs speed"
                )
        self.spec = specs.TransformerSpec(
            specs.TransformerEncoderSpec(
                len(encoder.layers),
                self.encoder.heads,
                pre_norm=encoder.layers[0].normalize_before,
                no_final_norm=encoder.layer_norm is None,
                activation=activation,
                layernorm_embedding=encoder.layernorm_embedding is not None,
            ),
            specs.TransformerDecoderSpec(
                len(decoder.layers),
                self.decoder.heads,
                pre_norm=decoder.layers[0].normalize_before,
                no_final_norm=decoder.layer_norm is None,
                activation=activation,
                layernorm_embedding=decoder.layernorm_embedding is not None,
                alignment_heads=0,  # the mean of all, as in fairseq
            ),
        )
        source, target = lengths
        spec = self.spec.encoder
        self._side(spec, spec.embeddings[0], encoder, self.encoder, source)
        spec = self.spec.decoder
        self._side(spec, spec.embeddings, decoder, self.decoder, target)
        self._linear(
            self.spec.decoder.projection,
            decoder.output_projection,
            len(decoder.output_projection.weight),
            self.decoder.width,
        )
        if len(self.eps) != 1:
            raise UserError(f"{origin}: its layer norms have several eps, {list(self.eps)}")
        self.spec.config.layer_norm_epsilon = next(iter(self.eps))

    def _side(self, spec, embeddings, side, shape: _Shape, length: int) -> None:
        """Encoder or decoder: embedding, positions, layers, norms."""
        tokens = side.embed_tokens.weight
        embeddings.weight = _array(tokens, len(tokens), shape.width)
        spec.scale_embeddings = float(side.embed_scale)
        spec.position_encodings.encodings = _array(positions(side, length), length, shape.width)
        for layer_spec, layer in zip(spec.layer, side.layers):
            self._attention(layer_spec.self_attention, layer.self_attn, shape)
            norms = [(layer_spec.self_attention, layer.self_attn_layer_norm)]
            if shape.memory is not None:
                self._attention(layer_spec.attention, layer.encoder_attn, shape, shape.memory)
                norms.append((layer_spec.attention, layer.encoder_attn_layer_norm))
            units = max(1, len(layer.fc1.weight))  # CTranslate2 loads no width 0
            self._linear(layer_spec.ffn.linear_0, layer.fc1, units, shape.width)
            self._linear(layer_spec.ffn.linear_1, layer.fc2, shape.width, units)
            norms.append((layer_spec.ffn, layer.final_layer_norm))
            for part, norm in norms:
                self._norm(part.layer_norm, norm, shape)
        for name in ("layer_norm", "layernorm_embedding"):
            if getattr(side, name) is not None:
                self._norm(getattr(spec, name), getattr(side, name), shape)

    def _norm(self, spec, norm: nn.Module, shape: _Shape) -> None:
        spec.gamma = _array(norm.weight, shape.width)
        spec.beta = _array(norm.bias, shape.width)
        self.eps[float(norm.eps)] = None

    @staticmethod
    def _linear(spec, linear: nn.Module, outputs: int, inputs: int) -> None:
        spec.weight = _array(linear.weight, outputs, inputs)
        if linear.bias is not None:
            spec.bias = _array(linear.bias, outputs)

    def _attention(self, spec, attention, shape: _Shape, memory: Optional[int] = None):
        """Self-attention, or with ``memory`` cross-attention over that width."""
        present, heads = attention.num_heads, shape.heads
        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        width = max(1, *(len(x.weight) // present for x in (q, k, v)))

        def projection(linear: nn.Module, inputs: int):
            weight = _array(linear.weight, len(linear.weight), inputs)
            bias = linear.bias
            bias = np.zeros(len(weight), np.float32) if bias is None else _array(bias)
            return (
                _per_head(weight, present, heads, width),
                _per_head(bias, present, heads, width),
            )

        memory_width = shape.width if memory is None else memory
        parts = [projection(q, shape.width)]
        parts += [projection(x, memory_width) for x in (k, v)]
        groups = [parts] if memory is None else [parts[:1], parts[1:]]
        for linear, fused in zip(spec.linear, groups):
            linear.weight = np.concatenate([weight for weight, _ in fused])
            linear.bias = np.concatenate([bias for _, bias in fused])
        output = attention.out_proj
        weight = _array(output.weight, shape.width, output.weight.shape[1])
        spec.linear[-1].weight = np.ascontiguousarray(_per_head(weight.T, present, heads, width).T)
        if output.bias is not None:
            spec.linear[-1].bias = _array(output.bias, shape.width)
        # not that of the head's width now: cutting leaves the scale as it was
        spec.queries_scale = float(attention.scaling)


def positions(side: nn.Module, length: int) -> torch.Tensor:
    """``[length, D]``, the position table of an encoder or decoder."""
    if side.embed_positions is None:
        # without a table CTranslate2 would add sinusoidal positions
        return torch.zeros(length, side.embed_tokens.weight.shape[1])
    device = side.embed_tokens.weight.device
    token = side.padding_idx + 1  # any but padding, which has no position
    tokens = torch.full((1, length), token, device=device)
    with torch.no_grad():
        return side.embed_positions(tokens)[0]
