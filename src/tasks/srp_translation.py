"""fairseq's translation task with a pruning stage."""

import csv
import logging
import math
import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Iterator, Optional

import numpy as np
import torch
from fairseq import models, utils
from fairseq.data import data_utils
from fairseq.dataclass import ChoiceEnum
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from ..checkpoint_utils import atomic_write, load_checkpoint
from ..connectivity.budget import ParameterCount, plan_widths
from ..connectivity.groups import channel_groups
from ..connectivity.importance import IMPORTANCE, Scores
from ..connectivity.shrink import SCHEDULES
from ..connectivity.stage import PruningStage, StagePlan
from ..errors import UserError
from ..pretrained import check_structure, inherit_layernorm, srp_arguments

logger = logging.getLogger(__name__)


@dataclass
class SRPTranslationConfig(TranslationConfig):
    pretrained_model: Optional[str] = field(
        default=None,
        metadata={
            "help": "start from the weights (and, if it was cut, the widths) of this "
            "checkpoint of an SRP model or of fairseq's transformer"
        },
    )
    trust_checkpoint: bool = field(
        default=False,
        metadata={
            "help": "unpickle any object in --pretrained-model and --teacher-model: for "
            "old checkpoints of your own, since a pickle can run code"
        },
    )
    compression_rate: float = field(
        default=1.0,
        metadata={
            "help": "share of the uncut model's parameters (embeddings and all) to keep, "
            "in (0, 1]; below 1 this run prunes"
        },
    )
    srp: bool = field(
        default=False,
        metadata={
            "help": "shrink the selected channels' connectivity to zero during training "
            "before they are cut; without it they are cut at once (one-shot pruning)"
        },
    )
    pruning_stage: int = field(
        default=0,
        metadata={
            "help": "1: cut embedding widths; 2: cut attention and feed-forward widths "
            "(after stage 1); 0: cut all at once"
        },
    )
    pruning_iter: int = field(
        default=1,
        metadata={
            "help": "number of iterations, each scoring anew, removing an equal ratio "
            "and lasting --pruning-period epochs"
        },
    )
    pruning_period: int = field(
        default=1, metadata={"help": "epochs that one pruning iteration lasts"}
    )
    warming_up: int = field(
        default=0, metadata={"help": "epochs of training before the first scoring"}
    )
    decreasing: str = field(
        default="sa",
        metadata={
            "help": "how connectivity shrinks: sa arithmetically, sg geometrically, at "
            "every update; ea, eg the same once per epoch"
        },
    )
    importance: ChoiceEnum(sorted(IMPORTANCE)) = field(
        default="fisher",
        metadata={
            "help": "what ranks the channels: 'fisher', the squared gradient of the loss "
            "by connectivity summed over scoring batches, or 'connectivity', the signed "
            "negative gradient (SRP's own)"
        },
    )
    scoring_batches: int = field(
        default=150,
        metadata={"help": "number of training batches that importance is summed over"},
    )
    scoring_tokens: int = field(
        default=256,
        metadata={
            "help": "target tokens in a scoring batch; small batches tell channels apart "
            "better, since gradients of many sentences cancel"
        },
    )
    teacher_model: Optional[str] = field(
        default=None,
        metadata={
            "help": "checkpoint of the teacher for --prob-kd and --attn-kd (default: "
            "--pretrained-model)"
        },
    )
    cpu_bf16: bool = field(
        default=False,
        metadata={
            "help": "run matrix products of training in bfloat16 (autocast) on CPUs with "
            "AVX512-BF16 or AMX; weights, optimizer and loss stay in float32"
        },
    )


def check_options(cfg: SRPTranslationConfig) -> None:
    """Refuse impossible values of the task's own options.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    rate = cfg.compression_rate
    if not (math.isfinite(rate) and 0 < rate <= 1):
        raise UserError(
            f"--compression-rate {rate:g}: must be in (0, 1], the share of parameters "
            "to keep"
        )
    if cfg.decreasing not in SCHEDULES:
        raise UserError(
            f"--decreasing {cfg.decreasing}: must be one of {', '.join(SCHEDULES)}"
        )
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
            raise UserError(
                f"--{name.replace('_', '-')} {value}: must be at least {least}"
            )
    if cfg.srp and rate == 1:
        raise UserError("--srp: needs a --compression-rate below 1")
    if rate < 1 and not cfg.pretrained_model:
        raise UserError(
            f"--compression-rate {rate:g}: pruning needs --pretrained-model, the "
            "checkpoint of the trained model to prune"
        )
    if cfg.cpu_bf16:
        capability = torch.backends.cpu.get_cpu_capability()
        if not torch.cpu._is_avx512_bf16_supported():
            raise UserError(
                f"--cpu-bf16: this processor ({capability}) has no AVX512-BF16 or AMX, "
                "bfloat16 would be slower; leave the option out"
            )


def check_data(cfg: SRPTranslationConfig) -> None:
    """Refuse a data folder without dictionaries, before any work.

    Raises:
        UserError: names the folder or file.
    """
    for folder in utils.split_paths(cfg.data or ""):
        if not os.path.isdir(folder):
            raise UserError(
                f"data {folder}: no such folder; make it with fairseq-preprocess or a "
                "script scripts/*_preprocess.sh"
            )
    folder = utils.split_paths(cfg.data or "")[0]
    languages = (cfg.source_lang, cfg.target_lang)
    if None in languages:
        languages = data_utils.infer_language_pair(folder)
    if None in languages:
        raise UserError(
            f"data {folder}: holds no binarized pair (train.SRC-TGT.SRC.idx); give "
            "--source-lang and --target-lang or the right folder"
        )
    for language in languages:
        path = os.path.join(folder, f"dict.{language}.txt")
        if not os.path.isfile(path):
            raise UserError(f"data {folder}: {os.path.basename(path)} is missing there")


@register_task("SRPtranslation", dataclass=SRPTranslationConfig)
class SRPTranslationTask(TranslationTask):
    """Translation; with ``--compression-rate`` below 1, training is a pruning stage.

    The task builds the model from ``--pretrained-model``, scores channels,
    serves the teacher and writes ``results.csv``; :class:`SRPTrainer` runs the
    stage inside fairseq's training loop.
    """

    def __init__(self, cfg, src_dict, tgt_dict):
        super().__init__(cfg, src_dict, tgt_dict)
        self.stage: Optional[PruningStage] = None
        self.save_dir: Optional[str] = None
        self._teacher = None

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        check_options(cfg)
        check_data(cfg)
        return super().setup_task(cfg, **kwargs)

    # -- building -----------------------------------------------------------

    def build_model(self, cfg, from_checkpoint=False):
        if from_checkpoint:
            return super().build_model(cfg, from_checkpoint)
        self._check_run(cfg)
        self.save_dir = getattr(cfg, "save_dir", None)
        state = None
        if self.cfg.pretrained_model:
            state = load_checkpoint(
                self.cfg.pretrained_model,
                "--pretrained-model",
                self.cfg.trust_checkpoint,
            )
            inherit_layernorm(cfg, state, self.cfg.pretrained_model)
        model = super().build_model(cfg, from_checkpoint)
        if state is not None:
            self._load_pretrained(model, cfg, state)
        if self.cfg.compression_rate < 1:
            self._prepare_stage(model)
        return model

    def _check_run(self, cfg) -> None:
        """Refuse what the rest of the command line rules out, before any work."""
        has_gpu = torch.cuda.is_available() and not getattr(cfg, "cpu", False)
        for name in ("fp16", "bf16", "amp", "memory_efficient_fp16"):
            if getattr(cfg, name, False) and not has_gpu:
                raise UserError(
                    f"--{name.replace('_', '-')}: needs a GPU; on a CPU leave it out"
                    " or use --cpu-bf16"
                )
        if self.cfg.cpu_bf16 and has_gpu:
            raise UserError("--cpu-bf16: is for CPUs; use --amp or --fp16 on a GPU")
        if self.cfg.compression_rate == 1:
            return
        if getattr(cfg, "store_ema", False):
            raise UserError("--store-ema: can't follow a model that is cut; leave it out")
        max_epoch = getattr(cfg, "max_epoch", 0)
        plan = self.plan
        if max_epoch and plan.epochs > max_epoch:
            raise UserError(
                f"--pruning-period {plan.period}: the last cut comes after "
                f"{plan.epochs} epochs ({plan.warming_up} warming up + {plan.iterations} "
                f"iterations), --max-epoch is {max_epoch}; raise --max-epoch or shorten "
                "the period"
            )

    def _load_pretrained(self, model, cfg, state) -> None:
        path = self.cfg.pretrained_model
        check_structure(model, state, path)
        for name, value in state["model"].items():
            if not torch.isfinite(value).all():
                raise UserError(
                    f"--pretrained-model {path}: {name} holds NaN or infinite numbers; "
                    "its training diverged, use an earlier checkpoint"
                )
        try:
            model.load_state_dict(state["model"], strict=True, model_cfg=cfg)
        except RuntimeError as error:
            raise UserError(
                f"--pretrained-model {path}: its weights don't fit "
                f"({' '.join(str(error).split())[:300]})"
            ) from None

    @property
    def plan(self) -> StagePlan:
        return StagePlan(
            compression_rate=self.cfg.compression_rate,
            stage=self.cfg.pruning_stage,
            iterations=self.cfg.pruning_iter,
            period=self.cfg.pruning_period,
            warming_up=self.cfg.warming_up,
            decreasing=self.cfg.decreasing if self.cfg.srp else None,
        )

    def _prepare_stage(self, model) -> None:
        groups = channel_groups(model).values()
        uncut = all(g.width == g.original_width for g in groups if g.kind == "embedding")
        if self.cfg.pruning_stage == 2 and uncut:
            logger.warning(
                "--pruning-stage 2: the embedding widths of --pretrained-model are "
                "uncut (no stage 1 made it): attention and feed-forward widths alone "
                "will be cut until --compression-rate is met"
            )
        self.stage = PruningStage(self.plan, model)
        plan_widths(model, self.cfg.compression_rate, self.cfg.pruning_stage)

    def get_batch_iterator(self, dataset, *args, epoch=1, **kwargs):
        """As in fairseq, with batches that do not depend on where a run was resumed.

        fairseq draws the batches of a whole run with the seed of the epoch in which
        the process started, so a resumed run would train on other batches.
        """
        known = dataset in self.dataset_to_epoch_iter
        iterator = super().get_batch_iterator(dataset, *args, epoch=1, **kwargs)
        if not known:
            iterator.epoch = max(epoch, 1)
            dataset.set_epoch(iterator.epoch)
        return iterator

    # -- distillation and precision ----------------------------------------------

    def check_teacher(self) -> None:
        """Refuse distillation without a teacher, before any work."""
        if not (self.cfg.teacher_model or self.cfg.pretrained_model):
            raise UserError(
                "--prob-kd/--attn-kd: distillation needs a teacher; give --teacher-model"
            )

    def teacher(self, device):
        """The unpruned model in evaluation mode, read from its file once."""
        if self._teacher is None:
            path = self.cfg.teacher_model or self.cfg.pretrained_model
            option = "--teacher-model" if self.cfg.teacher_model else "--pretrained-model"
            state = load_checkpoint(path, option, self.cfg.trust_checkpoint)
            with torch.random.fork_rng(devices=[]):  # the student's dropout goes on
                model = models.build_model(srp_arguments(state), self)
            model.load_state_dict(state["model"], strict=True)
            model.requires_grad_(False)
            self._teacher = model.eval().to(device)
            logger.info(f"distilling from {path}")
        return self._teacher

    def forward_precision(self):
        """Context in which training and scoring run the model's forward pass."""
        if self.cfg.cpu_bf16:
            return torch.autocast("cpu", torch.bfloat16)
        return nullcontext()

    # -- scoring -------------------------------------------------------------------

    def scoring_samples(self, split: str, seed: int) -> Iterator[dict]:
        """Small batches of random training sentences, the same for any number of processes."""
        dataset = self.datasets[split]
        order = np.random.default_rng(seed).permutation(len(dataset))
        batch, tokens, made = [], 0, 0
        for index in order.tolist():
            length = max(dataset.num_tokens(index), 1)
            if batch and tokens + length > self.cfg.scoring_tokens:
                yield dataset.collater([dataset[i] for i in batch])
                made += 1
                if made == self.cfg.scoring_batches:
                    return
                batch, tokens = [], 0
            batch.append(index)
            tokens += length
        if batch:
            yield dataset.collater([dataset[i] for i in batch])

    def score(self, model, criterion, split, seed, device, rank=0, world=1) -> Scores:
        """Importance of every channel from scoring batches, dropout off.

        Args:
            rank, world: this process scores every ``world``-th batch; the sums
                are added up over processes.
        """
        was_training = model.training
        model.eval()

        def losses():
            for number, sample in enumerate(self.scoring_samples(split, seed)):
                if number % world == rank:
                    if device.type == "cuda":
                        sample = utils.move_to_cuda(sample, device)
                    yield lambda sample=sample: criterion(model, sample)[0]

        def reduce(total):
            if world > 1:
                distributed_utils.all_reduce(
                    total, group=distributed_utils.get_data_parallel_group()
                )

        try:
            groups = channel_groups(model)
            return IMPORTANCE[str(self.cfg.importance)](groups, losses(), reduce)
        finally:
            model.train(was_training)

    # -- state and results -----------------------------------------------------------

    def get_checkpoint_dict(self):
        if self.stage is None:
            return {}
        return {type(self).__name__: {"stage": self.stage.state_dict()}}

    def set_checkpoint_dict(self, state):
        if self.stage is not None and "stage" in state:
            self.stage.load_state_dict(state["stage"])

    def post_validate(self, model, stats, agg):
        """Add this validation to ``results.csv`` in the run's folder."""
        if self.save_dir is None or distributed_utils.get_global_rank() > 0:
            return
        count = ParameterCount(model)
        row = {
            "num_updates": int(stats["num_updates"]),
            "parameters": count(count.current),
            "rate": round(count(count.current) / count(count.original), 6),
            "valid_loss": float(stats["loss"]),
            "valid_nll_loss": float(stats["nll_loss"]),
            "bleu": float(stats["bleu"]) if "bleu" in stats else "",
            **{f"width:{name}": width for name, width in count.current.items()},
        }
        append_result(os.path.join(self.save_dir, "results.csv"), row)


def append_result(path: str, row: dict) -> None:
    """Add a row to a CSV; rows of the same or later updates (before a resume) go."""
    rows = []
    if os.path.exists(path):
        with open(path, newline="", encoding="utf-8") as stream:
            rows = [
                old
                for old in csv.DictReader(stream)
                if int(old["num_updates"]) < row["num_updates"]
            ]
    with atomic_write(path, newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows + [row])
