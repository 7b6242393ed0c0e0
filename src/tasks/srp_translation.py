"""fairseq's translation task with a pruning stage."""

import copy
import logging
import os
from contextlib import nullcontext
from typing import Iterator, Optional

import numpy as np
import torch
from fairseq import utils
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationTask

from ..checkpoint_utils import load_checkpoint
from ..checkpoints import adapters as adaptation
from ..checkpoints.pretrained import (
    adaptable_arguments,
    check_dictionaries,
    inherit_layernorm,
    load_pretrained,
)
from ..checks.data import check_buckets, check_data
from ..checks.training import EMBEDDING_FILES, check_options, check_run
from ..connectivity.budget import ParameterCount
from ..connectivity.groups import attention_groups, channel_groups
from ..connectivity.importance import score as score_channels
from ..connectivity.scoring import IMPORTANCE, Scores, ScoringBatch
from ..connectivity.stage import PruningStage, StagePlan
from ..errors import UserError
from ..evaluation.results import append_result
from ..models.srp_base import SRPModel
from ..modules.relevance import gold_relevance, is_half
from ..options import SRPTranslationConfig
from ..sequence_generator import FastSequenceGenerator
from ..training.explained_errors import naming_options
from ..training.teacher import check_attention, check_lengths, read_teacher, teacher_file
from ..training.weight_pruning import WeightPruning

logger = logging.getLogger(__name__)


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
        self.weight_pruning: Optional[WeightPruning] = None
        self.save_dir: Optional[str] = None
        self._teacher = None
        self._validated = False

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        check_data(cfg)
        if not kwargs.get("from_checkpoint"):
            check_buckets(cfg)
        task = super().setup_task(cfg, **kwargs)
        if task.cfg.upsample_primary == -1:
            # fairseq's default, by which it multiplies the first part of several
            task.cfg.upsample_primary = 1
        if kwargs.get("from_checkpoint"):
            # how its training was run says nothing of this process (hub, for example)
            task.cfg.cpu_bf16 = False
        return task

    def load_dataset(self, split, *args, **kwargs):
        try:
            super().load_dataset(split, *args, **kwargs)
        except FileNotFoundError as error:
            if self.save_dir is None:  # no training: other tools name their own option
                raise
            raise UserError(
                f"data {self.cfg.data}: {error}; make it with fairseq-preprocess"
            ) from None
        if self._teacher is not None and split == self.cfg.train_subset:
            limits = self.max_positions()
            check_lengths(self._teacher, self.datasets[split], limits, self.cfg)

    # -- building -----------------------------------------------------------

    def build_model(self, cfg, from_checkpoint=False):
        if from_checkpoint:
            # options of the run that made the checkpoint do not bind this one, nor are
            # the embeddings that it began with read once more
            for name in EMBEDDING_FILES:
                if getattr(cfg, name, None):
                    setattr(cfg, name, None)
            if self.cfg.adapter_path:
                cfg = adaptable_arguments(cfg)
            return self._with_adapters(super().build_model(cfg, from_checkpoint))
        check_options(self.cfg)
        check_run(self.cfg, cfg, self.plan)
        self.save_dir = getattr(cfg, "save_dir", None)
        state = None
        if self.cfg.pretrained_model:
            state = load_checkpoint(
                self.cfg.pretrained_model,
                "--pretrained-model",
                self.cfg.trust_checkpoint,
            )
            what = f"--pretrained-model {self.cfg.pretrained_model}"
            check_dictionaries(state, self.source_dictionary, self.target_dictionary, what)
            inherit_layernorm(cfg, state, self.cfg.pretrained_model)
        model = super().build_model(cfg, from_checkpoint)
        self._check_model(model, cfg)
        if self.cfg.load_alignments and isinstance(model, SRPModel):
            model.decoder.layers[-1].gives_attention = True
        if state is not None:
            load_pretrained(model, cfg, state, self.cfg.pretrained_model)
        attn_kd = getattr(cfg, "attn_kd", 0)
        if getattr(cfg, "prob_kd", 0) or attn_kd:
            teacher = self.teacher(torch.device("cpu"))  # read before any work
            if attn_kd:
                check_attention(teacher, model, self.cfg, attn_kd)
        if self.cfg.adapter:
            adaptation.insert(model, self.cfg)
        if self.cfg.compression_rate < 1:
            self._prepare_stage(model)
        if self.cfg.sparsity_config:
            self.weight_pruning = WeightPruning(
                self.cfg.sparsity_config, model, getattr(cfg, "seed", 1)
            )
        return model

    def take_run(self, run) -> None:
        """What ``build_model`` has from ``fairseq-train``, of a run of ``fairseq-hydra-train``."""
        check_run(self.cfg, run, self.plan)
        self.save_dir = run.save_dir

    def _check_model(self, model, cfg) -> None:
        """Refuse what needs this plug-in's own model with another ``--arch``."""
        if isinstance(model, SRPModel):
            return
        for option, given in (
            ("--pretrained-model", self.cfg.pretrained_model),
            ("--compression-rate", self.cfg.compression_rate < 1),
            ("--attn-kd", getattr(cfg, "attn_kd", 0)),
        ):
            if given:
                raise UserError(
                    f"{option}: needs an --arch of this plug-in (srp, srp_iwslt_de_en, "
                    f"srp_multi30k_de_en), not {getattr(cfg, 'arch', type(model).__name__)}; "
                    "for a model of fairseq's transformer srp, with its dimensions"
                )

    def _with_adapters(self, model):
        """Let the model take the adapters of --adapter-path when it has its weights."""
        path = self.cfg.adapter_path
        if path:
            what = f"--adapter-path {path}"
            if not isinstance(model, SRPModel):
                raise UserError(
                    f"{what}: the checkpoint is a {type(model).__name__}, adapters are of "
                    "Transformers; give the checkpoint that was adapted"
                )
            content = adaptation.read_adapters(path, "--adapter-path")
            model.after_loading = lambda m: adaptation.apply_adapters(m, content, what)
        return model

    @property
    def plan(self) -> StagePlan:
        return StagePlan(
            compression_rate=self.cfg.compression_rate,
            stage=self.cfg.pruning_stage,
            iterations=self.cfg.pruning_iter,
            period=self.cfg.pruning_period,
            warming_up=self.cfg.warming_up,
            decreasing=self.cfg.decreasing if self.cfg.srp else None,
            prune_heads=self.cfg.prune_heads,
            embedding_ratio=self.cfg.embedding_ratio,
            importance=str(self.cfg.importance),
            importance_norm=str(self.cfg.importance_norm),
            importance_per_example=self.cfg.importance_per_example,
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
        heads = self.cfg.prune_heads
        if heads and all(vo.heads == 1 for _, vo in attention_groups(channel_groups(model))):
            raise UserError(
                "--prune-heads: every attention module of --pretrained-model has one head, "
                "which stays; leave the option out"
            )
        self.stage = PruningStage(self.plan, model)
        with naming_options():
            self.stage.check()

    def get_batch_iterator(self, dataset, *args, epoch=1, **kwargs):
        """As in fairseq, with batches that do not depend on where a run was resumed.

        fairseq draws the batches of a whole run with the seed of the epoch in which
        the process started, so a resumed run would train on other batches.
        """
        known = dataset in self.dataset_to_epoch_iter
        # where every epoch has batches of its own, they are drawn with its seed
        drawn = epoch if kwargs.get("update_epoch_batch_itr") else 1
        iterator = super().get_batch_iterator(dataset, *args, epoch=drawn, **kwargs)
        if not known:
            iterator.epoch = max(epoch, 1)
            dataset.set_epoch(iterator.epoch)
        return iterator

    # -- distillation and precision ----------------------------------------------

    def check_teacher(self) -> None:
        """Refuse distillation without a teacher, before any work."""
        teacher_file(self.cfg)

    def teacher(self, device):
        """The unpruned model in evaluation mode, read from its file once."""
        if self._teacher is None:
            self._teacher = read_teacher(self)
        self._teacher = self._teacher.to(device)
        return self._teacher

    def forward_precision(self):
        """Context in which training and scoring run the model's forward pass."""
        if self.cfg.cpu_bf16:
            return torch.autocast("cpu", torch.bfloat16)
        return nullcontext()

    # -- translating ---------------------------------------------------------------

    def build_generator(
        self,
        models,
        args,
        seq_gen_cls=None,
        extra_gen_cls_kwargs=None,
        prefix_allowed_tokens_fn=None,
    ):
        """As in fairseq, with this plug-in's beam search unless told otherwise."""
        own = not self.cfg.fairseq_search and not getattr(args, "print_alignment", None)
        if seq_gen_cls is None and own:
            seq_gen_cls = FastSequenceGenerator
            extra_gen_cls_kwargs = {
                **(extra_gen_cls_kwargs or {}),
                "bfloat16": self.cfg.cpu_bf16,
                "sparse": self.cfg.sparse_inference,
            }
        return super().build_generator(
            models, args, seq_gen_cls, extra_gen_cls_kwargs, prefix_allowed_tokens_fn
        )

    def inference_step(self, generator, *args, **kwargs):
        own = isinstance(generator, FastSequenceGenerator)  # knows what to run in bfloat16
        with nullcontext() if own else self.forward_precision():
            return super().inference_step(generator, *args, **kwargs)

    # -- scoring -------------------------------------------------------------------

    def scoring_samples(self, split: str, seed: int, limits=None) -> Iterator[dict]:
        """Small batches of random training sentences, the same for any number of processes.

        Args:
            limits: longest source and target; longer pairs are left out, as in training.
        """
        dataset = self.datasets[split]
        order = np.random.default_rng(seed).permutation(len(dataset))
        order, _ = dataset.filter_indices_by_size(order, limits or self.max_positions())
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

    def score(
        self, model, criterion, split, seed, device, rank=0, world=1, measure=score_channels
    ) -> Scores:
        """Importance of every channel from scoring batches, dropout off.

        Args:
            rank, world: this process scores every ``world``-th batch; the sums
                are added up over processes.
            measure: ``importance.score`` or the like.
        """
        was_training = model.training
        name = str(self.cfg.importance)
        if IMPORTANCE[name].uses_relevance and is_half(model):
            model = copy.deepcopy(model).float()
        model.eval()

        def batches():
            limits = utils.resolve_max_positions(self.max_positions(), model.max_positions())
            samples = self.scoring_samples(split, seed, limits)
            for number, sample in enumerate(samples):
                if number % world == rank:
                    if device.type == "cuda":
                        sample = utils.move_to_cuda(sample, device)
                    yield self._scoring_batch(model, criterion, sample)

        def reduce(total):
            if world > 1:
                distributed_utils.all_reduce(
                    total, group=distributed_utils.get_data_parallel_group()
                )

        try:
            groups = channel_groups(model)
            return measure(
                groups,
                batches(),
                name,
                reduce,
                norm=str(self.cfg.importance_norm),
                per_example=self.cfg.importance_per_example,
                seed=seed,
            )
        finally:
            model.train(was_training)

    def _scoring_batch(self, model, criterion, sample) -> ScoringBatch:
        inputs, padding_idx = sample["net_input"], self.target_dictionary.pad()
        target = sample["target"].clone()
        # as in the loss, for what is not computed from it
        target[:, : getattr(criterion, "ignore_prefix_size", 0)] = padding_idx
        return ScoringBatch(
            loss=lambda: criterion(model, sample)[0],
            tokens=int(target.ne(padding_idx).sum()),
            relevance=lambda: gold_relevance(model, inputs, target, padding_idx),
        )

    # -- state and results -----------------------------------------------------------

    @property
    def _resumable(self):
        """What is saved in checkpoints and goes on from there, by name."""
        parts = {"stage": self.stage, "weight_pruning": self.weight_pruning}
        return {name: part for name, part in parts.items() if part is not None}

    def get_checkpoint_dict(self):
        state = {name: part.state_dict() for name, part in self._resumable.items()}
        return {type(self).__name__: state} if state else {}

    def set_checkpoint_dict(self, state):
        for name, part in self._resumable.items():
            if name in state:
                with naming_options():
                    part.load_state_dict(state[name])

    def _sparsity(self):
        pruning = self.weight_pruning
        return {} if pruning is None else {"sparsity": round(pruning.sparsity, 6)}

    def expect_validation(self) -> None:
        """A validation begins, of one subset after the other."""
        self._validated = False

    def post_validate(self, model, stats, agg):
        """Add this validation to ``results.csv`` in the run's folder.

        Of several subsets the first, by which the best checkpoint is chosen, too.
        """
        if self.save_dir is None or distributed_utils.get_global_rank() > 0:
            return
        if self._validated:
            return
        self._validated = True
        count = ParameterCount(model)
        row = {
            "num_updates": int(stats["num_updates"]),
            "parameters": count(count.current),
            "rate": round(count(count.current) / count(count.original), 6),
            "valid_loss": float(stats["loss"]),
            # a criterion without label smoothing has one loss
            "valid_nll_loss": float(stats.get("nll_loss", stats["loss"])),
            "bleu": float(stats["bleu"]) if "bleu" in stats else "",
            **self._sparsity(),
            **{f"width:{name}": width for name, width in count.current.items()},
        }
        append_result(os.path.join(self.save_dir, "results.csv"), row)
