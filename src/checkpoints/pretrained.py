"""Starting from a checkpoint: an SRP model's or a plain fairseq Transformer's."""

import argparse
import logging
from typing import Any, Dict, Iterable, Optional, Tuple

import torch
from fairseq.models import ARCH_MODEL_NAME_REGISTRY
from torch import Tensor, nn

from ..adapters import AdapterError, adapted_layers
from ..connectivity.groups import channel_groups, shrinking_groups
from ..errors import UserError
from ..models.srp_config import SRPConfig
from ..modules.layer_norm import WeightedLayerNorm
from . import dictionary_record
from .vocabulary_record import describe_record
from .zeros import fuse_adapters

logger = logging.getLogger(__name__)

# Options that decide which weights there are or what they compute.
STRUCTURE = (
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_normalize_before",
    "encoder_learned_pos",
    "decoder_embed_dim",
    "decoder_ffn_embed_dim",
    "decoder_layers",
    "decoder_attention_heads",
    "decoder_normalize_before",
    "decoder_learned_pos",
    "share_decoder_input_output_embed",
    "share_all_embeddings",
    "no_token_positional_embeddings",
    "layernorm_embedding",
    "no_scale_embedding",
    "no_decoder_final_norm",
    "activation_fn",
    "max_source_positions",
    "max_target_positions",
)


def read_model_config(state: Dict[str, Any]) -> SRPConfig:
    """The model options of a checkpoint, whatever fairseq model wrote it."""
    from fairseq.models.transformer.transformer_legacy import base_architecture

    model = state["cfg"]["model"]
    if not isinstance(model, argparse.Namespace) and "encoder" not in model:
        model = argparse.Namespace(**model)
    if isinstance(model, argparse.Namespace):
        model = argparse.Namespace(**vars(model))
        base_architecture(model)
    config = SRPConfig.from_namespace(model)
    # as fairseq does when it builds the model, not always where the options are saved
    config.share_decoder_input_output_embed |= config.share_all_embeddings
    return config


def srp_arguments(state: Dict[str, Any]) -> argparse.Namespace:
    """Arguments that rebuild a checkpoint's model as an SRP model."""
    arguments = argparse.Namespace(arch="srp", _name="srp")
    config = read_model_config(state)
    for name in (*STRUCTURE, "weighted_layernorm"):
        setattr(arguments, name, getattr(config, name))
    return arguments


def model_kind(model) -> Optional[str]:
    """The registered model that a checkpoint's options are of, None for very old ones."""
    values = vars(model) if isinstance(model, argparse.Namespace) else model
    return ARCH_MODEL_NAME_REGISTRY.get(values.get("arch"), values.get("_name"))


def teacher_arguments(state: Dict[str, Any]):
    """What rebuilds a checkpoint's model to distil from, whatever model it is.

    Transformers come back as SRP models, which give attention maps.
    """
    model = state["cfg"]["model"]
    known = model_kind(model) in (None, "srp", "transformer")
    return srp_arguments(state) if known else model


def adaptable_arguments(model):
    """What rebuilds a checkpoint's model with layers that take adapters.

    A model of fairseq's ``transformer`` comes back as an SRP model, with its dropout.

    Args:
        model: the model's options in the checkpoint.
    """
    if model_kind(model) not in (None, "transformer"):
        return model
    state = {"cfg": {"model": model}}
    arguments, config = srp_arguments(state), read_model_config(state)
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        setattr(arguments, name, getattr(config, name))
    return arguments


def inherit_layernorm(arguments: argparse.Namespace, state, path: str) -> None:
    """Use the layer normalization that a cut checkpoint was cut with.

    An uncut one computes the same with either, so the command line decides.
    """
    config, weights = read_model_config(state), state["model"]
    asked = bool(getattr(arguments, "weighted_layernorm", False))
    cut = any(
        weights[f"{side}.embed_tokens.weight"].shape[1] < getattr(config, f"{side}_embed_dim")
        for side in ("encoder", "decoder")
    )
    arguments.weighted_layernorm = _weighted(asked, config, cut, path)


def adopt_layernorm(model: nn.Module, arguments, cfg: Optional[Dict[str, Any]], path: str):
    """The same for a model that has the checkpoint's weights and widths by now.

    Args:
        arguments: the model's options, which its own checkpoints will hold.
        cfg: of the checkpoint's run, None if unknown.
    """
    if cfg is None:
        return
    groups = channel_groups(model).values()
    pruned = any(g.gated or g.width < g.original_width for g in groups)
    asked = bool(model.cfg.weighted_layernorm)
    weighted = _weighted(asked, read_model_config({"cfg": cfg}), pruned, path)
    arguments.weighted_layernorm = weighted
    set_layernorm(model, weighted)


def set_layernorm(model: nn.Module, weighted: bool) -> None:
    """Let all layer normalizations of a model be weighted, or none."""
    model.cfg.weighted_layernorm = weighted
    for module in model.modules():
        if isinstance(module, WeightedLayerNorm):
            module.weighted = weighted


def _weighted(asked: bool, config: SRPConfig, pruned: bool, path: str) -> bool:
    if not pruned:
        return asked or config.weighted_layernorm
    if asked and not config.weighted_layernorm:
        logger.warning(
            f"--weighted-layernorm: {path} was cut without it and would compute "
            "something else with it; it stays off"
        )
    return config.weighted_layernorm


def load_weights(model: nn.Module, state: Dict[str, Any], origin: str, cfg=None) -> None:
    """Give a model the weights of a checkpoint, all of them.

    Args:
        origin: option and file of the checkpoint, for messages.
        cfg: the model's options, which take over widths.

    Raises:
        UserError: they don't fit.
    """
    try:
        model.load_state_dict(state["model"], strict=True, model_cfg=cfg)
    except (RuntimeError, AdapterError) as error:
        raise UserError(
            f"{origin}: its weights don't fit ({' '.join(str(error).split())[:300]})"
        ) from None


def load_pretrained(model: nn.Module, cfg, state: Dict[str, Any], path: str) -> None:
    """Give a model that was built from the command line what --pretrained-model holds.

    Adapters of the checkpoint are fused with its weights.

    Args:
        cfg: the model's options, which take over widths.

    Raises:
        UserError: the checkpoint is of another model, of a stage under way, or of a
            training that diverged.
    """
    origin = f"--pretrained-model {path}"
    check_structure(model, state, path)
    check_finite(state["model"].items(), origin)
    load_weights(model, state, origin, cfg)
    check_not_shrinking(model, origin)
    history = describe_record(state)
    if history:
        logger.info(f"{path}: {history}")
    if adapted_layers(model):
        logger.info(f"{path}: its adapters are fused with its weights")
        fuse_adapters(model, origin).requires_grad_(True)


def check_not_shrinking(model: nn.Module, origin: str) -> None:
    """Refuse the model of a pruning stage that is under way.

    Args:
        origin: option and file of the checkpoint, for messages.

    Raises:
        UserError: names a group whose channels are shrinking.
    """
    shrinking = shrinking_groups(model)
    if shrinking:
        raise UserError(
            f"{origin}: a pruning stage is under way, channels of {shrinking[0]} are shrinking; "
            "let it come to its end"
        )


def check_finite(weights: Iterable[Tuple[str, Tensor]], origin: str) -> None:
    """Refuse weights that hold NaN or infinity, with which every score is NaN.

    Args:
        weights: with their names.
        origin: option and file of the checkpoint, for messages.

    Raises:
        UserError: names the first weight that holds NaN or infinity.
    """
    for name, value in weights:
        if not torch.isfinite(value).all():
            raise UserError(
                f"{origin}: {name} holds NaN or infinite numbers; its training diverged, use "
                "an earlier checkpoint"
            )


def check_structure(model, state: Dict[str, Any], path: str) -> None:
    """Compare a model built from the command line with a checkpoint to load.

    Raises:
        UserError: another kind of model; or names all options that differ, so that one
            more try is enough.
    """
    config, different = read_model_config(state), []
    # an LSTM has some of these options, and the defaults of the others would be named
    if not any(name.startswith("encoder.layers.0.self_attn.") for name in state["model"]):
        raise _other_kind(f"--pretrained-model {path}")
    for name in STRUCTURE:
        in_model, in_checkpoint = getattr(model.cfg, name), getattr(config, name)
        if str(in_model) != str(in_checkpoint):
            option = f"--{name.replace('_', '-')}"
            if isinstance(in_checkpoint, bool):
                different.append(option if in_checkpoint else f"no {option}")
            else:
                different.append(f"{option} {in_checkpoint} (not {in_model})")
    if different:
        raise UserError(
            f"--pretrained-model {path}: its model has {', '.join(different)}; give these, "
            "or leave --arch and dimensions out"
        )


def check_dimensions(model, cfg: Optional[Dict[str, Any]], path: str, other: str) -> None:
    """Compare a model with the checkpoint that it is to go on from.

    Fewer layers and smaller widths would load, as those of a cut model, and what has no
    weights of its own, as another activation.

    Args:
        cfg: of the run's checkpoint, None if unknown.
        other: what to give in place of this checkpoint.

    Raises:
        UserError: names the first option that differs.
    """
    if cfg is None:
        return
    config = read_model_config({"cfg": cfg})
    for name in STRUCTURE:
        if name.endswith("_positions"):
            continue
        in_model, in_checkpoint = getattr(model.cfg, name), getattr(config, name)
        if str(in_model) != str(in_checkpoint):
            option = name.replace("_", "-")
            raise UserError(
                f"--{option} {in_model}: the run of checkpoint {path} has {in_checkpoint}; give "
                f"that, or {other}"
            )


def check_dictionaries(state: Dict[str, Any], task, origin: str) -> None:
    """Compare a checkpoint's embeddings with a task's dictionaries, and its languages.

    Args:
        origin: option and file of the checkpoint, for messages.

    Raises:
        UserError: another kind of model, other dictionaries, or the other direction.
    """
    dictionary_record.check_direction(state, task, origin)
    dictionaries = task.source_dictionary, task.target_dictionary
    for side, dictionary in zip(("encoder", "decoder"), dictionaries):
        table = state["model"].get(f"{side}.embed_tokens.weight")
        if table is None:
            raise _other_kind(origin)
        if len(table) != len(dictionary):
            language = "source" if side == "encoder" else "target"
            raise UserError(
                f"{origin}: its {language} dictionary has {len(table)} types, the data's has "
                f"{len(dictionary)}; use the data it was trained on (or preprocess yours "
                "with its dictionaries)"
            )
    if read_model_config(state).share_all_embeddings and dictionaries[0] != dictionaries[1]:
        raise UserError(
            f"{origin}: has one dictionary for both sides (--share-all-embeddings), the data "
            "has two; use the data it was trained on (or preprocess yours with its dictionary "
            "and --joined-dictionary)"
        )
    dictionary_record.check_digests(state, task, origin)


def _other_kind(origin: str) -> UserError:
    return UserError(f"{origin}: is no SRP model or fairseq Transformer with encoder and decoder")
