"""What is refused of fairseq's own training options: parts and files that a run lacks.

And files that it would begin with in vain, or write over.
"""

import logging
import os
from argparse import Namespace
from importlib.util import find_spec
from typing import Any, Dict, Optional

from fairseq import utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data.indexed_dataset import dataset_exists
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..checkpoint_utils import load_checkpoint
from ..checkpoints.fallback import WRITTEN
from ..errors import UserError
from ..options import SRPTranslationConfig

logger = logging.getLogger(__name__)

DEFAULT_RESTORE_FILE = "checkpoint_last.pt"  # fairseq's, in --save-dir
# What a run calls its checkpoints.

ALIGNED = "label_smoothed_cross_entropy_with_alignment"
# Criteria of fairseq's that read what a translation task has.
OF_TRANSLATION = (
    *("srp", "cross_entropy", "label_smoothed_cross_entropy", ALIGNED),
    "label_smoothed_cross_entropy_with_rdrop",
)


def flat(cfg: DictConfig) -> Namespace:
    """All options of a run in one namespace, as ``fairseq-train`` gives them to a model.

    ``fairseq-hydra-train`` gives a model its own ones alone.
    """
    run = Namespace()
    parts = {name: part for name, part in cfg.items() if isinstance(part, DictConfig)}
    for part in parts.values():
        vars(run).update(OmegaConf.to_container(part, resolve=True))
    for name, part in parts.items():  # as --criterion and the like, over what they hold
        setattr(run, name, part.get("_name"))
    return run


def check_parts(cfg: SRPTranslationConfig, run: Any) -> None:
    """Refuse parts of fairseq's that can't train a translation model here.

    fairseq ends in a traceback, or trains as if the option were not there.

    Args:
        run: all options of the run.

    Raises:
        UserError: names the option, its value and what to do.
    """
    _check_criterion(cfg, run)
    _check_average(run)
    if getattr(run, "tpu", False) and not find_spec("torch_xla"):
        if getattr(run, "bf16", False):  # which turns --tpu on
            raise UserError("--bf16: fairseq-train takes it for a TPU's; run src/train.py with it")
        raise UserError("--tpu: needs package torch_xla and a TPU; leave it out")
    if getattr(run, "model_parallel_size", 1) > 1:
        raise UserError(
            f"--model-parallel-size {run.model_parallel_size}: no model of translation is "
            "divided; leave it out"
        )
    backend = str(getattr(run, "ddp_backend", ""))
    if backend == "fully_sharded" and not find_spec("fairscale"):
        raise UserError(
            "--ddp-backend fully_sharded: needs package fairscale; use pytorch_ddp or legacy_ddp"
        )
    if getattr(run, "optimizer", None) == "composite" and not getattr(run, "groups", None):
        raise UserError(
            "--optimizer composite: has groups of weights, which only a configuration of "
            "fairseq-hydra-train can hold; use another optimizer"
        )
    if getattr(run, "cpu_offload", False) and backend != "fully_sharded":
        raise UserError("--cpu-offload: needs --ddp-backend fully_sharded; leave it out")


def _check_criterion(cfg: SRPTranslationConfig, run: Any) -> None:
    name = getattr(run, "criterion", "srp")
    kind = CRITERION_REGISTRY.get(name)
    adaptive = name == "adaptive_loss" and getattr(run, "adaptive_softmax_cutoff", None)
    of_fairseq = kind is not None and kind.__module__.startswith("fairseq.")
    if of_fairseq and name not in OF_TRANSLATION and not adaptive:
        raise UserError(
            f"--criterion {name}: is for other models or tasks; use srp or one of "
            f"{', '.join(OF_TRANSLATION[1:])}"
        )
    if name == ALIGNED and not cfg.load_alignments:
        raise UserError(
            f"--criterion {name}: needs --load-alignments; without alignments it is "
            "label_smoothed_cross_entropy"
        )
    if not cfg.load_alignments:
        return
    if name in OF_TRANSLATION and name != ALIGNED:
        raise UserError(
            f"--load-alignments: --criterion {name} reads none; use {ALIGNED}, or leave it out"
        )
    subset = getattr(run, "train_subset", "train")
    for folder in utils.split_paths(cfg.data):
        path = os.path.join(folder, f"{subset}.align.{cfg.source_lang}-{cfg.target_lang}")
        if not dataset_exists(path, cfg.dataset_impl):
            raise UserError(
                f"--load-alignments: there is no {path}.idx; make it with "
                "fairseq-preprocess --align-suffix"
            )


def _check_average(run: Any) -> None:
    """Refuse what no average of weights (``--store-ema``) can begin or go on with."""
    path = getattr(run, "ema_seed_model", None)
    if not getattr(run, "store_ema", False):
        if path is not None:
            raise UserError(f"--ema-seed-model {path}: needs --store-ema")
        return
    decay = getattr(run, "ema_decay", 0.9999)
    if not 0 <= decay <= 1:
        raise UserError(f"--ema-decay {decay:g}: must be from 0 to 1")
    if path is None:
        return
    state = load_checkpoint(path, "--ema-seed-model")
    if "ema" not in (state.get("extra_state") or {}):
        raise UserError(
            f"--ema-seed-model {path}: has no average of weights; give a checkpoint of a "
            "training with --store-ema"
        )


def check_seed_of_average(model: nn.Module, average: nn.Module, path: Optional[str]) -> None:
    """Refuse an average of weights that begins with those of a model of another shape.

    Args:
        path: what ``--ema-seed-model`` names.

    Raises:
        UserError: names the first weight that differs.
    """
    theirs = dict(average.named_parameters())
    for name, weight in model.named_parameters():
        if weight.shape != theirs[name].shape:
            raise UserError(
                f"--ema-seed-model {path}: its {name} is {list(theirs[name].shape)}, the "
                f"model's is {list(weight.shape)}; give an average of the same model"
            )


def check_start(run: Namespace) -> None:
    """Refuse checkpoints of fairseq's own options that a run can't begin with.

    At some fairseq ends in a traceback, and without a ``--restore-file`` it starts anew.

    Args:
        run: all options of the run, as fairseq gives them to a model.

    Raises:
        UserError: names the option, the file and what to do.
    """
    file = getattr(run, "restore_file", DEFAULT_RESTORE_FILE)
    path = getattr(run, "finetune_from_model", None)
    # a run that is there already goes on without these two
    there = os.path.exists(os.path.join(getattr(run, "save_dir", ""), DEFAULT_RESTORE_FILE))
    once = getattr(run, "continue_once", None)
    if once and not (there or os.path.isfile(once)):
        raise UserError(f"--continue-once {once}: no such file; give a checkpoint (.pt)")
    if not path:
        named = file.replace(".pt", f"{getattr(run, 'checkpoint_suffix', '')}.pt")
        sharded = getattr(run, "use_sharded_state", False)  # into files of other names
        if not (file == DEFAULT_RESTORE_FILE or sharded or os.path.isfile(named)):
            raise UserError(f"--restore-file {file}: no such file; give a checkpoint (.pt)")
        return
    resets = ("optimizer", "lr_scheduler", "meters", "dataloader")
    given = [f"reset_{x}" for x in resets if getattr(run, f"reset_{x}", False)]
    if file != DEFAULT_RESTORE_FILE:
        given.append("restore_file")
    if given:
        raise UserError(
            f"--finetune-from-model {path}: starts anew by itself; leave out "
            + ", ".join(f"--{name.replace('_', '-')}" for name in given)
        )
    if getattr(run, "pretrained_model", None):
        raise UserError(
            f"--finetune-from-model {path}: would replace the weights of --pretrained-model "
            f"{run.pretrained_model}; leave one of them out"
        )
    if not (there or os.path.isfile(path)):
        raise UserError(f"--finetune-from-model {path}: no such file; give a checkpoint (.pt)")


def check_not_overwritten(run: Namespace) -> None:
    """Refuse a run that would write over the checkpoints that it begins with.

    They are read again when it is resumed. And a ``checkpoint_last.pt`` beside them would
    be gone on with in their place.

    Args:
        run: all options of the run, as fairseq gives them to a model.

    Raises:
        UserError: names the option, the file and what to do.
    """
    folder = os.path.realpath(getattr(run, "save_dir", None) or "checkpoints")
    for name in ("pretrained_model", "teacher_model"):
        path = getattr(run, name, None)
        if not path or not WRITTEN.fullmatch(os.path.basename(path)):
            continue
        if os.path.realpath(os.path.dirname(path)) == folder:
            raise UserError(
                f"--{name.replace('_', '-')} {path}: lies in --save-dir, where this run "
                "would write over it; give another --save-dir"
            )


def warn_of_other_start(run, cfg: Optional[Dict[str, Any]], path: str) -> None:
    """Say that a run goes on which began with another model than the one that is given.

    Args:
        run: all options of the run that goes on.
        cfg: of its checkpoint, None if unknown.
        path: its file.
    """
    mine = getattr(run.task, "pretrained_model", None)
    task = (cfg or {}).get("task")
    known = isinstance(task, dict) and run.checkpoint.restore_file == DEFAULT_RESTORE_FILE
    if mine is None or not known:
        return
    its = task.get("pretrained_model")
    if its is None or os.path.realpath(its) != os.path.realpath(mine):
        logger.warning(
            f"--pretrained-model {mine}: has no part in this run, which goes on from {path} "
            f"and began with {its or 'no other model'}; to begin with it, give another "
            "--save-dir"
        )
