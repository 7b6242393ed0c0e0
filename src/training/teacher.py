"""The teacher of a distillation: which model it is, and reading it from its file."""

import logging
from typing import Tuple

import numpy as np
import torch
from fairseq import models
from fairseq.modules import LearnedPositionalEmbedding
from torch import nn

from ..checkpoint_utils import load_checkpoint
from ..checkpoints.pretrained import (
    check_dictionaries,
    check_finite,
    check_not_shrinking,
    load_weights,
    teacher_arguments,
)
from ..errors import UserError
from ..models.srp_base import SRPModel
from ..options import SRPTranslationConfig

logger = logging.getLogger(__name__)


def teacher_file(cfg: SRPTranslationConfig) -> Tuple[str, str]:
    """The option that names the teacher, and its file.

    Raises:
        UserError: there is none.
    """
    for option, path in (
        ("--teacher-model", cfg.teacher_model),
        ("--pretrained-model", cfg.pretrained_model),
    ):
        if path:
            return option, path
    raise UserError("--prob-kd/--attn-kd: distillation needs a teacher; give --teacher-model")


def read_teacher(task) -> nn.Module:
    """The unpruned model in evaluation mode, on the CPU.

    Args:
        task: has the options and the dictionaries.

    Raises:
        UserError: names the option and the file, and what is wrong with it.
    """
    option, path = teacher_file(task.cfg)
    origin = f"{option} {path}"
    state = load_checkpoint(path, option, task.cfg.trust_checkpoint)
    check_dictionaries(state, task, origin)
    check_finite(state["model"].items(), origin)
    if any(name.startswith("decoder.adaptive_softmax") for name in state["model"]):
        raise UserError(
            f"{origin}: has an adaptive softmax, whose output can't be distilled; "
            "give a teacher with a plain output projection"
        )
    with torch.random.fork_rng(devices=[]):  # the student's dropout goes on
        model = models.build_model(teacher_arguments(state), task)
    load_weights(model, state, origin)
    check_not_shrinking(model, origin)
    model.requires_grad_(False)
    logger.info(f"distilling from {path}")
    return model.eval()


def check_attention(teacher: nn.Module, student: SRPModel, cfg, attn_kd: float) -> None:
    """Refuse a teacher whose attention can't be compared with the student's.

    Args:
        cfg: the task's options, which name the teacher.

    Raises:
        UserError: it gives no attention maps, or has another number of layers.
    """
    origin = f"--attn-kd {attn_kd:g}: the teacher ({teacher_file(cfg)[0]})"
    if not isinstance(teacher, SRPModel):
        raise UserError(
            f"{origin} is a {type(teacher).__name__}, which gives no attention maps; use --prob-kd"
        )
    in_student, in_teacher = student.decoder.depth, teacher.decoder.depth
    if in_student.original_width != in_teacher.original_width:
        raise UserError(
            f"{origin} has {in_teacher.original_width} decoder layers before any cut, the model "
            f"{in_student.original_width}; give one with as many, or use --prob-kd"
        )
    gone = set(in_student.channel_ids.tolist()) - set(in_teacher.channel_ids.tolist())
    if gone:
        raise UserError(
            f"{origin} has lost decoder layer {min(gone) + 1}, which the model has; give one that "
            "has it, or use --prob-kd"
        )


def check_lengths(teacher: nn.Module, dataset, limits: Tuple[int, int], cfg) -> None:
    """Refuse training sentences that the teacher has no positions for.

    Args:
        dataset: the training pairs.
        limits: most tokens of a source and a target; longer pairs are left out anyway.
        cfg: the task's options, which name the teacher.

    Raises:
        UserError: names the teacher's limit and the longest sentence.
    """
    sizes = [np.asarray(x) for x in (dataset.src_sizes, dataset.tgt_sizes)]
    trained = np.all([size <= limit for size, limit in zip(sizes, limits)], axis=0)
    for side, name, size in zip(("encoder", "decoder"), ("source", "target"), sizes):
        table = getattr(getattr(teacher, side, None), "embed_positions", None)
        if not isinstance(table, LearnedPositionalEmbedding):
            continue  # others go on for ever
        longest = int(size[trained].max(initial=0))
        if longest > table.max_positions:
            raise UserError(
                f"{' '.join(teacher_file(cfg))}: has {table.max_positions} learned positions, "
                f"a training sentence has {longest} {name} tokens; give another teacher, or "
                "data without longer sentences"
            )
