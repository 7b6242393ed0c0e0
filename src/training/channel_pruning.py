"""A pruning stage inside fairseq's training: ``--compression-rate``."""

import logging
from collections import defaultdict
from typing import Any, Dict, Optional

import fairseq_cli.train
from fairseq import checkpoint_utils as fairseq_checkpoints
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import open_dict
from torch import nn

from ..connectivity.budget import ParameterCount
from ..connectivity.groups import attention_groups, channel_groups
from ..connectivity.stage import PruningStage, StagePlan
from ..errors import UserError
from ..optim.srp_adam import SRPAdam
from ..optim.state import clear_moments
from ..options import SRPTranslationConfig, importance_of_widths
from . import run_length
from .channel_scores import score_model
from .explained_errors import naming_options
from .pruning_run import PruningRun
from .speed_budget import SpeedBudget

logger = logging.getLogger(__name__)


def stage_plan(cfg: SRPTranslationConfig) -> StagePlan:
    """The stage that the task's options ask for."""
    return StagePlan(
        compression_rate=cfg.compression_rate,
        stage=cfg.pruning_stage,
        iterations=cfg.pruning_iter,
        period=cfg.pruning_period,
        warming_up=cfg.warming_up,
        decreasing=cfg.decreasing if cfg.srp else None,
        prune_heads=cfg.prune_heads,
        embedding_ratio=cfg.embedding_ratio,
        importance=importance_of_widths(cfg),
        importance_norm=str(cfg.importance_norm),
        importance_per_example=cfg.importance_per_example,
        layer_importance=str(cfg.importance or "ablation"),
        keep_encoder_layers=cfg.keep_encoder_layers,
        keep_decoder_layers=cfg.keep_decoder_layers,
    )


def check_stage_fits(plan: StagePlan, model: nn.Module) -> None:
    """Refuse a stage for which a model has no heads, warn where no stage 1 was.

    Raises:
        UserError: names the option and what to do.
    """
    groups = channel_groups(model)
    embeddings = [g for g in groups.values() if g.kind == "embedding"]
    if plan.stage == 2 and all(g.width == g.original_width for g in embeddings):
        logger.warning(
            "--pruning-stage 2: the embedding widths of --pretrained-model are "
            "uncut (no stage 1 made it): attention and feed-forward widths alone "
            "will be cut until --compression-rate is met"
        )
    if plan.prune_heads and all(vo.heads == 1 for _, vo in attention_groups(groups)):
        raise UserError(
            "--prune-heads: every attention module of --pretrained-model has one head, "
            "which stays; leave the option out"
        )


class ChannelPruning(PruningRun):
    """Scores, shrinks and cuts channels of a model that fairseq trains.

    Args:
        plan: what the options ask for.
        model: with the weights to prune.
        budget: chooses the plan's rate and numbers of layers when the first epoch begins.

    Raises:
        UserError: the model can't be pruned so.
    """

    name = "stage"

    def __init__(self, plan: StagePlan, model: nn.Module, budget: Optional[SpeedBudget] = None):
        check_stage_fits(plan, model)
        self.budget = budget
        self.stage = PruningStage(plan, model)
        if budget is None:
            self._check()
        # without a limit of its own, a pruning run ends with the last cut
        self._ends_with_cut = False
        self._validate_interval = 1

    def _check(self) -> None:
        with naming_options():
            self.stage.check()

    @property
    def unfinished(self) -> bool:
        return not self.stage.done

    def begin_run(self, cfg) -> None:
        self._validate_interval = cfg.dataset.validate_interval
        optimization = cfg.optimization
        self._ends_with_cut = not optimization.max_epoch and not optimization.max_update
        if self._ends_with_cut:
            with open_dict(cfg):
                optimization.max_epoch = self.stage.plan.epochs

    def resume(self, trainer: Trainer, saved: Optional[Dict[str, Any]], path: str) -> None:
        # with --reset-dataloader the stage begins with the weights that were loaded
        if saved is None and not trainer.cfg.checkpoint.reset_dataloader:
            asked = self.budget or f"--compression-rate {self.stage.plan.compression_rate:g}"
            raise UserError(
                f"checkpoint {path}: its run prunes no channels, {asked} can't go on with it; "
                "give another --save-dir, and the model to prune as --pretrained-model"
            )

    # -- epochs ---------------------------------------------------------------------

    def begin_epoch(self, trainer: Trainer, epoch: int) -> None:
        if self.budget is not None and self.budget.choice is None:
            plan = self.budget.choose(trainer, self.stage.plan)
            self.stage = PruningStage(plan, trainer.get_model())
            self._check()
        stage = self.stage
        with open_dict(trainer.cfg):
            trainer.cfg.dataset.validate_interval = self._validate_interval
        self._check_limits(trainer, epoch)
        due = stage.due(epoch)
        if due:
            self._begin_iteration(trainer, epoch)
        if stage.done and self._ends_with_cut and not stage.plan.decreasing:
            self._end_after_shot(trainer, validate=due)

    def _check_limits(self, trainer: Trainer, epoch: int) -> None:
        # with shards later epochs have other numbers of updates
        if self.unfinished and not trainer.task.has_sharded_data("train"):
            plan, done = self.stage.plan, trainer.get_num_updates()
            run_length.check_last_cut(plan, trainer.cfg, trainer.epoch_itr, epoch, done)

    def _begin_iteration(self, trainer: Trainer, epoch: int) -> None:
        stage, cfg = self.stage, trainer.cfg
        steps = 0
        if stage.plan.decreasing:
            last = stage.last_epoch()
            steps = run_length.updates_in_epochs(cfg, trainer.epoch_itr, epoch, last)
        logger.info(f"scoring channels by {' and '.join(stage.criteria)}")
        scores = score_model(
            trainer.task,
            trainer.get_model(),
            trainer.get_criterion(),
            cfg.dataset.train_subset,
            cfg.common.seed,
            trainer.device,
            rank=trainer.data_parallel_rank,
            world=trainer.data_parallel_world_size,
            measure=stage.measure,
        )
        with naming_options():
            stage.begin(scores, steps)
        if stage.shrinking:
            logger.info(
                "selected "
                + ", ".join(f"{n}: {len(r)}" for n, r in stage.shrinking.items())
                + f"; shrinking over {steps} updates"
            )
            clear_moments(trainer.optimizer, stage.freezer)
        if stage.ready:
            self.cut(trainer)

    def _end_after_shot(self, trainer: Trainer, validate: bool) -> None:
        """End a one-shot run: validate and save the cut model, train no further."""
        cfg, iterator = trainer.cfg, trainer.epoch_itr
        losses = [None]
        if validate and not cfg.dataset.disable_validation:
            subsets = cfg.dataset.valid_subset.split(",")
            losses = fairseq_cli.train.validate(cfg, trainer, trainer.task, iterator, subsets)
        fairseq_checkpoints.save_checkpoint(cfg.checkpoint, trainer, iterator, losses[0])
        logger.info("pruned in one shot; give --max-epoch to train on")
        raise SystemExit(0)

    # -- updates --------------------------------------------------------------------

    def before_step(self, trainer: Trainer) -> None:
        if self.stage.shrinking and not self._optimizer_freezes(trainer):
            self.stage.freezer.mask_gradients()

    def _optimizer_freezes(self, trainer: Trainer) -> bool:
        """Let the optimizer see to frozen weights, if nothing else touches weights."""
        optimizer = trainer.optimizer
        if len(trainer.pruning_runs) > 1 or hasattr(trainer.model, "perform_slowmo"):
            return False
        return isinstance(optimizer, SRPAdam) and optimizer.freeze(self.stage.freezer)

    def after_step(self, trainer: Trainer, updated: bool) -> None:
        self._shrink(trainer, updated)
        common = trainer.cfg.common
        # the log itself says it at each cut
        followed = common.tensorboard_logdir or common.wandb_project
        if followed and trainer.get_num_updates() % common.log_interval == 0:
            self._log_size(trainer.get_model())

    def _log_size(self, model: nn.Module) -> None:
        """Add parameters, connectivity and mean widths to the figures of the training."""
        count, widths = ParameterCount(model), defaultdict(list)
        for group in count.groups.values():
            widths[group.kind].append(group.width)
        metrics.log_scalar("parameters", count(count.current), weight=0)
        metrics.log_scalar("connectivity", self.stage.connectivity, weight=0, round=4)
        for kind, some in widths.items():
            metrics.log_scalar(f"width_{kind}", sum(some) / len(some), weight=0, round=1)

    def _shrink(self, trainer: Trainer, updated: bool) -> None:
        stage, iterator = self.stage, trainer.epoch_itr
        if not stage.shrinking:
            return
        stage.freezer.restore()
        if updated:
            stage.advance(self._epochs_ended(iterator))
        # skipped updates (overflow) must not push the cut beyond its epoch
        last = iterator.epoch >= stage.last_epoch() and iterator.end_of_epoch()
        if last and not stage.ready:
            stage.finish_shrinking()
        if stage.ready:
            if isinstance(trainer.optimizer, SRPAdam):
                trainer.optimizer.unfreeze()
            self.cut(trainer)

    def _epochs_ended(self, iterator) -> int:
        """Epochs of the iteration's period that have ended with this update."""
        period = self.stage.plan.period
        begun = iterator.epoch - (self.stage.last_epoch() - period)
        return min(max(begun - (not iterator.end_of_epoch()), 0), period)

    def cut(self, trainer: Trainer) -> None:
        """Cut the selected channels, out of the optimizer's state, too."""
        model = trainer.get_model()
        count = ParameterCount(model)
        before = count(count.current)
        trainer.fit_to_cut(self.stage.cut())
        if self.stage.done:  # what is best so far is a half-shrunk model
            with open_dict(trainer.cfg):
                trainer.cfg.dataset.validate_interval = 1
        count = ParameterCount(model)
        after, original = count(count.current), count.uncut
        logger.info(
            f"cut: {before:,} -> {after:,} parameters, {after / original:.4f} of the "
            f"uncut {original:,}"
        )

    # -- state ----------------------------------------------------------------------

    def results(self) -> Dict[str, Any]:
        return self.budget.results() if self.budget else {}

    def state_dict(self) -> Dict[str, Any]:
        speed = {"speed": self.budget.state_dict()} if self.budget else {}
        return {**self.stage.state_dict(), **speed}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        if self.budget is not None:
            self._load_choice(state)
        with naming_options():
            self.stage.load_state_dict(state)

    def _load_choice(self, state: Dict[str, Any]) -> None:
        if "speed" not in state:
            rate = state["plan"]["compression_rate"]
            raise UserError(
                f"{self.budget}: the stage to go on with in this folder has --compression-rate "
                f"{rate:g}; give that, or another --save-dir"
            )
        self.budget.load_state_dict(state["speed"])
        if self.budget.choice is not None:
            model = self.stage.model
            self.stage = PruningStage(self.budget.applied(self.stage.plan, model), model)
