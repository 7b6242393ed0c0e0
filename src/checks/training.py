"""What is refused of a training, before any work: by the task, when it builds the model."""

import logging

import torch
from fairseq import utils

from ..acceleration.bfloat16 import bfloat16_gain
from ..connectivity.importance import IMPORTANCE, NORMS
from ..connectivity.shrink import SCHEDULES
from ..connectivity.stage import StagePlan
from ..errors import UserError
from ..modules.torch_private import has_avx512_bf16
from ..options import SRPTranslationConfig, cuts_layers, cuts_widths, prunes_channels
from .data import check_subsets
from .fairseq_options import check_not_overwritten, check_parts, check_start
from .speed import SPEED, check_engine
from .validation import check_validation
from .values import (
    AtLeast,
    IsFile,
    Must,
    Needs,
    OneOf,
    Options,
    Refused,
    Unused,
    check,
    model_overrides,
)

logger = logging.getLogger(__name__)

# Options of fairseq's models: trained embeddings to begin with.
EMBEDDING_FILES = ("encoder_embed_path", "decoder_embed_path")
_KEPT = ("keep_encoder_layers", "keep_decoder_layers")
_PRUNING = "needs a --compression-rate below 1, --speed-up, --keep-encoder-layers or "
_PRUNING += "--keep-decoder-layers"
_SIGNED = ", ".join(sorted(name for name, c in IMPORTANCE.items() if c.per_example))
_WHOLE = "must be a whole number of at least 1"


def _is_whole(rank: float) -> bool:
    return rank >= 1 and rank % 1 == 0  # inf % 1 is NaN


# Of the task's own options; ``criterion`` is that of importance.
TASK = (
    Must("compression_rate", lambda rate: 0 < rate <= 1)
    | "must be in (0, 1], the share of parameters to keep",
    OneOf("decreasing", SCHEDULES),
    Must("pruning_stage", lambda stage: stage in (0, 1, 2)) | "must be 0, 1 or 2",
    AtLeast(1, "pruning_iter", "pruning_period", "scoring_batches", "scoring_tokens"),
    AtLeast(0, "warming_up"),
    AtLeast(1, *_KEPT) | "must be at least 1; one layer stays on each side",
    Needs(_KEPT, lambda o: o.pruning_stage != 1)
    | "needs --pruning-stage 0 or 2; stage 1 cuts embeddings alone",
    *SPEED,
    Needs((*_KEPT, "compression_rate", "speed_up"), "pretrained_model")
    | "pruning needs --pretrained-model, the checkpoint of the trained model to prune",
    Needs("srp", prunes_channels) | _PRUNING,
    Needs("prune_heads", cuts_widths)
    | "needs --compression-rate below 1; only such a stage cuts attention",
    Needs("prune_heads", lambda o: o.pruning_stage != 1)
    | "needs --pruning-stage 0 or 2; only such a stage cuts attention",
    Must("embedding_ratio", lambda ratio: 1e-3 <= ratio <= 1e3)
    | "must be above 0, from 0.001 to 1000; 1 is no preference",
    Needs("embedding_ratio", cuts_widths)
    | "needs --compression-rate below 1; only such a stage cuts embeddings",
    Needs("embedding_ratio", lambda o: o.pruning_stage != 2)
    | "needs --pruning-stage 0 or 1; only such a stage cuts embeddings",
    OneOf("importance", sorted(IMPORTANCE)),
    OneOf("importance_norm", sorted(NORMS)),
    Needs("importance", lambda o: cuts_layers(o) or not IMPORTANCE[o.criterion].of_layers)
    | "ranks whole layers; give --keep-encoder-layers or --keep-decoder-layers, or another "
    "criterion",
    Needs("importance_per_example", lambda o: IMPORTANCE[o.criterion].per_example)
    | "means nothing to --importance {o.criterion}, which adds up no signed sums of sentences; "
    f"leave it out or use one of {_SIGNED}",
    Needs("decreasing", "srp") | "needs --srp; without, channels are cut right away",
    Needs("pruning_period", lambda o: o.srp or o.pruning_iter > 1 or not prunes_channels(o))
    | "needs --srp or a --pruning-iter above 1; without, channels are cut right away",
    # --scoring-batches and --scoring-tokens may stand among what several runs share
    Needs(
        ("pruning_stage", "pruning_iter", "pruning_period", "warming_up")
        + ("importance", "importance_norm", "importance_per_example"),
        prunes_channels,
    )
    | f"{_PRUNING}; only such a run prunes channels",
    Unused("adapter_path", bare=True)
    | "is for translation; to train on from adapters, give their checkpoint as --pretrained-model",
    Needs(("adapter_rank", "adapter_include", "adapter_exclude"), "adapter")
    | "needs --adapter splora or splopa",
    Needs(("adapter_block_size", "adapter_prototypes"), lambda o: str(o.adapter) == "splopa")
    | "needs --adapter splopa",
    Needs("adapter", "pretrained_model") | "needs --pretrained-model, the checkpoint to adapt",
    Needs("adapter_rank", lambda o: str(o.adapter) == "splora" or _is_whole(o.adapter_rank))
    | _WHOLE,
    Must("adapter_rank", lambda rank: _is_whole(rank) or 0 < rank < 1)
    | f"{_WHOLE} or a share in (0, 1)",
    AtLeast(1, "adapter_block_size", "adapter_prototypes"),
    Unused("sparse_inference") | "is for translation; leave it out of training",
    Needs("release_zeros", lambda o: o.sparsity_config is None)
    | "--sparsity-config decides which weights are zero; leave one out",
    IsFile("sparsity_config") | "no such file; give a YAML file",
    Needs("sparsity_config", lambda o: not prunes_channels(o))
    | "can't run in a stage that cuts channels; prune channels first, then weights of the cut "
    "model",
    Needs("sparsity_config", lambda o: o.adapter is None)
    | "would prune what --adapter {o.adapter} leaves frozen; prune first, then adapt",
)


def check_task_options(cfg: SRPTranslationConfig) -> None:
    """Refuse impossible values of the task's own options."""
    check(TASK, Options(cfg, criterion=str(cfg.importance or "fisher")))
    if cfg.speed_engine is not None:
        check_engine(cfg.speed_engine, "--speed-engine")
    check_precision(cfg)


def check_precision(cfg: SRPTranslationConfig) -> None:
    """Refuse --cpu-bf16 on a processor without its instructions; warn where they gain nothing."""
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


# Of the rest of the command line.
RUN = (
    IsFile(*EMBEDDING_FILES) | "no such file; give embeddings as text",
    Unused("quantization_config_path")
    | "replaces layers during training, which this plug-in's can't be; leave it out, and "
    "quantize with export.py",
    Must(
        ("dropout", "attention_dropout", "activation_dropout", "relu_dropout")
        + ("encoder_layerdrop", "decoder_layerdrop"),
        lambda share: 0 <= share < 1,
    )
    | "must be in [0, 1)",
    Must("update_freq", lambda f: min(f, default=1) >= 1) | "must be at least 1 in every epoch",
    AtLeast(
        1,
        *("max_tokens", "batch_size", "max_tokens_valid", "batch_size_valid"),
        *("required_batch_size_multiple", "log_interval", "save_interval", "validate_interval"),
    )
    | _WHOLE,
    AtLeast(0, "num_workers") | "must be a whole number of at least 0",
    Must("keep_interval_updates_pattern", lambda pattern: pattern >= 1 or pattern == -1)
    | "must be at least 1, checkpoints of multiples of it are kept",
    Needs("update_ordered_indices_seed", "update_epoch_batch_itr")
    | "is of batches that are drawn anew in every epoch; add --update-epoch-batch-itr True, or "
    "leave it out",
    *(
        Needs(f"memory_efficient_{kind}", lambda o: o.optimizer != "srp_adam")
        | "--optimizer srp_adam has no step in float32 without float32 weights; use --optimizer "
        f"adam, or --{kind} instead"
        for kind in ("fp16", "bf16")
    ),
    Needs(("memory_efficient_fp16", "memory_efficient_bf16", "fp16", "bf16", "amp"), "has_gpu")
    | "needs a GPU; on a CPU leave it out or use --cpu-bf16",
    Needs("cpu_bf16", lambda o: o.criterion in (None, "srp"))
    | "--criterion {o.criterion} trains in float32 all the same; use --criterion srp",
    Needs("cpu_bf16", lambda o: not o.has_gpu) | "is for CPUs; use --amp or --fp16 on a GPU",
)


def _pruning(option: str):
    """What no run can do that prunes, be it channels or weights; the option says which."""
    return (
        Refused(
            option, lambda o: o.ddp_backend == "fully_sharded" or o.zero_sharding == "os", bare=True
        )
        | "needs whole weights and optimizer states in every process; leave out fully_sharded "
        "and --zero-sharding",
        Refused(option, lambda o: o.use_bmuf, bare=True)
        | "--use-bmuf averages weights with those of before; leave it out",
    )


def _loses_the_cut(o: Options) -> bool:
    """Whether no checkpoint is saved after the last cut."""
    if o.max_update or not (o.max_epoch or o.plan.decreasing):
        return False  # the last update is saved, and one shot that nothing follows
    return o.last - o.last % (o.save_interval or 1) < o.plan.epochs


WEIGHTS = (
    *_pruning("sparsity_config"),
    Unused("store_ema") | "would average removed weights in; leave it out",
)
# ``plan`` is the stage, ``last`` the last epoch.
CHANNELS = (
    *_pruning("compression_rate"),
    Unused("store_ema") | "can't follow a model that is cut; leave it out",
    Refused("optimizer", lambda o: o.optimizer == "adafactor")
    | "what it remembers of rows and columns can't be cut with them; use srp_adam, adam, "
    "adamax, adagrad, adadelta, nag or sgd",
    Needs("srp", lambda o: len(utils.split_paths(o.data)) == 1)
    | "the channels shrink over epochs of equally many updates, those of {o.data} differ; give "
    "one folder of data",
    Refused("pruning_period", lambda o: o.max_epoch and o.plan.epochs > o.max_epoch)
    | "the last cut comes in epoch {o.plan.epochs} ({o.plan.warming_up} warming up, "
    "{o.plan.iterations} iterations), --max-epoch is {o.max_epoch}; raise --max-epoch or "
    "shorten the period",
    Refused("save_interval", _loses_the_cut)
    | "the last cut comes in epoch {o.plan.epochs}, the run ends with epoch {o.last}, and none "
    "from there on would be saved; give a divisor of {o.last}, or leave it out",
)


def check_run(cfg: SRPTranslationConfig, run, plan: StagePlan) -> None:
    """Refuse what the rest of the command line rules out.

    Args:
        run: all options of the run, as fairseq gives them to a model.
        plan: the pruning stage that ``cfg`` asks for.
    """
    check_validation(cfg, run)
    check_subsets(cfg, run)
    check_start(run)
    check_not_overwritten(run)
    overrides = getattr(run, "optimizer_overrides", "{}")
    model_overrides(overrides, "--optimizer-overrides", "{'weight_decay': 0.01}")
    last = getattr(run, "max_epoch", 0) or plan.epochs
    has_gpu = torch.cuda.is_available() and not getattr(run, "cpu", False)
    options = Options(cfg, run, plan=plan, last=last, has_gpu=has_gpu)
    check(RUN, options)
    check_parts(cfg, run)
    if cfg.sparsity_config:
        check(WEIGHTS, options)
    if prunes_channels(cfg):
        check(CHANNELS, options)
