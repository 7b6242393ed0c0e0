"""Options of fairseq's search that are refused because they would end in tracebacks."""

import argparse
import difflib
import math
from typing import Any, Dict, Optional, Set

from fairseq import scoring
from fairseq.data.data_utils import post_process
from fairseq.dataclass.configs import GenerationConfig
from fairseq.models import ARCH_MODEL_REGISTRY
from omegaconf import DictConfig

from ..checkpoint_utils import load_checkpoint
from ..errors import UserError
from .values import check_seed, model_overrides

# Options of the search that fairseq's translation parses and leaves aside.
_OF_REFINING = (
    *("print_step", "retain_iter_history", "decoding_format"),
    *(n for n in GenerationConfig.__dataclass_fields__ if n.startswith("iter_decode_")),
)
_OF_SPEECH = (
    *(n for n in GenerationConfig.__dataclass_fields__ if n.endswith("_mt")),
    "eos_token",
)


def check_overrides(overrides: Dict[str, Any], cfg: DictConfig, path: str) -> None:
    """Refuse names that no option of a checkpoint has; fairseq would ignore them.

    Args:
        cfg: the options that the checkpoint was made with.
        path: its file, for messages.

    Raises:
        UserError: names the option, and others with similar names.
    """
    known = _option_names(cfg)
    for name, value in overrides.items():
        if isinstance(value, dict) and isinstance(_part(cfg, name), DictConfig):
            check_overrides(value, cfg[name], path)
        elif name not in known:
            near = difflib.get_close_matches(str(name), known)
            valid = f"similar names are {', '.join(near)}" if near else "leave it out"
            raise UserError(f"--model-overrides {name}: {path} has no such option; {valid}")


def _part(cfg: DictConfig, name: str) -> Any:
    """The value of a name; None also where omegaconf has no value for it."""
    return cfg[name] if name in cfg else None


def _option_names(cfg: DictConfig) -> Set[str]:
    """What an override may be called: what fairseq finds in any part of the options."""
    names = set()
    for key in cfg:
        part = _part(cfg, key)
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


def check_search(cfg) -> None:
    """Refuse what the command line alone rules out.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    search = cfg.generation
    model_overrides(cfg.common_eval.model_overrides)
    for option, value in (
        ("--beam", search.beam),
        ("--nbest", search.nbest),
        ("--batch-size", cfg.dataset.batch_size),
        ("--max-tokens", cfg.dataset.max_tokens),
        ("--required-batch-size-multiple", cfg.dataset.required_batch_size_multiple),
    ):
        if value is not None and value < 1:
            raise UserError(f"{option} {value}: must be at least 1")
    workers = cfg.dataset.num_workers
    if workers < 0:
        raise UserError(f"--num-workers {workers}: must be at least 0")
    for option, value in (
        ("--lenpen", search.lenpen),
        ("--unkpen", search.unkpen),
        ("--max-len-a", search.max_len_a),
    ):
        if not math.isfinite(value):
            raise UserError(f"{option} {value:g}: must be a finite number")
    check_seed(cfg.common.seed)
    _check_ignored(search)
    if not (search.temperature > 0 and math.isfinite(search.temperature)):
        raise UserError(f"--temperature {search.temperature:g}: must be above 0")
    if search.max_len_a <= 0 and search.max_len_b < max(search.min_len, 1):
        raise UserError(
            f"--max-len-b {search.max_len_b}: leaves no room for the {search.min_len} "
            "tokens of --min-len; raise it, or give --max-len-a"
        )
    if search.sampling and search.nbest != search.beam:
        raise UserError(f"--sampling: needs --nbest {search.beam}, as --beam is")
    strategies = {
        "--sampling": search.sampling,
        "--diverse-beam-groups": search.diverse_beam_groups > 0,
        "--match-source-len": search.match_source_len,
        "--diversity-rate": search.diversity_rate > 0,
    }
    asked = [option for option, given in strategies.items() if given]
    if len(asked) > 1:
        raise UserError(f"{' '.join(asked)}: exclude each other; give one of them")
    if search.lm_weight and search.lm_path is None:
        raise UserError(f"--lm-weight {search.lm_weight:g}: needs --lm-path")
    groups = search.diverse_beam_groups
    if groups > 0 and search.beam % groups:
        raise UserError(
            f"--diverse-beam-groups {groups}: must divide --beam, which is {search.beam}"
        )
    if groups > 0 and getattr(cfg.task, "fairseq_search", False):
        raise UserError(
            f"--diverse-beam-groups {groups}: fairseq's own search takes a sentence's number "
            "for its place in the batch; leave --fairseq-search out"
        )
    if search.constraints:
        raise UserError("--constraints: binarized data hold none; give them to fairseq-interactive")
    if search.replace_unk is not None:
        # it takes the alignment for one number a token, which its search does not give
        raise UserError(
            "--replace-unk: fairseq's own code fails at the first unknown word that a "
            "model writes; leave it out"
        )
    symbol = cfg.common_eval.post_process
    try:
        post_process("", symbol)
    except NotImplementedError:
        raise UserError(
            f"--post-process {symbol}: is unknown; give subword_nmt (--remove-bpe), "
            "sentencepiece or another one of fairseq's"
        ) from None


def _check_ignored(search: GenerationConfig) -> None:
    """Refuse options that no translation with these models, or with the others, heeds.

    Raises:
        UserError: names the option, its value and what to do.
    """
    for names, reason in (
        (_OF_REFINING, "is for models that refine a whole translation step by step"),
        (_OF_SPEECH, "is for models of speech"),
        (("sampling_topk", "sampling_topp"), not search.sampling and "needs --sampling"),
        (
            ("diverse_beam_strength",),
            search.diverse_beam_groups <= 0 and "needs --diverse-beam-groups",
        ),
        (
            ("retain_dropout_modules",),
            not search.retain_dropout and "needs --retain-dropout",
        ),
    ):
        for name in names:
            value = getattr(search, name)
            if reason and value != GenerationConfig.__dataclass_fields__[name].default:
                option = f"--{name.replace('_', '-')}"
                if name != "retain_dropout_modules" and value is not True:
                    option += f" {value}"
                raise UserError(f"{option}: {reason}; leave it out")


def check_task(cfg, task) -> None:
    """Refuse options that need something that the data or the dictionaries lack.

    Raises:
        UserError: names the option and what to do.
    """
    if task.dataset(cfg.dataset.gen_subset).tgt is None:
        for option, given in (
            ("--prefix-size", cfg.generation.prefix_size > 0),
            ("--score-reference", cfg.generation.score_reference),
        ):
            if given:
                raise UserError(
                    f"{option}: --gen-subset {cfg.dataset.gen_subset} has no target side; "
                    "leave it out"
                )
    types = len(task.target_dictionary)
    if cfg.generation.sampling_topk > types:
        raise UserError(
            f"--sampling-topk {cfg.generation.sampling_topk}: the target dictionary has "
            f"{types} types; give at most as many"
        )
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


def check_lengths(cfg, models) -> None:
    """Refuse ``--min-len`` beyond what the models can write.

    Raises:
        UserError: names the limit.
    """
    limit = min(model.max_decoder_positions() for model in models) - 1
    if cfg.generation.min_len > limit:
        raise UserError(f"--min-len {cfg.generation.min_len}: the model can write {limit} tokens")


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
