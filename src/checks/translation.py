"""What generate.py refuses before any work: options, data, checkpoint, lengths."""

import argparse
import os
from typing import Any, Dict, List

import numpy as np
import torch
from fairseq import tasks, utils
from fairseq.models import ARCH_CONFIG_REGISTRY

from ..checkpoints.pretrained import (
    STRUCTURE,
    check_dictionaries,
    inherit_layernorm,
    read_model_config,
)
from ..errors import UserError
from ..files import check_output_file, check_output_folder
from . import data as data_checks
from . import engine as engine_checks
from . import search as search_checks
from .training import check_precision
from .values import (
    AtLeast,
    IsFile,
    Must,
    Needs,
    Options,
    Refused,
    Unused,
    check,
    model_overrides,
)

# What an --arch stands for; the README's commands give no other option of the model.
DIMENSIONS = tuple(
    f"{side}_{name}"
    for side in ("encoder", "decoder")
    for name in ("embed_dim", "ffn_embed_dim", "layers", "attention_heads")
)
# The task has options of the same names; on the command line they are the task's.
_OF_THE_TASK = ("max_source_positions", "max_target_positions")


# ``tokenizer`` and ``has_gpu`` say what the rest of the configuration does.
OPTIONS = (
    Refused("path", lambda o: not o.path, bare=True)
    | "missing; give the checkpoint to translate with",
    Needs("report", lambda o: len(utils.split_paths(o.path)) == 1, bare=True)
    | "is about one model; --path names several",
    Needs("report", lambda o: not o.score_reference, bare=True)
    | "is about translations, of which --score-reference makes none; leave one of them out",
    IsFile("reference") | "no such file",
    AtLeast(1, "flops_source_length", "flops_target_length"),
    Needs(("flops_source_length", "flops_target_length"), "report")
    | "needs --report, which has the FLOPs",
    Must("gen_subset", lambda name: "," not in name)
    | "translate one set after the other, each with its own BLEU",
    Needs("tokenized_bleu", lambda o: o.tokenizer is None)
    | "--tokenizer undoes the tokens; leave it out",
    *search_checks.SEARCH,
    Must(("distributed_world_size", "num_shards"), lambda number: number == 1)
    | "BLEU is of the whole test set; translate shards with fairseq-generate "
    "--distributed-world-size N --distributed-rank R",
    Must(("checkpoint_suffix", "checkpoint_shard_count"), lambda value: value in ("", 1), bare=True)
    | "--path names whole checkpoints; leave it out",
    # which fairseq-generate would leave aside
    Unused("bf16", "amp") | "is for training; translate with --cpu-bf16 on a CPU, --fp16 on a GPU",
    Needs("fp16", "has_gpu") | "needs a GPU; on a CPU leave it out",
    Needs("sparse_inference", lambda o: not o.cpu_bf16)
    | "multiplies in float32 in this plug-in's own search; leave it or --cpu-bf16 out",
    Needs("sparse_inference", lambda o: not o.fairseq_search)
    | "multiplies in float32 in this plug-in's own search; leave it or --fairseq-search out",
    Needs("sparse_inference", lambda o: o.engine == "pytorch")
    | "multiplies in float32 in this plug-in's own search; leave it or --engine {o.engine} out",
)


def check_translation_options(args, cfg) -> None:
    """Refuse what the command line alone rules out."""
    model_overrides(cfg.common_eval.model_overrides)
    parts = cfg.generation, cfg.dataset, cfg.common, cfg.common_eval, cfg.checkpoint
    has_gpu = torch.cuda.is_available() and not cfg.common.cpu
    facts = {"tokenizer": cfg.tokenizer, "has_gpu": has_gpu}
    options = Options(*parts, cfg.distributed_training, cfg.task, args, **facts)
    check(OPTIONS, options)
    search_checks.check_strategies(options)
    if args.report:
        paths = utils.split_paths(cfg.common_eval.path)
        check_output_file(args.report, *paths, option="--report")
        if args.reference:
            check_output_file(args.report, args.reference, option="--report", named="--reference")
    if cfg.common_eval.results_path is not None:
        check_output_folder(cfg.common_eval.results_path, "--results-path")
    check_precision(cfg.task)
    engine_checks.check_engine_options(args, cfg)
    for folder in utils.split_paths(cfg.task.data or ""):
        if not os.path.isdir(folder):
            raise UserError(f"data {folder}: there is no such folder of binarized data")


def set_up_task(cfg):
    """The task with its dictionaries and the set to translate.

    Raises:
        UserError: the data's folder lacks a file, or one of them is damaged.
    """
    task = data_checks.set_up(lambda: tasks.setup_task(cfg.task), cfg.task.data)
    try:
        data_checks.load_set(task, cfg.dataset.gen_subset, "--gen-subset")
    except FileNotFoundError as error:
        raise UserError(f"data {cfg.task.data}: {error}; run fairseq-preprocess") from None
    return task


def truncate_for_models(cfg, states: List[Dict[str, Any]]) -> None:
    """Let ``--truncate-source`` cut at the models' limit where the task's is larger.

    Args:
        states: of the checkpoints to translate with.
    """
    if getattr(cfg.task, "truncate_source", False):
        limits = [read_model_config(state).max_source_positions for state in states]
        cfg.task.max_source_positions = min(cfg.task.max_source_positions, *limits)


def check_checkpoint(args, task, state: Dict[str, Any], path: str) -> None:
    """Compare a checkpoint with the data and with what --arch promises.

    Raises:
        UserError: names the direction, or the first dictionary or option, that differs.
    """
    check_dictionaries(state, task, f"--path {path}")
    if args.weighted_layernorm:
        inherit_layernorm(argparse.Namespace(weighted_layernorm=True), state, path)
    if not hasattr(args, "arch"):
        return
    config, usual = read_model_config(state), argparse.Namespace()
    ARCH_CONFIG_REGISTRY[args.arch](usual)
    for name in STRUCTURE:
        asked, in_checkpoint = getattr(args, name, None), getattr(config, name)
        given = asked != getattr(usual, name, None)  # an option beside --arch
        if name in _OF_THE_TASK or not (given or name in DIMENSIONS):
            continue
        if str(asked) != str(in_checkpoint):
            option = name.replace("_", "-")
            raise UserError(
                f"--arch {args.arch}: has --{option} {asked}, {path} has {in_checkpoint}; give "
                "the --arch it was trained with, or leave --arch out"
            )


def check_lengths(cfg, task, models) -> List[int]:
    """Find sentences that are too long for the model.

    Returns:
        Numbers of the sentences that will be left out, as the user allowed.

    Raises:
        UserError: names the first such sentence, the limit and what to do.
    """
    subset = cfg.dataset.gen_subset
    dataset = task.dataset(subset)
    limits = utils.resolve_max_positions(
        task.max_positions(), *[model.max_positions() for model in models]
    )
    kept, skipped = dataset.filter_indices_by_size(np.arange(len(dataset)), limits)
    if skipped and not cfg.dataset.skip_invalid_size_inputs_valid_test:
        first = skipped[0]
        lengths = dataset.size(first)
        side = 0 if lengths[0] > limits[0] else 1
        raise UserError(
            f"--gen-subset {subset}: the {('source', 'target')[side]} of sentence {first} "
            f"(line {first + 1}) has {lengths[side]} tokens, the limit is {limits[side]}; "
            "shorten it, or leave such sentences out (here "
            f"{len(skipped)}) with --skip-invalid-size-inputs-valid-test"
        )
    if not len(kept):
        raise UserError(f"--gen-subset {subset}: all its sentences are too long")
    limit, min_len = min(m.max_decoder_positions() for m in models) - 1, cfg.generation.min_len
    if min_len > limit:
        raise UserError(f"--min-len {min_len}: the model can write {limit} tokens")
    max_tokens = cfg.dataset.max_tokens
    longest = max(kept.tolist(), key=dataset.num_tokens)
    if max_tokens and dataset.num_tokens(longest) > max_tokens:
        raise UserError(
            f"--max-tokens {max_tokens}: sentence {longest} (line {longest + 1}) has "
            f"{dataset.num_tokens(longest)} tokens; raise it"
        )
    return skipped
