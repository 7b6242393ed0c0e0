"""fairseq's translation task with pruning, distillation and adapters."""

import os
from contextlib import nullcontext
from typing import List, Optional

import torch
from fairseq import utils
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationTask

from ..checkpoint_utils import load_checkpoint
from ..checkpoints import adapters as adaptation
from ..checkpoints import dictionary_record
from ..checkpoints.pretrained import (
    adaptable_arguments,
    check_dictionaries,
    inherit_layernorm,
    load_pretrained,
)
from ..checks.data import check_buckets, check_data
from ..checks.data_files import check_set, read_dictionary
from ..checks.training import EMBEDDING_FILES, check_run, check_task_options
from ..errors import UserError
from ..evaluation.results import append_result, read_results, validation_row
from ..models.srp_base import SRPModel
from ..options import FOR_TRANSLATION, SRPTranslationConfig, kept_layers
from ..planning.in_training import measure_for
from ..sequence_generator import FastSequenceGenerator
from ..training.build_pruning import build_pruning
from ..training.channel_pruning import stage_plan
from ..training.explained_errors import explaining
from ..training.pruning_run import PruningRun
from ..training.teacher import check_attention, check_lengths, read_teacher, teacher_file


@register_task("SRPtranslation", dataclass=SRPTranslationConfig)
class SRPTranslationTask(TranslationTask):
    """Translation, with models that are pruned while they train.

    The task builds the model from ``--pretrained-model`` and what prunes it, serves
    the teacher and writes ``results.csv``; :class:`SRPTrainer` lets the pruning do its
    part inside fairseq's training loop.
    """

    options_for_translation = FOR_TRANSLATION  # which --help of a tool that translates shows

    def __init__(self, cfg, src_dict, tgt_dict):
        super().__init__(cfg, src_dict, tgt_dict)
        self.pruning_runs: List[PruningRun] = []
        self.save_dir: Optional[str] = None
        self._teacher = None
        self._validated = False

    @classmethod
    def load_dictionary(cls, filename):
        return read_dictionary(super().load_dictionary, filename)

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

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        folders = utils.split_paths(self.cfg.data)
        # as in fairseq: the training data may lie in several folders, one for each epoch
        folder = folders[(epoch - 1) % len(folders) if split == self.cfg.train_subset else 0]
        check_set(self, folder, split, "data")
        try:
            super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
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
            return self._rebuild_model(cfg)
        check_task_options(self.cfg)
        self.set_run_options(cfg)
        state, path = None, self.cfg.pretrained_model
        if path:
            state = load_checkpoint(path, "--pretrained-model", self.cfg.trust_checkpoint)
            check_dictionaries(state, self, f"--pretrained-model {path}")
            inherit_layernorm(cfg, state, path)
        model = super().build_model(cfg)
        self._check_model(model, cfg)
        if self.cfg.load_alignments and isinstance(model, SRPModel):
            for layer in model.decoder.depth.layers:  # whichever is the last one, after cuts, too
                layer.gives_attention = True
        if state is not None:
            load_pretrained(model, cfg, state, path)
        attn_kd = getattr(cfg, "attn_kd", 0)
        if getattr(cfg, "prob_kd", 0) or attn_kd:
            teacher = self.teacher(torch.device("cpu"))  # read before any work
            if attn_kd:
                check_attention(teacher, model, self.cfg, attn_kd)
        if self.cfg.adapter:
            adaptation.insert(model, self.cfg)
        seed = getattr(cfg, "seed", 1)
        self.pruning_runs = build_pruning(self.cfg, model, seed, measure_for)
        return model

    def build_criterion(self, cfg, from_checkpoint=False):
        with explaining(f"--criterion {cfg._name}"):
            return super().build_criterion(cfg, from_checkpoint)

    def set_run_options(self, run) -> None:
        """Check the options of the whole run, which the task's own don't hold.

        ``fairseq-train`` gives them to ``build_model``, ``fairseq-hydra-train`` to the
        trainer alone.
        """
        check_run(self.cfg, run, stage_plan(self.cfg))
        self.save_dir = getattr(run, "save_dir", None)
        if self.save_dir is not None:
            read_results(self._results)  # which every validation adds to

    @property
    def _results(self) -> str:
        return os.path.join(self.save_dir, "results.csv")

    def _rebuild_model(self, cfg):
        """The model of a checkpoint, for a tool that only reads it.

        Options of the run that made the checkpoint do not bind this one, nor are the
        embeddings that it began with read once more.
        """
        for name in EMBEDDING_FILES:
            if getattr(cfg, name, None):
                setattr(cfg, name, None)
        if self.cfg.adapter_path:
            cfg = adaptable_arguments(cfg)
        return self._with_adapters(super().build_model(cfg, from_checkpoint=True))

    def _check_model(self, model, cfg) -> None:
        """Refuse what another ``--arch`` than this plug-in's own can't do."""
        if isinstance(model, SRPModel):
            return
        criterion = getattr(cfg, "criterion", None)
        adaptive = getattr(getattr(model, "decoder", None), "adaptive_softmax", None)
        if adaptive is not None and criterion in ("srp", "label_smoothed_cross_entropy"):
            raise UserError(
                f"--criterion {criterion}: --adaptive-softmax-cutoff has no gradient by it; use "
                "--criterion adaptive_loss --ddp-backend legacy_ddp, or leave the cutoff out"
            )
        for option, given in (
            ("--pretrained-model", self.cfg.pretrained_model),
            ("--compression-rate", self.cfg.compression_rate < 1),
            ("--speed-up", self.cfg.speed_up is not None),
            *((option, given) for option, given in kept_layers(self.cfg).items()),
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
            origin = f"--adapter-path {path}"
            if not isinstance(model, SRPModel):
                raise UserError(
                    f"{origin}: the checkpoint is a {type(model).__name__}, adapters are of "
                    "Transformers; give the checkpoint that was adapted"
                )
            contents = [
                (adaptation.read_adapters(file, "--adapter-path"), weight, f"--adapter-path {file}")
                for file, weight in adaptation.adapter_files(path)
            ]
            for content, _, named in contents:
                dictionary_record.check(content, self, named)
            model.after_loading = lambda m: adaptation.apply_weighted_adapters(m, contents)
        return model

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

    # -- state and results -----------------------------------------------------------

    def get_checkpoint_dict(self):
        state = {run.name: run.state_dict() for run in self.pruning_runs}
        return {type(self).__name__: state} if state else {}

    def set_checkpoint_dict(self, state):
        for run in self.pruning_runs:
            if run.name in state:
                run.load_state_dict(state[run.name])

    def begin_validation(self) -> None:
        """Expect a validation of one subset after the other."""
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
        pruning = {k: v for run in self.pruning_runs for k, v in run.results().items()}
        row = validation_row(model, stats, pruning)
        append_result(self._results, row)
