"""A CTranslate2 model of a trained model, cut or not: the same function in C++.

CTranslate2 wants one number of heads for the encoder and one for the decoder,
queries, keys and values of one width within a sub-layer, and plain layer
normalization. Where a cut model differs, zeros are added: a zero channel or head
adds nothing to any product, so the outputs stay the same.
"""

import copy
import hashlib
from typing import List, Optional, Sequence

import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModelBase
from torch import nn

from ..adapters import adapted_layers, fuse
from ..checks.ctranslate2_package import require_ctranslate2
from ..connectivity.groups import shrinking_groups
from ..errors import UserError
from .spec import ACTIVATIONS, SpecBuilder

QUANTIZATIONS = ("float32", "int8", "int8_float32", "int16", "bfloat16")
QUANTIZATIONS += ("float16", "int8_float16", "int8_bfloat16")

# Parts that some of fairseq's options add to a layer or a side, all of them None
# in a model that CTranslate2 can compute.
_EXTRA_PARTS = {
    "attn_ln": "--scale-attn",
    "c_attn": "--scale-heads",
    "ffn_layernorm": "--scale-fc",
    "w_resid": "--scale-resids",
    "project_in_dim": "--decoder-input-dim",
    "project_out_dim": "--decoder-output-dim",
    "adaptive_softmax": "--adaptive-softmax-cutoff",
    "bias_k": "--add-bias-kv",
}


def plain(model: nn.Module) -> nn.Module:
    """The model, or a copy of it with its adapters fused."""
    return fuse(copy.deepcopy(model)) if adapted_layers(model) else model


def weights_digest(model: nn.Module) -> Optional[str]:
    """SHA-256 of a model's weights; None with adapters, which are fused inexactly."""
    if adapted_layers(model):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_exportable(model: nn.Module, origin: str) -> None:
    """Refuse what CTranslate2 can't compute, before any work.

    Args:
        origin: option and file of the checkpoint, for messages.

    Raises:
        UserError: names the option of the model or the state of its channels.
    """
    if not isinstance(model, TransformerModelBase):
        raise UserError(
            f"{origin}: is a {type(model).__name__}; SRP models and fairseq's transformer "
            "can be exported"
        )
    shrinking = shrinking_groups(model)
    if shrinking:
        raise UserError(
            f"{origin}: is of a pruning stage that is not finished (the connectivity of "
            f"{shrinking[0]} is not all ones); export the checkpoint after the cut"
        )
    activation = str(model.cfg.activation_fn)
    if activation not in ACTIVATIONS:
        raise UserError(
            f"{origin}: has --activation-fn {activation}, CTranslate2 has {', '.join(ACTIVATIONS)}"
        )
    for name, module in model.named_modules():
        for part, option in _EXTRA_PARTS.items():
            if getattr(module, part, None) is not None:
                raise UserError(
                    f"{origin}: was trained with {option} ({name}.{part}), which "
                    "CTranslate2 does not have"
                )
    for side in (model.encoder, model.decoder):
        if type(side.embed_tokens) is not nn.Embedding:
            raise UserError(f"{origin}: its embedding is no plain table (--adaptive-input)")
        orders = {layer.normalize_before for layer in side.layers}
        if len(orders) != 1 or not all(hasattr(x, "self_attn") for x in side.layers):
            raise UserError(f"{origin}: its layers are not all of one kind (--base-layers)")
    if any(layer.encoder_attn is None for layer in model.decoder.layers):
        raise UserError(f"{origin}: has no cross-attention (--no-cross-attention)")


def vocabulary(dictionary: Dictionary) -> List[str]:
    """The symbols by number, every one unique.

    fairseq lets a later entry take over a symbol (``#fairseq:overwrite``); the
    earlier number is then never looked up, so it gets another name.
    """
    symbols, taken = [], set(dictionary.symbols)
    for number, symbol in enumerate(dictionary.symbols):
        if dictionary.indices[symbol] != number:
            while symbol in taken:
                symbol += "'"
            taken.add(symbol)
        symbols.append(symbol)
    return symbols


def build_spec(
    model: nn.Module,
    source: Dictionary,
    target: Dictionary,
    origin: str,
    lengths: Sequence[int],
):
    """A ``ctranslate2.specs.TransformerSpec`` that computes the same function.

    Args:
        model: an SRP model or fairseq's Transformer, see :func:`check_exportable`.
        origin: option and file of the model, for messages.
        lengths: most tokens of a source and a target, with end of sentence.

    Returns:
        The validated specification in float32; it shares no memory with the model.
    """
    specs = require_ctranslate2(origin).specs
    spec = SpecBuilder(specs, model, origin, lengths).spec
    spec.register_source_vocabulary(vocabulary(source))
    spec.register_target_vocabulary(vocabulary(target))
    spec.config.unk_token = target.unk_word
    spec.config.bos_token = target.bos_word
    spec.config.eos_token = target.eos_word
    # fairseq's decoder starts from the end of sentence, and every source ends with it
    spec.config.decoder_start_token = target.eos_word
    spec.config.add_source_eos = True
    for side, length in zip(("source", "target"), lengths):
        spec.config.add_attribute(f"max_{side}_positions", length)
    spec.validate()
    return spec
