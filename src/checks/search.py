"""Options of fairseq's search that are refused because they would end in tracebacks."""

import argparse
import difflib
import math
from typing import Any, Dict, Optional, Set

from fairseq import scoring
from fairseq.dataclass.configs import GenerationConfig
from fairseq.models import ARCH_MODEL_REGISTRY
from omegaconf import DictConfig

from ..checkpoint_utils import load_checkpoint
from ..errors import UserError
from .values import (
    SEED,
    AtLeast,
    Must,
    Needs,
    Options,
    Refused,
    Unused,
    check,
    spell,
    undoes,
)

_NAMES = GenerationConfig.__dataclass_fields__
# Options of the search that fairseq's translation parses and leaves aside.
_OF_REFINING = ("print_step", "retain_iter_history", "decoding_format")
_OF_REFINING += tuple(name for name in _NAMES if name.startswith("iter_decode_"))
_OF_SPEECH = (*(name for name in _NAMES if name.endswith("_mt")), "eos_token")

SEARCH = (
    AtLeast(1, "beam", "nbest", "batch_size", "max_tokens", "required_batch_size_multiple"),
    AtLeast(0, "num_workers"),
    Must(("lenpen", "unkpen", "max_len_a"), math.isfinite) | "must be a finite number",
    SEED,
    Unused(*_OF_REFINING)
    | "is for models that refine a whole translation step by step; leave it out",
    Unused(*_OF_SPEECH) | "is for models of speech; leave it out",
    Needs(("sampling_topk", "sampling_topp"), "sampling") | "needs --sampling; leave it out",
    Needs("diverse_beam_strength", lambda o: o.diverse_beam_groups > 0)
    | "needs --diverse-beam-groups; leave it out",
    Needs("retain_dropout_modules", "retain_dropout", bare=True)
    | "needs --retain-dropout; leave it out",
    Must("temperature", lambda temperature: 0 < temperature < math.inf) | "must be above 0",
    Refused("max_len_b", lambda o: o.max_len_a <= 0 and o.max_len_b < max(o.min_len, 1))
    | "leaves no room for the {o.min_len} tokens of --min-len; raise it, or give --max-len-a",
    Needs("sampling", lambda o: o.nbest == o.beam) | "needs --nbest {o.beam}, as --beam is",
    Needs("lm_weight", lambda o: o.lm_path is not None) | "needs --lm-path",
    Refused("diverse_beam_groups", lambda o: o.beam % max(o.diverse_beam_groups, 1))
    | "must divide --beam, which is {o.beam}",
    Refused("diverse_beam_groups", lambda o: o.diverse_beam_groups > 0 and o.fairseq_search)
    | "fairseq's own search takes a sentence's number for its place in the batch; leave "
    "--fairseq-search out",
    Unused("constraints", bare=True) | "binarized data hold none; give them to fairseq-interactive",
    # it takes the alignment for one number a token, which its search does not give
    Needs("replace_unk", lambda o: o.engine == "ctranslate2", bare=True)
    | "fairseq's own code fails at the first unknown word that a model writes; leave it out, or "
    "translate with --engine ctranslate2",
    Must("post_process", undoes)
    | "is unknown; give subword_nmt (--remove-bpe), sentencepiece or another one of fairseq's",
)
# ``types`` are those of the target dictionary.
TASK = (
    Needs(("prefix_size", "score_reference"), "has_target", bare=True)
    | "--gen-subset {o.gen_subset} has no target side; leave it out",
    Refused("sampling_topk", lambda o: o.sampling_topk > o.types)
    | "the target dictionary has {o.types} types; give at most as many",
)


def check_strategies(options: Options) -> None:
    """Refuse several ways to search at once."""
    strategies = ("sampling", "diverse_beam_groups", "match_source_len", "diversity_rate")
    asked = [spell(name) for name in strategies if getattr(options, name) > 0]
    if len(asked) > 1:
        raise UserError(f"{' '.join(asked)}: exclude each other; give one of them")


def check_overrides(overrides: Dict[str, Any], cfg: DictConfig, path: str) -> None:
    """Refuse names that no option of a checkpoint has; fairseq would ignore them.

    Args:
        cfg: the options that the checkpoint was made with.
        path: its file, for messages.
    """
    known = _option_names(cfg)
    for name, value in overrides.items():
        if isinstance(value, dict) and isinstance(cfg.get(name), DictConfig):
            check_overrides(value, cfg[name], path)
        elif name not in known:
            near = difflib.get_close_matches(str(name), known)
            valid = f"similar names are {', '.join(near)}" if near else "leave it out"
            raise UserError(f"--model-overrides {name}: {path} has no such option; {valid}")


def _option_names(cfg: DictConfig) -> Set[str]:
    """What an override may be called: what fairseq finds in any part of the options."""
    names = set()
    for key in cfg:
        part = cfg[key] if key in cfg else None  # where omegaconf has no value for it
        if not isinstance(part, argparse.Namespace):
            names.add(key)
        if isinstance(part, DictConfig):
            names |= _option_names(part)
        elif isinstance(part, argparse.Namespace):  # of a model, which takes any name
            names |= vars(part).keys()
            model = ARCH_MODEL_REGISTRY.get(getattr(part, "arch", None))
            if model is not None:  # and may have got options since
                parser = argparse.ArgumentParser(add_help=False)
                model.add_args(parser)
                names |= {action.dest for action in parser._actions}
    return names


def check_task(cfg, task) -> None:
    """Refuse options that need something that the data or the dictionaries lack."""
    has_target = task.dataset(cfg.dataset.gen_subset).tgt is not None
    types = len(task.target_dictionary)
    check(TASK, Options(cfg.generation, cfg.dataset, has_target=has_target, types=types))
    for option, build, part in (
        ("--tokenizer", task.build_tokenizer, cfg.tokenizer),
        ("--bpe", task.build_bpe, cfg.bpe),
        ("--scoring", lambda x: scoring.build_scorer(x, task.target_dictionary), cfg.scoring),
    ):
        try:
            build(part)
        except Exception as error:  # whatever their libraries raise
            name = getattr(part, "_name", part)
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{option} {name}: can't be set up ({reason}); give the options and files "
                "that it needs"
            ) from None


def read_language_model(cfg, task, trust: bool) -> Optional[Dict[str, Any]]:
    """The checkpoint of ``--lm-path``: a language model of the target's dictionary.

    Returns:
        Its state; None without the option.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    path = cfg.generation.lm_path
    if path is None:
        return None
    state = load_checkpoint(path, "--lm-path", trust)
    if any(name.startswith("encoder.") for name in state["model"]):
        raise UserError(f"--lm-path {path}: is a translation model; give a language model")
    table = state["model"].get("decoder.embed_tokens.weight")
    types = len(task.target_dictionary)
    if table is not None and len(table) != types:
        raise UserError(
            f"--lm-path {path}: has {len(table)} types, the target dictionary {types}; "
            "train it with the data's"
        )
    return state
