"""Label-smoothed cross-entropy, and distillation from the unpruned teacher."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel, FairseqDecoder
from fairseq.models.transformer import TransformerModelBase

from ..errors import UserError
from ..models.srp_base import SRPModel
from .projected_loss import is_plain, projected_nll


@dataclass
class SRPCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    prob_kd: float = field(
        default=0.0,
        metadata={
            "help": "weight of distillation: KL divergence of the student's output "
            "distribution from the teacher's, over non-padding positions, times T^2"
        },
    )
    attn_kd: float = field(
        default=0.0,
        metadata={
            "help": "weight of attention distillation: KL divergence of the student's "
            "encoder-decoder attention from the teacher's, averaged over heads, mean "
            "over decoder layers; a layer's teacher is the same layer of the uncut model"
        },
    )
    T: float = field(default=1.0, metadata={"help": "temperature of distillation (--prob-kd)"})


class _SmoothedNLL(torch.autograd.Function):
    """Sum of label-smoothed nll over rows, with one pass backward.

    The gradient is softmax - ε/(N-1) - (1-ε-ε/(N-1))·onehot for N words: the
    coefficients of fairseq's loss add up to 1.
    """

    @staticmethod
    def forward(ctx, logits, target, epsilon, padding_idx):
        lprobs = F.log_softmax(
            logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32)
        )
        present = target.ne(padding_idx)
        each = epsilon / (logits.size(-1) - 1)
        nll = -lprobs.gather(1, target.unsqueeze(1)).squeeze(1)
        smooth = -lprobs.sum(dim=-1)
        nll, smooth = (nll * present).sum(), (smooth * present).sum()
        ctx.save_for_backward(lprobs, target, present)
        ctx.each, ctx.rest, ctx.dtype = each, 1.0 - epsilon - each, logits.dtype
        ctx.mark_non_differentiable(nll)
        return ctx.rest * nll + each * smooth, nll

    @staticmethod
    def backward(ctx, grad, _):
        lprobs, target, present = ctx.saved_tensors
        result = lprobs.exp().sub_(ctx.each)
        index = target.unsqueeze(1)
        result.scatter_add_(1, index, result.new_full(index.shape, -ctx.rest))
        result.mul_((present * grad).unsqueeze(1))
        return result.to(ctx.dtype), None, None, None


def smoothed_nll(logits, target, epsilon: float, padding_idx: int):
    """fairseq's label-smoothed loss and nll, both summed over non-padding targets.

    Shapes:
        logits ``[rows, N]``, target ``[rows]``.
    """
    return _SmoothedNLL.apply(logits, target, epsilon, padding_idx)


def distillation_loss(logits, teacher_logits, present, temperature: float):
    """T²·KL(teacher ‖ student) summed over the rows where ``present``, in nats."""
    student = F.log_softmax(logits[present].float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits[present].float() / temperature, dim=-1)
    kl = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return kl * temperature**2


def attention_loss(student, teacher, present):
    """KL(teacher ‖ student) of attention maps, summed over positions, mean over layers.

    Each of the student's layers is compared with the one that it is in the uncut model,
    and counts as far as it is connected: the mean does not change when a layer is cut.

    Args:
        student, teacher: decoders whose layers kept their maps.
        present: ``[B, T]``, the positions that count.
    """
    depth, tiny = student.depth, torch.finfo(torch.float32).tiny
    of_teacher = dict(zip(teacher.depth.channel_ids.tolist(), teacher.depth.layers))
    total = depth.connectivity.new_zeros(())  # of a step that drops all layers
    for layer, number, share in zip(
        depth.layers, depth.channel_ids.tolist(), depth.connectivity / depth.connectivity.sum()
    ):
        if layer.attention_map is not None:  # a layer that is skipped has none
            maps = (x.attention_map[present] for x in (layer, of_teacher[number]))
            learned, taught = (m.float().clamp_min(tiny).log() for m in maps)
            total = total + share * F.kl_div(learned, taught, reduction="sum", log_target=True)
    return total


_SOFTMAX_OF_LOGITS = tuple(
    getattr(kind, name)
    for kind in (BaseFairseqModel, TransformerModelBase, FairseqDecoder)
    for name in ("get_normalized_probs", "get_normalized_probs_scriptable")
)


def _unwrapped(model):
    """A model out of its distributed wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model


def gives_logits(model) -> bool:
    """Whether a model's distribution is the softmax of its output.

    It is not with an adaptive softmax, or where a class has its own get_normalized_probs.
    """
    decoder = getattr(model, "decoder", None)
    if getattr(decoder, "adaptive_softmax", None) is not None:
        return False
    return all(
        getattr(getattr(part, name), "__func__", None) in _SOFTMAX_OF_LOGITS
        for part in (model, decoder)
        if part is not None
        for name in ("get_normalized_probs", "get_normalized_probs_scriptable")
    )


def scores(model, output):
    """What a model's distribution is the softmax of, ``[B, T, N]``: logits, or its logarithm."""
    if gives_logits(_unwrapped(model)):
        return output[0]
    return model.get_normalized_probs(output, log_probs=True)


@register_criterion("srp", dataclass=SRPCriterionConfig)
class SRPCriterion(LabelSmoothedCrossEntropyCriterion):
    """Label-smoothed cross-entropy + prob_kd · distillation + attn_kd · attention KL.

    All three are summed over non-padding target tokens, without those of
    ``--ignore-prefix-size``, and normalised alike.
    The teacher comes from the task (``--teacher-model``, by default
    ``--pretrained-model``) and is used in training only.
    """

    def __init__(
        self,
        task,
        sentence_avg,
        label_smoothing,
        ignore_prefix_size=0,
        report_accuracy=False,
        prob_kd=0.0,
        attn_kd=0.0,
        T=1.0,
    ):
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"--label-smoothing {label_smoothing:g}: must be in [0, 1)")
        if ignore_prefix_size < 0:
            raise UserError(f"--ignore-prefix-size {ignore_prefix_size}: must be at least 0")
        for flag, value in (("--prob-kd", prob_kd), ("--attn-kd", attn_kd)):
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{flag} {value}: must be a number of at least 0")
        if not (math.isfinite(T) and T > 0):
            raise UserError(f"--T {T}: the temperature must be a positive number")
        self.prob_kd, self.attn_kd, self.temperature = prob_kd, attn_kd, T
        teacher = getattr(getattr(task, "cfg", None), "teacher_model", None)
        if teacher and not (prob_kd or attn_kd):
            raise UserError(
                f"--teacher-model {teacher}: has no part in the loss; say how much with "
                "--prob-kd or --attn-kd, or leave it out"
            )
        if T != 1 and not prob_kd:
            raise UserError(f"--T {T:g}: is the temperature of --prob-kd; give that, too")
        if prob_kd or attn_kd:
            if not hasattr(task, "check_teacher"):
                raise UserError("--prob-kd/--attn-kd: need --task SRPtranslation")
            task.check_teacher()
        # other tasks have no say in it
        self.forward_precision = getattr(task, "forward_precision", nullcontext)

    def compute_loss(self, model, net_output, sample, reduce=True):
        if not reduce or not gives_logits(_unwrapped(model)):
            return super().compute_loss(model, net_output, sample, reduce)
        logits, target = net_output[0], model.get_targets(sample, net_output)
        if self.ignore_prefix_size > 0:
            logits = logits[:, self.ignore_prefix_size :].contiguous()
            target = target[:, self.ignore_prefix_size :].contiguous()
        return smoothed_nll(
            logits.view(-1, logits.size(-1)), target.view(-1), self.eps, self.padding_idx
        )

    def _needs_no_logits(self, student) -> bool:
        if not isinstance(student, SRPModel) or self.report_accuracy:
            return False
        if not gives_logits(student):
            return False
        projection = student.decoder.output_projection
        # scoring wants no gradient of the weights, which would be made all the same
        scoring = torch.is_grad_enabled() and not student.training
        return projection.weight.is_cpu and is_plain(projection) and not scoring

    def _projected_loss(self, features, projection, target):
        prefix = self.ignore_prefix_size
        return projected_nll(
            features[:, prefix:], projection, target[:, prefix:], self.eps, self.padding_idx
        )

    def forward(self, model, sample, reduce=True):
        """As in fairseq; in training with the distillation losses added."""
        distil = model.training and (self.prob_kd or self.attn_kd)
        student = _unwrapped(model)
        if distil and self.attn_kd:
            for layer in student.decoder.depth.layers:
                layer.keep_attention_map = True
        if reduce and not distil and self._needs_no_logits(student):
            with self.forward_precision():
                loss, nll_loss = model(
                    **sample["net_input"],
                    loss=lambda *given: self._projected_loss(*given, sample["target"]),
                )
        else:
            with self.forward_precision():
                net_output = model(**sample["net_input"])
            loss, nll_loss = self.compute_loss(model, net_output, sample, reduce=reduce)
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": loss.data,
            "nll_loss": nll_loss.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        if self.report_accuracy:
            n_correct, total = self.compute_accuracy(model, net_output, sample)
            logging_output["n_correct"] = n_correct.item()
            logging_output["total"] = total.item()
        if distil:
            loss = self._distil(student, net_output, sample, loss, logging_output)
        return loss, sample_size, logging_output

    def _distil(self, student, net_output, sample, loss, logging_output):
        device = net_output[0].device
        teacher = self.task.teacher(device)
        if self.attn_kd:
            for layer in teacher.decoder.depth.layers:
                layer.keep_attention_map = True
        with torch.no_grad(), self.forward_precision():
            teacher_output = teacher(**sample["net_input"])
        present = sample["target"].ne(self.padding_idx)
        present[:, : self.ignore_prefix_size] = False
        if self.prob_kd:
            both = scores(student, net_output), scores(teacher, teacher_output)
            kl = distillation_loss(*both, present, self.temperature)
            loss = loss + self.prob_kd * kl
            logging_output["prob_kd_loss"] = kl.data
        if self.attn_kd:
            kl = attention_loss(student.decoder, teacher.decoder, present)
            loss = loss + self.attn_kd * kl
            logging_output["attn_kd_loss"] = kl.data
            for layer in (*student.decoder.depth.layers, *teacher.decoder.depth.layers):
                # the map holds this step's graph, which knows weights in sizes before a cut
                layer.keep_attention_map, layer.attention_map = False, None
        return loss

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        super().reduce_metrics(logging_outputs)
        tokens = sum(log.get("ntokens", 0) for log in logging_outputs)
        for name in ("prob_kd_loss", "attn_kd_loss"):
            if any(name in log for log in logging_outputs):
                total = sum(log.get(name, 0) for log in logging_outputs)
                metrics.log_scalar(name, total / tokens, tokens, round=4)
