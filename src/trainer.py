"""fairseq's trainer with a pruning stage in its loop."""

import logging
import sys
from contextlib import contextmanager
from functools import partial

import fairseq_cli.train
from fairseq import checkpoint_utils as fairseq_checkpoints
from fairseq.trainer import Trainer
from omegaconf import open_dict

from .acceleration.heap import HeapKeeper, limit_kept_shapes
from .checkpoint_utils import damage, previous_checkpoint, read_config
from .checkpoints.pretrained import check_widths, take_layernorm
from .checks.fairseq_options import check_seed_of_average, flat, warn_of_other_start
from .connectivity.budget import ParameterCount
from .connectivity.importance import score
from .errors import UserError
from .models.srp_base import SRPModel
from .optim.half_precision import prepare
from .optim.srp_adam import SRPAdam
from .optim.state import clear_moments, cut_optimizer
from .training import run_length
from .training.best_validation import (
    forget_best,
    forget_plateau,
    patience_state,
    restore_patience,
)
from .training.explained_errors import (
    EXPLAINED_OF_PARTS,
    check_norm,
    check_same_run,
    named,
    naming_options,
    refusing_checkpoint,
    refusing_divergence,
    warn_of_new_optimizer,
)

logger = logging.getLogger(__name__)


class SRPTrainer(Trainer):
    """Runs the task's pruning stage: scores, freezes, shrinks and cuts.

    Without a stage it trains as fairseq's trainer does. It reports a damaged
    last checkpoint and goes on from the one before.
    """

    def __init__(self, cfg, task, model, criterion, quantizer=None):
        super().__init__(cfg, task, model, criterion, quantizer)
        if getattr(task, "save_dir", "") is None:
            task.take_run(flat(cfg))
        self._heap = HeapKeeper() if self.device.type == "cpu" else None
        limit_kept_shapes()
        forget_best()
        self._epoch_itr = None
        optimization = cfg.optimization
        self._keep_best = cfg.checkpoint.keep_best_checkpoints
        self._stop_min_lr = optimization.stop_min_lr
        self._validate_interval = cfg.dataset.validate_interval
        # without a limit of its own, a pruning run ends with the last cut
        self._ends_with_cut = (
            self.stage is not None and not optimization.max_epoch and not optimization.max_update
        )
        if self._ends_with_cut:
            with open_dict(cfg):
                optimization.max_epoch = self.stage.plan.epochs
        self._defer()

    @property
    def stage(self):
        return getattr(self.task, "stage", None)

    @property
    def weight_pruning(self):
        return getattr(self.task, "weight_pruning", None)

    @property
    def _half_pruned(self) -> bool:
        stage, pruning = self.stage, self.weight_pruning
        return bool(stage and not stage.done or pruning and not pruning.finished)

    def _defer(self) -> None:
        """Let options wait for the pruning's end that are about what is left in the end.

        fairseq would keep half-pruned models for good, and a low rate would end the
        training with one.
        """
        half = self._half_pruned
        with open_dict(self.cfg):
            self.cfg.checkpoint.keep_best_checkpoints = 0 if half else self._keep_best
            self.cfg.optimization.stop_min_lr = -1 if half else self._stop_min_lr

    # -- the stage --------------------------------------------------------------

    def get_train_iterator(self, *args, **kwargs):
        with named(f"data {self.cfg.task.data}, --max-tokens {self.cfg.dataset.max_tokens}"):
            self._epoch_itr = super().get_train_iterator(*args, **kwargs)
        if self.cfg.dataset.curriculum:
            # a loader that is used again keeps the order of its first epoch
            self._epoch_itr.reuse_dataloader = False
        return self._epoch_itr

    def begin_epoch(self, epoch):
        super().begin_epoch(epoch)
        with open_dict(self.cfg):
            self.cfg.dataset.validate_interval = self._validate_interval
        self._check_limits(epoch)
        stage = self.stage
        if stage is None:
            return
        due = stage.due(epoch)
        if due:
            self._begin_iteration(epoch)
        if stage.done and self._ends_with_cut and not stage.plan.decreasing:
            self._end_after_shot(validate=due)

    def _end_after_shot(self, validate: bool) -> None:
        """End a one-shot run: validate and save the cut model, train no further."""
        cfg = self.cfg
        if validate and not cfg.dataset.disable_validation:
            subsets = cfg.dataset.valid_subset.split(",")
            losses = fairseq_cli.train.validate(cfg, self, self.task, self._epoch_itr, subsets)
        else:
            losses = [None]
        fairseq_checkpoints.save_checkpoint(cfg.checkpoint, self, self._epoch_itr, losses[0])
        logger.info("pruned in one shot; give --max-epoch to train on")
        raise SystemExit(0)

    def _begin_iteration(self, epoch: int) -> None:
        stage = self.stage
        steps = 0
        if stage.plan.decreasing:
            last = stage.last_epoch()
            steps = run_length.updates_in_epochs(self.cfg, self._epoch_itr, epoch, last)
        logger.info(f"scoring channels by {self.task.cfg.importance}")
        scores = self.task.score(
            self.get_model(),
            self.get_criterion(),
            self.cfg.dataset.train_subset,
            self.cfg.common.seed,
            self.device,
            rank=self.data_parallel_rank,
            world=self.data_parallel_world_size,
            measure=partial(score, by_head=stage.plan.prune_heads),
        )
        with naming_options():
            stage.begin(scores, steps)
        if stage.shrinking:
            logger.info(
                "selected "
                + ", ".join(f"{n}: {len(r)}" for n, r in stage.shrinking.items())
                + f"; shrinking over {steps} updates"
            )
            clear_moments(self.optimizer, stage.freezer)
        if stage.ready:
            self._cut()

    def _check_limits(self, epoch: int) -> None:
        """Refuse a limit that ends the training before its pruning does."""
        iterator, stage = self._epoch_itr, self.stage
        if iterator.iterations_in_epoch:
            return  # resumed within an epoch, at whose start this was asked
        run_length.check_has_updates(self.cfg, iterator, epoch)
        run = self.cfg, iterator, epoch, self.get_num_updates()
        if self.weight_pruning is not None:
            run_length.check_pruning_ends(self.weight_pruning, *run)
        # with shards later epochs have other numbers of updates
        if stage is not None and not stage.done and not self.task.has_sharded_data("train"):
            run_length.check_last_cut(stage.plan, *run)

    def train_step(self, samples, raise_oom=False):
        # of a share that ends with an empty batch fairseq forgets the number of tokens
        samples = [sample for sample in samples if sample] or samples
        pruning = self.weight_pruning
        steps = pruning.steps if pruning is not None else 0
        before = self.get_num_updates()
        output = self._stage_step(samples, raise_oom)
        # after an overflow fairseq repeats the step from inside it
        done = self.get_num_updates() > before
        if pruning is not None and done and pruning.steps == steps:
            pruning.after_step(self.optimizer)
        if self._heap is not None:
            self._heap.after_step()
        return output

    def _stage_step(self, samples, raise_oom):
        stage = self.stage
        if stage is None or not stage.shrinking:
            return super().train_step(samples, raise_oom)
        before, step = self.get_num_updates(), stage.step
        output = super().train_step(samples, raise_oom)
        if not stage.shrinking:
            return output  # after an overflow fairseq repeats the step from inside it
        stage.freezer.restore()
        if self.get_num_updates() > before and stage.step == step:
            stage.advance(self._epochs_ended())
        # skipped updates (overflow) must not push the cut beyond its epoch
        if (
            not stage.ready
            and self._epoch_itr.epoch >= stage.last_epoch()
            and self._epoch_itr.end_of_epoch()
        ):
            stage.finish_shrinking()
        if stage.ready:
            if isinstance(self.optimizer, SRPAdam):
                self.optimizer.unfreeze()
            self._cut()
        return output

    def _epochs_ended(self) -> int:
        """Epochs of the iteration's period that have ended with this update."""
        iterator, stage = self._epoch_itr, self.stage
        begun = iterator.epoch - (stage.last_epoch() - stage.plan.period)
        return min(max(begun - (not iterator.end_of_epoch()), 0), stage.plan.period)

    def clip_grad_norm(self, clip_norm):
        if self.stage is not None and self.stage.shrinking:
            if not self._optimizer_freezes():
                self.stage.freezer.mask_gradients()
        if self.weight_pruning is not None:
            self.weight_pruning.before_step(self.optimizer)
        with refusing_divergence():
            norm = super().clip_grad_norm(clip_norm)
        if not self.cfg.common.amp:  # which skips such an update
            check_norm(norm, self.get_num_updates() + 1, self.get_lr())
        return norm

    def _optimizer_freezes(self) -> bool:
        """Let the optimizer see to frozen weights, if nothing else touches weights."""
        if self.weight_pruning is not None or hasattr(self.model, "perform_slowmo"):
            return False
        return isinstance(self.optimizer, SRPAdam) and self.optimizer.freeze(self.stage.freezer)

    def begin_valid_epoch(self, epoch):
        stage, pruning = self.stage, self.weight_pruning
        outdated = pruning is not None and pruning.begin_validation()
        if stage is not None and not stage.done or outdated:
            # a half-pruned model is no candidate for best, nor a reason to stop
            self._forget_best()
        self._defer()
        super().begin_valid_epoch(epoch)
        if hasattr(self.task, "expect_validation"):
            self.task.expect_validation()

    def lr_step(self, epoch, val_loss=None):
        self._defer()
        return super().lr_step(epoch, val_loss)

    def _forget_best(self) -> None:
        forget_best()
        forget_plateau(self.lr_scheduler)

    def _cut(self) -> None:
        count = ParameterCount(self.get_model())
        before = count(count.current)
        cuts = self.stage.cut()
        cut_optimizer(self.optimizer, cuts, self._rebuild_optimizer)
        self._wrap_again()
        self._forget_best()
        if self.stage.done:  # what is best so far is a half-shrunk model
            with open_dict(self.cfg):
                self.cfg.dataset.validate_interval = 1
        count = ParameterCount(self.get_model())
        after, original = count(count.current), count(count.original)
        logger.info(
            f"cut: {before:,} -> {after:,} parameters, {after / original:.4f} of the "
            f"uncut {original:,}"
        )

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
        what = "--optimizer {}, --lr-scheduler {}".format(*names)
        with named(what, kinds=EXPLAINED_OF_PARTS):
            super()._build_optimizer()
        prepare(self._optimizer, self.cfg.common, self.device.type)

    def _build_ema(self):
        path = self.cfg.ema.ema_seed_model
        with named(f"--ema-seed-model {path}", kinds=(RuntimeError,)):
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
        written_with = None
        if fairseq_checkpoints.PathManager.isfile(filename):
            problem = damage(filename)
            if problem:
                other = previous_checkpoint(filename)
                if other is None:
                    raise UserError(
                        f"checkpoint {filename}: {problem}, and there is no other in "
                        "its folder; remove it to start anew"
                    )
                logger.error(f"checkpoint {filename}: {problem}; going on from {other}")
                filename = other
            written_with = read_config(filename)
            if isinstance(self.get_model(), SRPModel):
                check_widths(self.get_model(), written_with, filename)
        if self.data_parallel_world_size > 1:
            # fairseq sends it from one to all, as a pickle that torch no longer opens
            with open_dict(self.cfg):
                self.cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
        with refusing_checkpoint(filename, self.cfg):
            extra_state = super().load_checkpoint(filename, reset_optimizer, *args, **kwargs)
        if extra_state is not None and isinstance(self.get_model(), SRPModel):
            check_same_run(self, extra_state, filename)
            warn_of_other_start(self.cfg, written_with, filename)
            with open_dict(self.cfg):
                take_layernorm(self.get_model(), self.cfg.model, written_with, filename)
        if extra_state is not None and not reset_optimizer:
            warn_of_new_optimizer(self, filename)
        self._wrap_again()
        if extra_state is not None and not (reset_optimizer or kwargs.get("reset_meters")):
            restore_patience(extra_state)
        if self.weight_pruning is not None and extra_state and not reset_optimizer:
            # with --reset-dataloader fairseq doesn't give the task its state, but the
            # optimizer goes on, and so do masks
            state = extra_state.get(type(self.task).__name__, {})
            if "weight_pruning" in state:
                self.weight_pruning.load_state_dict(state["weight_pruning"])
        self._defer()
        return extra_state

    def save_checkpoint(self, filename, extra_state):
        return super().save_checkpoint(filename, {**extra_state, **patience_state()})

    def get_valid_iterator(self, subset, disable_iterator_cache=False):
        # fairseq drops a last batch that is no multiple of 8: losses and BLEU would
        # be of fewer sentences than there are
        with named(f"--valid-subset {subset}"), self._batch_size_multiple(1):
            return super().get_valid_iterator(subset, disable_iterator_cache)

    @contextmanager
    def _batch_size_multiple(self, multiple: int):
        dataset = self.cfg.dataset
        before = dataset.required_batch_size_multiple
        with open_dict(self.cfg):
            dataset.required_batch_size_multiple = multiple
        try:
            yield
        finally:
            with open_dict(self.cfg):
                dataset.required_batch_size_multiple = before


def install() -> None:
    """Make ``fairseq-train`` use this trainer.

    fairseq has no option for it; its command looks the class up when it runs.
    """
    for module in (fairseq_cli.train, sys.modules.get("__main__")):
        if getattr(module, "Trainer", None) is Trainer:
            module.Trainer = SRPTrainer
