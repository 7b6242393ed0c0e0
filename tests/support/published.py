"""Imitations of checkpoints as others have trained them.

Random weights of a few channels, in the form and with the options of published ones.
"""

import argparse
import shutil
from typing import NamedTuple

import torch
from fairseq import models
from fairseq.data import Dictionary
from omegaconf import OmegaConf

DIMENSIONS = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (
        *(("embed_dim", 16), ("ffn_embed_dim", 24), ("layers", 2), ("attention_heads", 2)),
    )
}
LEARNED = {"encoder_learned_pos": True, "decoder_learned_pos": True}
POSITIONS = {"max_source_positions": 64, "max_target_positions": 64}
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
DEEP = {"encoder_layers": 12, "decoder_layers": 12}
JOINT = {"share_all_embeddings": True, "share_decoder_input_output_embed": True}


# -- forms of files -------------------------------------------------------------------------


def as_args(state, options, task):
    """fairseq 0.6: options in one Namespace, weights of attention in one matrix."""
    flat = {**vars(options), **task, "label_smoothing": 0.1, "criterion": "cross_entropy"}
    state["args"] = argparse.Namespace(**flat)
    weights = state["model"]
    for name in [n for n in weights if n.endswith("q_proj.weight")]:
        attention = name.removesuffix("q_proj.weight")
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{attention}{part}_proj.{kind}") for part in "qkv"]
            weights[f"{attention}in_proj_{kind}"] = torch.cat(parts)
    norms = {
        "encoder": ("self_attn_layer_norm", "final_layer_norm"),
        "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    }
    for name in list(weights):
        side, part, *_ = name.split(".")
        for number, norm in enumerate(norms[side]):
            if part == "layers" and f".{norm}." in name:
                weights[name.replace(norm, f"layer_norms.{number}")] = weights.pop(name)
    weights["decoder.embed_out"] = weights.pop("decoder.output_projection.weight")
    for side in ("encoder", "decoder"):
        weights[f"{side}.version"] = torch.tensor([3.0])
        weights[f"{side}.embed_positions._float_tensor"] = torch.zeros(1)
    del state["extra_state"]["train_iterator"]
    state["extra_state"]["epoch"] = 7


def as_dict(state, options, task):
    """fairseq 0.12: options in containers, the model's in a Namespace."""
    state["cfg"] = {
        "_name": None,
        "model": options,
        "task": {"_name": "translation", **task},
        "criterion": {"_name": "label_smoothed_cross_entropy", "label_smoothing": 0.1},
    }


def as_dict_config(state, options, task):
    """fairseq's main at times, and what was saved with its structured options."""
    as_dict(state, options, task)
    model = OmegaConf.create({**vars(options), "_name": "transformer"})
    state["cfg"] = OmegaConf.create({**state["cfg"], "model": model})


def as_average(state, options, task):
    """fairseq's script: the first input's state with other weights."""
    as_dict(state, options, task)
    state["last_optimizer_state"] = None
    state["model"] = {name: (w + w) / 2 for name, w in state["model"].items()}


def as_half(state, options, task):
    as_dict(state, options, task)
    state["model"] = {name: weight.half() for name, weight in state["model"].items()}


def as_multilingual(state, options, task):
    """M2M-100 and NLLB: one dictionary with tags of languages as types, LayerDrop."""
    as_dict(state, options, task)
    task = {"_name": "translation_multi_simple_epoch", "langs": ["de", "en"], "lang_pairs": "de-en"}
    state["cfg"]["task"] = {**task, "source_lang": None, "target_lang": None}


class Case(NamedTuple):
    form: object
    arch: str = "transformer"
    options: dict = {}
    types: tuple = ()
    old_format: bool = False


TAGS = ("__de__", "__en__", "madeupword0000")
CASES = {
    "0.6": Case(as_args, old_format=True),
    "cfg of dicts": Case(as_dict),
    "cfg of omegaconf": Case(as_dict_config),
    "learned positions": Case(as_dict, options={**LEARNED, **POSITIONS}),
    "layernorm of embeddings": Case(as_dict, options={"layernorm_embedding": True}),
    "pre-norm": Case(as_dict, options=PRE_NORM),
    "deep": Case(as_dict, options={**DEEP, **PRE_NORM}),
    "half precision": Case(as_half),
    "average": Case(as_average, options={"share_decoder_input_output_embed": True}),
    "joint dictionary": Case(as_dict, options=JOINT),
    "M2M": Case(
        as_multilingual,
        "transformer_wmt_en_de_big",
        {**PRE_NORM, **JOINT, "encoder_layerdrop": 0.05, "decoder_layerdrop": 0.05},
        TAGS,
    ),
    "mBART": Case(
        as_dict,
        "mbart_large",
        {**POSITIONS, "task": "translation_from_pretrained_bart"},
        ("[de_DE]", "[en_XX]", "<mask>"),
    ),
}


class Task:
    def __init__(self, folder):
        self.source_dictionary = Dictionary.load(f"{folder}/dict.de.txt")
        self.target_dictionary = Dictionary.load(f"{folder}/dict.en.txt")


def write_data(case, data, folder):
    """The corpus with the dictionaries that a case has."""
    shutil.copytree(data, folder)
    if case.options.get("share_all_embeddings") or case.types:
        source = folder / "dict.de.txt"
        with open(source, "a") as stream:
            stream.writelines(f"{name} 1\n" for name in case.types)
        shutil.copy(source, folder / "dict.en.txt")
    return str(folder)


def write_checkpoint(case, data, path):
    """The checkpoint's file, and its model in fairseq's own class."""
    torch.manual_seed(1)
    options = argparse.Namespace(arch=case.arch, **{**DIMENSIONS, **case.options})
    model = models.build_model(options, Task(data)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
            if case.form is as_half:
                parameter.copy_(parameter.half())
    history = {"num_updates": 900, "optimizer_name": "FairseqAdam", "lr_scheduler_state": {}}
    state = {
        "args": None,
        "model": dict(model.state_dict()),
        "optimizer_history": [{**history, "criterion_name": "CrossEntropyCriterion"}],
        "extra_state": {"train_iterator": {"epoch": 7, "iterations_in_epoch": 0}, "val_loss": 2.0},
        "last_optimizer_state": {},
    }
    task = {"data": data, "source_lang": "de", "target_lang": "en"}
    case.form(state, options, task)
    torch.save(state, path, _use_new_zipfile_serialization=not case.old_format)
    return model
