"""Errors of fairseq's training that a user can mend, said in one line."""

import logging
import pickle
from contextlib import contextmanager
from typing import Tuple, Type

import torch
from torch import Tensor

from ..checkpoint_utils import unsafe
from ..connectivity.errors import PruningError
from ..errors import UserError, lacks_memory

logger = logging.getLogger(__name__)

# What fairseq raises, with words, for data without a batch, a sentence that is too long, a
# checkpoint of another model or optimizer.
EXPLAINED = (Exception, AssertionError)
# And for options of an optimizer or a schedule, which it evaluates as Python.
EXPLAINED_OF_PARTS = (*EXPLAINED, ValueError, ImportError, ZeroDivisionError)
EXPLAINED_OF_PARTS += (NameError, SyntaxError)


@contextmanager
def explaining(origin: str, todo: str = "", kinds: Tuple[Type[Exception], ...] = EXPLAINED):
    """Give an error in which fairseq says what is wrong the name of what caused it.

    Args:
        origin: options and files, with their values.
        todo: what to do about it.
        kinds: types of these errors, without their subclasses; others are faults of
            the program and keep their traceback.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error.__context__, UserError):  # fairseq has put its own in the place
            raise error.__context__ from None
        if type(error) not in kinds or not error.args:
            raise
        text = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{origin}: {text}{todo and f'. {todo}'}") from None


def other_checkpoint(path: str, cfg) -> str:
    """What to give in place of the checkpoint that a run begins with or goes on from.

    Args:
        cfg: all options of the run.
    """
    for option in ("finetune_from_model", "restore_file"):
        if getattr(cfg.checkpoint, option) == path:
            return f"--{option.replace('_', '-')} another checkpoint"
    return "another --save-dir to start anew"


@contextmanager
def refusing_checkpoint(path: str, cfg):
    """Load a checkpoint that fairseq may refuse.

    Args:
        cfg: all options of the run.

    Raises:
        UserError: of another model or optimizer, with objects that could run code, or
            without the average that --store-ema goes on with.
    """
    todo = f"Give the options of its run, or {other_checkpoint(path, cfg)}"
    try:
        with explaining(f"checkpoint {path}", todo):
            yield
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path}: {unsafe(error)}; if you trust its origin, start anew "
            "with its weights: --pretrained-model, --trust-checkpoint, another --save-dir"
        ) from None
    except KeyError as error:
        if not (cfg.ema.store_ema and error.args == ("model",)):
            raise
        # fairseq would begin the average with weights that it has let go by then
        raise UserError(
            f"--store-ema: checkpoint {path} has no average of weights to go on with; leave "
            "it out, or start anew: --pretrained-model, another --save-dir"
        ) from None


def warn_of_new_optimizer(trainer, path: str) -> None:
    """Say where a run goes on from weights alone; fairseq does without a word.

    Args:
        trainer: of the run, with the checkpoint's weights, its optimizer not being reset.
        path: the checkpoint.
    """
    history = trainer._optim_history
    if history and history[-1]["num_updates"] > trainer.get_num_updates():
        logger.warning(
            f"checkpoint {path}: holds no state of the optimizer (it is an average, or of a run "
            "with --no-save-optimizer-state): the optimizer, the learning rate's schedule and "
            "the number of updates begin anew"
        )


@contextmanager
def refusing_divergence():
    """End a training with --fp16 whose loss can't be scaled further down, in one line.

    fairseq would look for the layer that overflows, and fail at that.

    Raises:
        UserError: says what to change.
    """
    try:
        yield
    except FloatingPointError as error:
        raise UserError(f"--fp16: {' '.join(str(error).split())}") from None


def check_norm(norm: Tensor, update: int, rate: float) -> None:
    """Refuse a gradient that holds NaN or infinite numbers.

    fairseq would look for the layer that they come from, and fail at that.

    Args:
        norm: of the whole gradient.
        update: the one that it is for.
        rate: the learning rate.

    Raises:
        UserError: says what to change.
    """
    if not torch.isfinite(norm).all():
        raise UserError(
            f"--lr: the gradient of update {update} holds NaN or infinite numbers, the "
            f"training has diverged; give a lower one (it is {rate:g} now), a longer "
            "--warmup-updates or a --clip-norm"
        )


@contextmanager
def naming_batch_size(cfg, update: int):
    """End a training that lacks memory with what makes its steps smaller.

    Args:
        cfg: all options of the run.
        update: the one that is made.

    Raises:
        UserError: names the option of the batches' size.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        dataset = cfg.dataset
        size = ("max-tokens", dataset.max_tokens)
        name, value = size if dataset.max_tokens else ("batch-size", dataset.batch_size)
        raise UserError(
            f"--{name} {value}: update {update} is out of memory; give less, with a higher "
            "--update-freq for updates as large, or --checkpoint-activations"
        ) from None


# What the fields of a stage's plan, and what else its errors name, are on the command line.
STAGE_WORDS = {
    "compression_rate": "--compression-rate",
    "stage": "--pruning-stage",
    "iterations": "--pruning-iter",
    "period": "--pruning-period",
    "warming_up": "--warming-up",
    "decreasing": "--decreasing",
    "prune_heads": "--prune-heads",
    "embedding_ratio": "--embedding-ratio",
    "importance": "--importance",
    "layer_importance": "--importance",
    "keep_encoder_layers": "--keep-encoder-layers",
    "keep_decoder_layers": "--keep-decoder-layers",
    "importance_norm": "--importance-norm",
    "importance_per_example": "--importance-per-example",
    "no_schedule": "none (no --srp)",
    "targets": "their targets are not empty and that --ignore-prefix-size leaves some of them",
    "load_stage": "resume it without --reset-dataloader",
    "stage_place": "the stage to go on with in this folder",
    "give_that": "give that, or another --save-dir",
}


@contextmanager
def naming_options():
    """Give what a pruning stage refuses the names of the options.

    Raises:
        UserError: in place of a PruningError.
    """
    try:
        yield
    except PruningError as error:
        raise UserError(error.worded(STAGE_WORDS)) from None
