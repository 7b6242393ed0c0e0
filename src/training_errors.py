"""Errors of fairseq's training that a user can mend, said in one line."""

from contextlib import contextmanager
from typing import Tuple, Type

import torch
from torch import Tensor

from .errors import UserError

# What fairseq raises, with words, for data without a batch, a sentence that is too long, a
# checkpoint of another model or optimizer.
EXPLAINED = (Exception, AssertionError)


@contextmanager
def named(what: str, todo: str = "", kinds: Tuple[Type[Exception], ...] = EXPLAINED):
    """Give an error in which fairseq says what is wrong the name of what caused it.

    Args:
        what: options and files, with their values.
        todo: what to do about it.
        kinds: types of these errors, without their subclasses; others are faults of
            the program and keep their traceback.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except Exception as error:
        if type(error) not in kinds or not error.args:
            raise
        text = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{what}: {text}{todo and f'. {todo}'}") from None


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
