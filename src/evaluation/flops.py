"""Floating-point operations of a translation, from the shapes of a model's weights."""

from typing import Dict, Optional

from torch import nn

PARTS = (
    "encoder_projections",
    "encoder_scores",
    "encoder_ffn",
    "decoder_self_projections",
    "decoder_self_scores",
    "decoder_cross_projections",
    "decoder_cross_scores",
    "decoder_ffn",
    "output_projection",
)


def _linear(*layers: Optional[nn.Module]) -> int:
    """FLOPs of linear layers for one position."""
    return sum(2 * layer.weight.numel() for layer in layers if layer is not None)


def _scores(attention: nn.Module) -> int:
    """FLOPs of one query with one key: their product, and the weighted value.

    The widths are those of all heads together, ``H*K`` and ``H*V``.
    """
    return 2 * (len(attention.q_proj.weight) + len(attention.v_proj.weight))


def count_flops(
    model: nn.Module,
    source_length: int,
    target_length: int,
    incremental: bool = True,
    beam: int = 1,
) -> Dict[str, int]:
    """FLOPs to translate one sentence, of matrix products only (see ``flops_counter.py``).

    Args:
        model: an SRP model, cut or not, or fairseq's Transformer.
        source_length: tokens of the source, S.
        target_length: tokens of the target, T.
        incremental: generate the target token by token: each step computes its
            own position, cross-attention's keys and values are computed once,
            self-attention reads the positions so far. Otherwise the whole target
            goes through at once (teacher forcing, a training step's forward
            pass), where the causal mask saves nothing.
        beam: hypotheses that are extended side by side. They share the encoder
            and cross-attention's keys and values, as after the decoder's
            ``set_beam_size(beam)``. Only with ``incremental``.

    Returns:
        FLOPs for each name in ``PARTS``, and their ``total``.

    Raises:
        ValueError: a length or beam below 1, a beam without ``incremental``, or
            a model without a plain output projection (adaptive softmax).
    """
    if min(source_length, target_length, beam) < 1:
        raise ValueError("lengths and beam must be at least 1")
    if beam > 1 and not incremental:
        raise ValueError("a beam needs incremental generation")
    encoder, decoder = model.encoder, model.decoder
    if getattr(decoder, "output_projection", None) is None:
        raise ValueError("the model has no output projection (adaptive softmax)")
    source, target = source_length, target_length
    # how many pairs of query and key self-attention computes
    pairs = target * (target + 1) // 2 if incremental else target * target

    flops = dict.fromkeys(PARTS, 0)
    for layer in encoder.layers:
        attention = layer.self_attn
        flops["encoder_projections"] += source * _linear(
            attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj
        )
        flops["encoder_scores"] += source * source * _scores(attention)
        flops["encoder_ffn"] += source * _linear(layer.fc1, layer.fc2)
    for layer in decoder.layers:
        attention = layer.self_attn
        flops["decoder_self_projections"] += (beam * target) * _linear(
            attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj
        )
        flops["decoder_self_scores"] += beam * pairs * _scores(attention)
        attention = layer.encoder_attn
        flops["decoder_cross_projections"] += (beam * target) * _linear(
            attention.q_proj, attention.out_proj
        ) + source * _linear(attention.k_proj, attention.v_proj)
        flops["decoder_cross_scores"] += beam * target * source * _scores(attention)
        flops["decoder_ffn"] += beam * target * _linear(layer.fc1, layer.fc2)
    # fairseq's Transformer may change the width before and after its layers
    flops["output_projection"] = (beam * target) * _linear(
        decoder.project_in_dim, decoder.project_out_dim, decoder.output_projection
    )
    flops["total"] = sum(flops.values())
    return flops
