"""What is refused of fairseq's own training options: parts and files that a run lacks.

And files that it would begin with in vain, or write over. ``run`` is all options of a run, as
fairseq gives them to a model.
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
from .values import Must, Needs, Options, Refused, check, spell

logger = logging.getLogger(__name__)

DEFAULT_RESTORE_FILE = "checkpoint_last.pt"  # fairseq's, in --save-dir

ALIGNED = "label_smoothed_cross_entropy_with_alignment"
# Criteria of fairseq's that read what a translation task has.
OF_TRANSLATION = (
    *("srp", "cross_entropy", "label_smoothed_cross_entropy", ALIGNED),
    "label_smoothed_cross_entropy_with_rdrop",
)


def all_options(cfg: DictConfig) -> Namespace:
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


def _is_of_others(o: Options) -> bool:
    """Whether a criterion of fairseq's is for other models or tasks."""
    kind = CRITERION_REGISTRY.get(o.criterion)
    adaptive = o.criterion == "adaptive_loss" and o.adaptive_softmax_cutoff
    known = o.criterion in OF_TRANSLATION or adaptive
    return kind is not None and kind.__module__.startswith("fairseq.") and not known


def _unaligned(cfg: SRPTranslationConfig) -> Optional[str]:
    """A file of alignments that the training data lack."""
    name = f"{cfg.train_subset}.align.{cfg.source_lang}-{cfg.target_lang}"
    paths = [os.path.join(folder, name) for folder in utils.split_paths(cfg.data)]
    return next((path for path in paths if not dataset_exists(path, cfg.dataset_impl)), None)


def _is_fully_sharded(o: Options) -> bool:
    return str(o.ddp_backend) == "fully_sharded"


def _has_average(path: str) -> bool:
    return "ema" in (load_checkpoint(path, "--ema-seed-model").get("extra_state") or {})


# Parts of fairseq's that can't train a translation model here: it ends in a traceback, or
# trains as if the option were not there.
PARTS = (
    Refused("criterion", _is_of_others)
    | f"is for other models or tasks; use srp or one of {', '.join(OF_TRANSLATION[1:])}",
    Refused("criterion", lambda o: o.criterion == ALIGNED and not o.load_alignments)
    | "needs --load-alignments; without alignments it is label_smoothed_cross_entropy",
    Needs("load_alignments", lambda o: o.criterion not in {*OF_TRANSLATION} - {ALIGNED})
    | f"--criterion {{o.criterion}} reads none; use {ALIGNED}, or leave it out",
    Needs("load_alignments", lambda o: not o.unaligned)
    | "there is no {o.unaligned}.idx; make it with fairseq-preprocess --align-suffix",
    Needs("ema_seed_model", "store_ema") | "needs --store-ema",
    Refused("ema_decay", lambda o: o.store_ema and not 0 <= o.ema_decay <= 1)
    | "must be from 0 to 1",
    Must("ema_seed_model", _has_average)
    | "has no average of weights; give a checkpoint of a training with --store-ema",
    Needs("bf16", lambda o: not o.tpu or find_spec("torch_xla"))  # it turns --tpu on
    | "fairseq-train takes it for a TPU's; run src/train.py with it",
    Needs("tpu", lambda o: find_spec("torch_xla"))
    | "needs package torch_xla and a TPU; leave it out",
    Must("model_parallel_size", lambda size: size <= 1)
    | "no model of translation is divided; leave it out",
    Refused("ddp_backend", lambda o: _is_fully_sharded(o) and not find_spec("fairscale"))
    | "needs package fairscale; use pytorch_ddp or legacy_ddp",
    Refused("optimizer", lambda o: o.optimizer == "composite" and not o.groups)
    | "has groups of weights, which only a configuration of fairseq-hydra-train can hold; use "
    "another optimizer",
    Needs("cpu_offload", _is_fully_sharded) | "needs --ddp-backend fully_sharded; leave it out",
)


def check_parts(cfg: SRPTranslationConfig, run: Any) -> None:
    """Refuse parts of fairseq's that can't train a translation model here."""
    unaligned = cfg.load_alignments and _unaligned(cfg)
    check(PARTS, Options(cfg, run, criterion="srp", ema_decay=0.9999, unaligned=unaligned))


def check_seed_of_average(model: nn.Module, average: nn.Module, path: Optional[str]) -> None:
    """Refuse an average of weights that begins with those of a model of another shape.

    Args:
        path: what ``--ema-seed-model`` names.
    """
    theirs = dict(average.named_parameters())
    for name, weight in model.named_parameters():
        if weight.shape != theirs[name].shape:
            raise UserError(
                f"--ema-seed-model {path}: its {name} is {list(theirs[name].shape)}, the "
                f"model's is {list(weight.shape)}; give an average of the same model"
            )


def _is_lost(o: Options) -> bool:
    """Whether a checkpoint to go on from is not there; fairseq would start anew."""
    if o.finetune_from_model or o.restore_file in (None, DEFAULT_RESTORE_FILE):
        return False
    path = o.restore_file.replace(".pt", f"{o.checkpoint_suffix or ''}.pt")
    return not (o.use_sharded_state or os.path.isfile(path))  # sharded: into files of other names


_NO_FILE = "no such file; give a checkpoint (.pt)"
# Checkpoints that a run can't begin with; one that is there already goes on without them.
START = (
    Needs("continue_once", lambda o: o.exists or os.path.isfile(o.continue_once)) | _NO_FILE,
    Refused("restore_file", _is_lost) | _NO_FILE,
    Needs("finetune_from_model", lambda o: not o.resets)
    | "starts anew by itself; leave out {o.resets}",
    Needs("finetune_from_model", lambda o: not o.pretrained_model)
    | "would replace the weights of --pretrained-model {o.pretrained_model}; leave one of them "
    "out",
    Needs("finetune_from_model", lambda o: o.exists or os.path.isfile(o.finetune_from_model))
    | _NO_FILE,
)


def check_start(run: Namespace) -> None:
    """Refuse checkpoints of fairseq's own options that a run can't begin with."""
    last = os.path.join(getattr(run, "save_dir", ""), DEFAULT_RESTORE_FILE)
    resets = [f"reset_{x}" for x in ("optimizer", "lr_scheduler", "meters", "dataloader")]
    resets = [spell(name) for name in resets if getattr(run, name, False)]
    if getattr(run, "restore_file", DEFAULT_RESTORE_FILE) != DEFAULT_RESTORE_FILE:
        resets.append("--restore-file")
    check(START, Options(run, exists=os.path.exists(last), resets=", ".join(resets)))


def check_not_overwritten(run: Namespace) -> None:
    """Refuse a run that would write over what it begins with, and reads again to go on.

    A ``checkpoint_last.pt`` in its folder would be gone on with in its place.
    """
    folder = os.path.realpath(getattr(run, "save_dir", None) or "checkpoints")
    for name in ("pretrained_model", "teacher_model"):
        path = getattr(run, name, None) or ""
        inside = os.path.realpath(os.path.dirname(path)) == folder
        if inside and WRITTEN.fullmatch(os.path.basename(path)):
            raise UserError(
                f"{spell(name)} {path}: lies in --save-dir, where this run would write over it; "
                "give another --save-dir"
            )


def warn_of_other_start(run, cfg: Optional[Dict[str, Any]], path: str) -> None:
    """Say that a run goes on which began with another model than the one that is given.

    Args:
        run: all options of the run that goes on, in their parts.
        cfg: those in its checkpoint, None if unknown.
        path: its file.
    """
    given, task = getattr(run.task, "pretrained_model", None), (cfg or {}).get("task")
    known = isinstance(task, dict) and run.checkpoint.restore_file == DEFAULT_RESTORE_FILE
    if given is None or not known:
        return
    first = task.get("pretrained_model")
    if first is None or os.path.realpath(first) != os.path.realpath(given):
        logger.warning(
            f"--pretrained-model {given}: has no part in this run, which goes on from {path} and "
            f"began with {first or 'no other model'}; to begin with it, give another --save-dir"
        )
