"""fairseq's trainer with pruning in its loop."""

import logging
from contextlib import contextmanager
from typing import Any, Dict

from fairseq import checkpoint_utils as fairseq_checkpoints
from fairseq.trainer import Trainer
from omegaconf import open_dict

from .acceleration.heap import HeapKeeper, limit_kept_shapes
from .checkpoint_utils import comparing, read_config
from .checkpoints import dictionary_record
from .checkpoints.fallback import undamaged
from .checkpoints.pretrained import adopt_layernorm, check_dimensions
from .checks.fairseq_options import all_options, check_seed_of_average, warn_of_other_start
from .connectivity.cut import Cuts
from .models.srp_base import SRPModel
from .optim.half_precision import prepare
from .optim.state import cut_optimizer
from .training import run_length
from .training.best_validation import (
    forget_best,
    forget_plateau,
    patience_state,
    restore_patience,
)
from .training.build_pruning import check_goes_on
from .training.explained_errors import (
    EXPLAINED_OF_PARTS,
    check_norm,
    explaining,
    naming_batch_size,
    other_checkpoint,
    refusing_checkpoint,
    refusing_divergence,
    warn_of_new_optimizer,
)
from .training.kept_zeros import keep_zeros
from .training.processes import claim_folder, end_with_launcher, is_first

logger = logging.getLogger(__name__)


class SRPTrainer(Trainer):
    """Trains as fairseq's trainer does, and lets the task's pruning runs do their part.

    It reports a damaged last checkpoint and goes on from the one before.
    """

    def __init__(self, cfg, task, model, criterion, quantizer=None):
        if any(getattr(cfg.model, f"{side}_layerdrop", 0) for side in ("encoder", "decoder")):
            with open_dict(cfg):  # layers that one process drops have no gradient there
                cfg.distributed_training.find_unused_parameters = True
        end_with_launcher()
        self._folder = None  # the lock on --save-dir, from the start of a run to its end
        super().__init__(cfg, task, model, criterion, quantizer)
        if getattr(task, "save_dir", "") is None:
            task.set_run_options(all_options(cfg))
        self._heap = HeapKeeper() if self.device.type == "cpu" else None
        limit_kept_shapes()
        forget_best()
        self.epoch_itr = None  # over the training data
        self._step_ended = False
        self._keep_best = cfg.checkpoint.keep_best_checkpoints
        self._stop_min_lr = cfg.optimization.stop_min_lr
        for run in self.pruning_runs:
            run.begin_run(cfg)
        self._defer()

    @property
    def pruning_runs(self):
        """What prunes during this training, see :mod:`.training.pruning_run`."""
        return getattr(self.task, "pruning_runs", [])

    def _half_pruned(self) -> bool:
        return any(run.unfinished for run in self.pruning_runs)

    def _defer(self) -> None:
        """Let options wait for the pruning's end that are about what is left in the end.

        fairseq would keep half-pruned models for good, and a low rate would end the
        training with one.
        """
        half = self._half_pruned()
        with open_dict(self.cfg):
            self.cfg.checkpoint.keep_best_checkpoints = 0 if half else self._keep_best
            self.cfg.optimization.stop_min_lr = -1 if half else self._stop_min_lr

    # -- the loop -----------------------------------------------------------------

    def get_train_iterator(self, *args, **kwargs):
        with explaining(f"data {self.cfg.task.data}, --max-tokens {self.cfg.dataset.max_tokens}"):
            self.epoch_itr = super().get_train_iterator(*args, **kwargs)
        if self.cfg.dataset.curriculum:
            # a loader that is used again keeps the order of its first epoch
            self.epoch_itr.reuse_dataloader = False
        return self.epoch_itr

    def begin_epoch(self, epoch):
        super().begin_epoch(epoch)
        if not self.epoch_itr.iterations_in_epoch:
            run_length.check_has_updates(self.cfg, self.epoch_itr, epoch)
        if self._half_pruned():
            run_length.check_time(self.cfg, self._previous_training_time)
        for run in self.pruning_runs:
            run.begin_epoch(self, epoch)

    def train_step(self, samples, raise_oom=False):
        # of a share that ends with an empty batch fairseq forgets the number of tokens
        samples = [sample for sample in samples if sample] or samples
        before, self._step_ended = self.get_num_updates(), False
        with naming_batch_size(self.cfg, before + 1):
            output = super().train_step(samples, raise_oom)
        # after an overflow fairseq repeats the step from inside it
        if not self._step_ended:
            updated = self.get_num_updates() > before
            for run in self.pruning_runs:
                run.after_step(self, updated)
            self._step_ended = True
        if self._heap is not None:
            self._heap.after_step()
        return output

    def clip_grad_norm(self, clip_norm):
        for run in self.pruning_runs:
            run.before_step(self)
        with refusing_divergence():
            norm = super().clip_grad_norm(clip_norm)
        if not self.cfg.common.amp:  # which skips such an update
            check_norm(norm, self.get_num_updates() + 1, self.get_lr())
        return norm

    def begin_valid_epoch(self, epoch):
        stale = [run.validation_is_stale() for run in self.pruning_runs]  # each is asked
        if any(stale):
            # a half-pruned model is no candidate for best, nor a reason to stop
            self._forget_best()
        self._defer()
        super().begin_valid_epoch(epoch)
        if hasattr(self.task, "begin_validation"):
            self.task.begin_validation()

    def lr_step(self, epoch, val_loss=None):
        self._defer()
        return super().lr_step(epoch, val_loss)

    def _forget_best(self) -> None:
        forget_best()
        forget_plateau(self.lr_scheduler)

    # -- models that are cut --------------------------------------------------------

    def fit_to_cut(self, cuts: Cuts) -> None:
        """Let training go on with parameters that were cut."""
        cut_optimizer(self.optimizer, cuts, self._rebuild_optimizer)
        for run in self.pruning_runs:
            run.fit_to_cut()
        self._wrap_again()
        self._forget_best()

    def _wrap_again(self) -> None:
        """A distributed wrapper for a model that was cut: the old one's buckets don't fit.

        At once and in every process: fairseq makes it where it is first needed, which is
        in one process alone when a checkpoint is saved, and wrapping waits for the others.
        """
        if self.use_distributed_wrapper:
            self._wrapped_model = None
            self.model  # makes it

    def _build_optimizer(self):
        names = self.cfg.optimizer._name, self.cfg.lr_scheduler._name
        origin = "--optimizer {}, --lr-scheduler {}".format(*names)
        with explaining(origin, kinds=EXPLAINED_OF_PARTS):
            super()._build_optimizer()
        prepare(self._optimizer, self.cfg.common, self.device.type)

    def _build_ema(self):
        path = self.cfg.ema.ema_seed_model
        with explaining(f"--ema-seed-model {path}", kinds=(RuntimeError,)):
            super()._build_ema()
        if self._ema is not None:
            check_seed_of_average(self.get_model(), self._ema.get_model(), path)
            # which channels there are is no number to average, and ones must stay ones
            buffers = self.get_model().named_buffers(remove_duplicate=False)
            self._ema.skip_keys = {*self._ema.skip_keys, *(name for name, _ in buffers)}

    def _rebuild_optimizer(self):
        """A new optimizer over the same parameters, the learning rate going on."""
        schedule, rate = self.lr_scheduler.state_dict(), self.optimizer.get_lr()
        self._build_optimizer()
        self.lr_scheduler.load_state_dict(schedule)
        self.lr_step_update()
        self.optimizer.set_lr(rate)  # a schedule by validation loss has it nowhere else
        return self.optimizer

    # -- checkpoints and data ---------------------------------------------------------

    def load_checkpoint(self, filename, reset_optimizer=False, *args, **kwargs):
        if is_first():  # fairseq's training begins with this call, also where there is none
            self._folder = claim_folder(self.cfg.checkpoint.save_dir)
        written_with = None
        own_model = isinstance(self.get_model(), SRPModel)
        if fairseq_checkpoints.PathManager.isfile(filename):
            filename = undamaged(filename, self.cfg.checkpoint.save_dir)
            written_with = read_config(filename)
            if own_model:
                other = other_checkpoint(filename, self.cfg)
                check_dimensions(self.get_model(), written_with, filename, other)
        if self.data_parallel_world_size > 1:
            # fairseq sends it from one to all, as a pickle that torch no longer opens
            with open_dict(self.cfg):
                self.cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True

        def compare(state, path):
            begins = path == self.cfg.checkpoint.finetune_from_model
            dictionary_record.check(state, self.task, f"checkpoint {path}", other_direction=begins)

        with refusing_checkpoint(filename, self.cfg), comparing(compare):
            extra_state = super().load_checkpoint(filename, reset_optimizer, *args, **kwargs)
        self._wrap_again()
        if extra_state is not None:
            self._resume(extra_state, filename, reset_optimizer)
            if own_model:
                warn_of_other_start(self.cfg, written_with, filename)
                with open_dict(self.cfg):
                    adopt_layernorm(self.get_model(), self.cfg.model, written_with, filename)
            if not (reset_optimizer or kwargs.get("reset_meters")):
                restore_patience(extra_state)
        goes_on = extra_state is not None and self.get_num_updates()  # with its optimizer
        keep_zeros(self, self._saved(extra_state) if goes_on else None)
        self._defer()
        return extra_state

    def _saved(self, extra_state) -> Dict[str, Any]:
        """States of pruning runs in a checkpoint, by name."""
        return extra_state.get(type(self.task).__name__, {})

    def _resume(self, extra_state, filename: str, reset_optimizer: bool) -> None:
        """Let pruning go on with a checkpoint, or refuse one of another run."""
        saved = self._saved(extra_state)
        check_goes_on(self.pruning_runs, self.get_model(), saved, filename, reset_optimizer)
        for run in self.pruning_runs:
            run.resume(self, saved.get(run.name), filename)
        if reset_optimizer:
            return
        warn_of_new_optimizer(self, filename)
        for run in self.pruning_runs:
            if run.name in saved:
                run.resume_optimizer(saved[run.name])

    def save_checkpoint(self, filename, extra_state):
        limit = self.cfg.optimization.stop_time_hours
        if 0 < limit < self.cumulative_training_time() / 3600 and self._half_pruned():
            logger.warning(
                f"--stop-time-hours {limit:g}: ends the run before its pruning is done; the same "
                "command with a higher one goes on"
            )
        extra_state = {**extra_state, **patience_state()}
        extra_state.update(dictionary_record.describe_task(self.task))
        return super().save_checkpoint(filename, extra_state)

    def get_valid_iterator(self, subset, disable_iterator_cache=False):
        # fairseq drops a last batch that is no multiple of 8: losses and BLEU would
        # be of fewer sentences than there are
        with explaining(f"--valid-subset {subset}"), self._all_sentences():
            return super().get_valid_iterator(subset, disable_iterator_cache)

    @contextmanager
    def _all_sentences(self):
        dataset = self.cfg.dataset
        before = dataset.required_batch_size_multiple
        with open_dict(self.cfg):
            dataset.required_batch_size_multiple = 1
        try:
            yield
        finally:
            with open_dict(self.cfg):
                dataset.required_batch_size_multiple = before
