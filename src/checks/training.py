"""What is refused of the translation task's options before any work."""

import logging
import math
import os

import torch
from fairseq import utils

from ..acceleration.bfloat16 import bfloat16_gain
from ..connectivity.importance import IMPORTANCE, NORMS
from ..connectivity.shrink import SCHEDULES
from ..connectivity.stage import StagePlan
from ..errors import UserError
from ..modules.torch_private import has_avx512_bf16
from ..options import SRPTranslationConfig, cuts_layers, cuts_widths, kept_layers, prunes_channels
from .data import check_subsets
from .fairseq_options import check_not_overwritten, check_parts, check_start
from .speed import check_speed_options
from .validation import check_validation
from .values import model_overrides

logger = logging.getLogger(__name__)

# Options of fairseq's models: trained embeddings to begin with.
EMBEDDING_FILES = ("encoder_embed_path", "decoder_embed_path")


def check_options(cfg: SRPTranslationConfig) -> None:
    """Refuse impossible values of the task's own options.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    rate = cfg.compression_rate
    if not (math.isfinite(rate) and 0 < rate <= 1):
        raise UserError(
            f"--compression-rate {rate:g}: must be in (0, 1], the share of parameters to keep"
        )
    if cfg.decreasing not in SCHEDULES:
        raise UserError(f"--decreasing {cfg.decreasing}: must be one of {', '.join(SCHEDULES)}")
    if cfg.pruning_stage not in (0, 1, 2):
        raise UserError(f"--pruning-stage {cfg.pruning_stage}: must be 0, 1 or 2")
    for name, least in (
        ("pruning_iter", 1),
        ("pruning_period", 1),
        ("warming_up", 0),
        ("scoring_batches", 1),
        ("scoring_tokens", 1),
    ):
        value = getattr(cfg, name)
        if value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    for option, number in kept_layers(cfg).items():
        if number < 1:
            raise UserError(f"{option} {number}: must be at least 1; one layer stays on each side")
        if cfg.pruning_stage == 1:
            raise UserError(
                f"{option} {number}: needs --pruning-stage 0 or 2; stage 1 cuts embeddings alone"
            )
        if not cfg.pretrained_model:
            raise UserError(
                f"{option} {number}: pruning needs --pretrained-model, the checkpoint of the "
                "trained model to prune"
            )
    if cfg.srp and not prunes_channels(cfg):
        raise UserError(
            "--srp: needs a --compression-rate below 1, --speed-up, --keep-encoder-layers or "
            "--keep-decoder-layers"
        )
    if cfg.prune_heads and (not cuts_widths(cfg) or cfg.pruning_stage == 1):
        problem = "--compression-rate below 1" if not cuts_widths(cfg) else "--pruning-stage 0 or 2"
        raise UserError(f"--prune-heads: needs {problem}; only such a stage cuts attention")
    ratio = cfg.embedding_ratio
    if not 1e-3 <= ratio <= 1e3:
        raise UserError(
            f"--embedding-ratio {ratio:g}: must be above 0, from 0.001 to 1000; 1 is no preference"
        )
    if ratio != 1 and (not cuts_widths(cfg) or cfg.pruning_stage == 2):
        problem = "--compression-rate below 1" if not cuts_widths(cfg) else "--pruning-stage 0 or 1"
        raise UserError(
            f"--embedding-ratio {ratio:g}: needs {problem}; only such a stage cuts embeddings"
        )
    if rate < 1 and not cfg.pretrained_model:
        raise UserError(
            f"--compression-rate {rate:g}: pruning needs --pretrained-model, the "
            "checkpoint of the trained model to prune"
        )
    check_speed_options(cfg)
    check_importance_options(cfg)
    check_unused(cfg)
    check_adapter_options(cfg)
    check_sparsity_options(cfg)
    check_precision(cfg)


def check_unused(cfg: SRPTranslationConfig) -> None:
    """Refuse options of a pruning stage where they would do nothing.

    Raises:
        UserError: names the option, its value and what it needs.
    """
    if not cfg.srp and cfg.decreasing != "sa":
        raise UserError(
            f"--decreasing {cfg.decreasing}: needs --srp; without, channels are cut right away"
        )
    if prunes_channels(cfg):
        period = cfg.pruning_period
        if period != 1 and cfg.pruning_iter == 1 and not cfg.srp:
            raise UserError(
                f"--pruning-period {period}: needs --srp or a --pruning-iter above 1; "
                "without, channels are cut right away"
            )
        return
    # --scoring-batches and --scoring-tokens may stand among what several runs share
    for name in (
        *("pruning_stage", "pruning_iter", "pruning_period", "warming_up"),
        *("importance", "importance_norm", "importance_per_example"),
    ):
        value = getattr(cfg, name)
        if str(value) != str(SRPTranslationConfig.__dataclass_fields__[name].default):
            raise UserError(
                f"--{name.replace('_', '-')} {value}: needs a --compression-rate below 1, "
                "--keep-encoder-layers or --keep-decoder-layers; only such a run prunes channels"
            )


def check_sparsity_options(cfg: SRPTranslationConfig) -> None:
    """Refuse impossible combinations with weight-level pruning.

    Raises:
        UserError: names the option, its value and what to do.
    """
    if cfg.sparse_inference:
        raise UserError("--sparse-inference: is for translation; leave it out of training")
    path = cfg.sparsity_config
    if path is None:
        return
    if cfg.release_zeros:
        raise UserError(
            "--release-zeros: --sparsity-config decides which weights are zero; leave one out"
        )
    if not os.path.isfile(path):
        raise UserError(f"--sparsity-config {path}: no such file; give a YAML file")
    if prunes_channels(cfg):
        raise UserError(
            f"--sparsity-config {path}: can't run in a stage that cuts channels; prune "
            "channels first, then weights of the cut model"
        )
    if cfg.adapter is not None:
        raise UserError(
            f"--sparsity-config {path}: would prune what --adapter {cfg.adapter} leaves "
            "frozen; prune first, then adapt"
        )


def check_importance_options(cfg: SRPTranslationConfig) -> None:
    """Refuse unknown criteria, and options that mean nothing to the one that is asked.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    name, norm = str(cfg.importance or "fisher"), str(cfg.importance_norm)
    for option, value, valid in (
        ("--importance", name, IMPORTANCE),
        ("--importance-norm", norm, NORMS),
    ):
        if value not in valid:
            raise UserError(f"{option} {value}: must be one of {', '.join(sorted(valid))}")
    if IMPORTANCE[name].of_layers and not cuts_layers(cfg):
        raise UserError(
            f"--importance {name}: ranks whole layers; give --keep-encoder-layers or "
            "--keep-decoder-layers, or another criterion"
        )
    if cfg.importance_per_example and not IMPORTANCE[name].per_example:
        able = ", ".join(sorted(n for n, c in IMPORTANCE.items() if c.per_example))
        raise UserError(
            f"--importance-per-example: means nothing to --importance {name}, which adds up "
            f"no signed sums of sentences; leave it out or use one of {able}"
        )


def check_adapter_options(cfg: SRPTranslationConfig) -> None:
    """Refuse impossible values of the adapter options.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    if cfg.adapter_path:
        raise UserError(
            "--adapter-path: is for translation; to train on from adapters, give their "
            "checkpoint as --pretrained-model"
        )
    for name in ("rank", "include", "exclude", "block_size", "prototypes"):
        value = getattr(cfg, f"adapter_{name}")
        kinds = ("splopa",) if name in ("block_size", "prototypes") else ("splora", "splopa")
        if value is not None and str(cfg.adapter) not in kinds:
            option = f"--adapter-{name.replace('_', '-')}"
            raise UserError(f"{option} {value}: needs --adapter {' or '.join(kinds)}")
    if cfg.adapter is None:
        return
    if not cfg.pretrained_model:
        raise UserError(
            f"--adapter {cfg.adapter}: needs --pretrained-model, the checkpoint to adapt"
        )
    rank = cfg.adapter_rank
    if rank is not None:
        whole = rank >= 1 and rank % 1 == 0  # inf % 1 is NaN
        if not (whole or (cfg.adapter == "splora" and 0 < rank < 1)):
            raise UserError(
                f"--adapter-rank {rank:g}: must be a whole number of at least 1"
                + (" or a share in (0, 1)" if cfg.adapter == "splora" else "")
            )
    for name in ("block_size", "prototypes"):
        value = getattr(cfg, f"adapter_{name}")
        if value is not None and value < 1:
            option = f"--adapter-{name.replace('_', '-')}"
            raise UserError(f"{option} {value}: must be at least 1")


def check_precision(cfg: SRPTranslationConfig) -> None:
    """Refuse --cpu-bf16 where the processor has no instructions for it.

    Where it has, but gains nothing by them, a warning says so.

    Raises:
        UserError: names the option and the processor.
    """
    if not getattr(cfg, "cpu_bf16", False):
        return
    if not has_avx512_bf16():
        capability = torch.backends.cpu.get_cpu_capability()
        raise UserError(
            f"--cpu-bf16: this processor ({capability}) has no AVX512-BF16 or AMX, "
            "bfloat16 would be slower; leave the option out"
        )
    gain = bfloat16_gain()
    if gain < 1:
        logger.warning(
            f"--cpu-bf16: this processor multiplies bfloat16 matrices at {gain:.2f} times the "
            "speed of float32 ones; it is faster without the option"
        )


def check_sparse_inference(cfg: SRPTranslationConfig, engine: str = "pytorch") -> None:
    """Refuse --sparse-inference together with what it has no part in.

    Raises:
        UserError: names both options.
    """
    if not getattr(cfg, "sparse_inference", False):
        return
    others = {
        "--cpu-bf16": cfg.cpu_bf16,
        "--fairseq-search": cfg.fairseq_search,
        f"--engine {engine}": engine != "pytorch",
    }
    for option, given in others.items():
        if given:
            raise UserError(
                f"--sparse-inference: multiplies in float32 in this plug-in's own search; "
                f"leave it or {option} out"
            )


def check_run(cfg: SRPTranslationConfig, run, plan: StagePlan) -> None:
    """Refuse what the rest of the command line rules out.

    Args:
        run: all options of the run, as fairseq gives them to a model.
        plan: the pruning stage that ``cfg`` asks for.

    Raises:
        UserError: names the option, its value and what to do.
    """
    check_validation(cfg, run)
    check_subsets(cfg, run)
    check_start(run)
    check_not_overwritten(run)
    overrides = getattr(run, "optimizer_overrides", "{}")
    model_overrides(overrides, "--optimizer-overrides", "{'weight_decay': 0.01}")
    for name in EMBEDDING_FILES:
        path = getattr(run, name, None)
        if path and not os.path.isfile(path):
            raise UserError(
                f"--{name.replace('_', '-')} {path}: no such file; give embeddings as text"
            )
    path = getattr(run, "quantization_config_path", None)
    if path:
        raise UserError(
            f"--quantization-config-path {path}: replaces layers during training, which this "
            "plug-in's can't be; leave it out, and quantize with export.py"
        )
    for name in (
        *("dropout", "attention_dropout", "activation_dropout", "relu_dropout"),
        *("encoder_layerdrop", "decoder_layerdrop"),
    ):
        value = getattr(run, name, None) or 0.0
        if not 0 <= value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: must be in [0, 1)")
    frequencies = list(getattr(run, "update_freq", ()))
    if any(frequency < 1 for frequency in frequencies):
        given = ",".join(map(str, frequencies))
        raise UserError(f"--update-freq {given}: must be at least 1 in every epoch")
    for name, least in (
        ("max_tokens", 1),
        ("batch_size", 1),
        ("max_tokens_valid", 1),
        ("batch_size_valid", 1),
        ("required_batch_size_multiple", 1),
        ("log_interval", 1),
        ("save_interval", 1),
        ("validate_interval", 1),
        ("num_workers", 0),
    ):
        value = getattr(run, name, None)
        try:  # fairseq leaves the options of a validation's batches as text
            valid = value is None or int(value) >= least
        except ValueError:
            valid = False
        if not valid:
            option = f"--{name.replace('_', '-')} {value}"
            raise UserError(f"{option}: must be a whole number of at least {least}")
    pattern = getattr(run, "keep_interval_updates_pattern", -1)
    if pattern < 1 and pattern != -1:
        raise UserError(
            f"--keep-interval-updates-pattern {pattern}: must be at least 1, checkpoints of "
            "multiples of it are kept"
        )
    drawn_anew = getattr(run, "update_epoch_batch_itr", False)
    if getattr(run, "update_ordered_indices_seed", False) and not drawn_anew:
        raise UserError(
            "--update-ordered-indices-seed: is of batches that are drawn anew in every epoch; "
            "add --update-epoch-batch-itr True, or leave it out"
        )
    has_gpu = torch.cuda.is_available() and not getattr(run, "cpu", False)
    memory_efficient = ("memory_efficient_fp16", "memory_efficient_bf16")
    for name in memory_efficient:
        if getattr(run, name, False) and getattr(run, "optimizer", None) == "srp_adam":
            option = name.replace("_", "-")
            raise UserError(
                f"--{option}: --optimizer srp_adam has no step in float32 without float32 "
                f"weights; use --optimizer adam, or --{option[-4:]} instead"
            )
    for name in (*memory_efficient, "fp16", "bf16", "amp"):
        if getattr(run, name, False) and not has_gpu:
            raise UserError(
                f"--{name.replace('_', '-')}: needs a GPU; on a CPU leave it out or use --cpu-bf16"
            )
    criterion = getattr(run, "criterion", "srp")
    if cfg.cpu_bf16 and criterion != "srp":
        raise UserError(
            f"--cpu-bf16: --criterion {criterion} trains in float32 all the same; use "
            "--criterion srp"
        )
    if cfg.cpu_bf16 and has_gpu:
        raise UserError("--cpu-bf16: is for CPUs; use --amp or --fp16 on a GPU")
    check_parts(cfg, run)
    if cfg.sparsity_config or prunes_channels(cfg):
        option = "--sparsity-config" if cfg.sparsity_config else "--compression-rate"
        backend = str(getattr(run, "ddp_backend", ""))
        if backend == "fully_sharded" or getattr(run, "zero_sharding", "none") == "os":
            raise UserError(
                f"{option}: needs whole weights and optimizer states in every process; leave "
                "out fully_sharded and --zero-sharding"
            )
        if getattr(run, "use_bmuf", False):
            raise UserError(
                f"{option}: --use-bmuf averages weights with those of before; leave it out"
            )
    if cfg.sparsity_config and getattr(run, "store_ema", False):
        raise UserError("--store-ema: would average removed weights in; leave it out")
    if not prunes_channels(cfg):
        return
    if getattr(run, "store_ema", False):
        raise UserError("--store-ema: can't follow a model that is cut; leave it out")
    if getattr(run, "optimizer", None) == "adafactor":
        raise UserError(
            "--optimizer adafactor: what it remembers of rows and columns can't be cut "
            "with them; use srp_adam, adam, adamax, adagrad, adadelta, nag or sgd"
        )
    if cfg.srp and len(utils.split_paths(cfg.data)) > 1:
        raise UserError(
            f"--srp: the channels shrink over epochs of equally many updates, those of "
            f"{cfg.data} differ; give one folder of data"
        )
    max_epoch = getattr(run, "max_epoch", 0)
    if max_epoch and plan.epochs > max_epoch:
        raise UserError(
            f"--pruning-period {plan.period}: the last cut comes in epoch "
            f"{plan.epochs} ({plan.warming_up} warming up, {plan.iterations} "
            f"iterations), --max-epoch is {max_epoch}; raise --max-epoch or shorten "
            "the period"
        )
    if getattr(run, "max_update", 0) or not (max_epoch or plan.decreasing):
        return  # the last update is saved, and one shot that nothing follows
    last, interval = max_epoch or plan.epochs, getattr(run, "save_interval", 1)
    if last - last % interval < plan.epochs:
        raise UserError(
            f"--save-interval {interval}: the last cut comes in epoch {plan.epochs}, the run "
            f"ends with epoch {last}, and none from there on would be saved; give a divisor "
            f"of {last}, or leave it out"
        )
