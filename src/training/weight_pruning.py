"""Weight-level pruning inside fairseq's training: ``--sparsity-config``."""

import logging
from contextlib import contextmanager
from typing import Any, Dict

import torch
from fairseq.logging import metrics
from fairseq.optim import FairseqOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer
from fairseq.trainer import Trainer
from torch import nn

from ..errors import UserError
from ..optim.state import memory
from ..sparsity import Pruning, SparsityError
from . import run_length
from .pruning_run import PruningRun

logger = logging.getLogger(__name__)


def gradient_scale(optimizer: FairseqOptimizer) -> float:
    """The factor between the parameters' gradients and the true ones before the step.

    Half-precision optimizers undo the loss scale and divide by the number of tokens
    in their float32 copies, or in the step itself.
    """
    factor = getattr(optimizer, "_multiply_factor", 1.0)
    scaler = getattr(optimizer, "_grad_scaler", None)  # --amp
    return float(factor) / (scaler.get_scale() if scaler is not None else 1.0)


class WeightPruning(PruningRun):
    """Runs the pruners of a configuration over a model that fairseq trains.

    Args:
        path: file of the configuration.
        model: any model; what is pruned is decided by the configuration.
        seed: of the random scores.

    Raises:
        UserError: the configuration is wrong or does not fit the model.
    """

    name = "weight_pruning"

    def __init__(self, path: str, model: nn.Module, seed: int):
        self.path = path
        try:
            self.pruning = Pruning(path, seed=seed)
            self.pruning.model = model
            self.pruning.on_train_begin()
        except SparsityError as error:
            raise UserError(f"--sparsity-config {error}") from None
        self.sparsity = 0.0  # share of the pruners' weights that is removed
        self._validated = False  # whether there was a validation after the last pruning

    @property
    def steps(self) -> int:
        """Optimizer steps that were counted."""
        return self.pruning.step

    @property
    def unfinished(self) -> bool:
        return not self.pruning.finished

    def validation_is_stale(self) -> bool:
        """Whether earlier results are of another sparsity."""
        validated, self._validated = self._validated, self.pruning.finished
        return self.unfinished or not validated

    def begin_epoch(self, trainer: Trainer, epoch: int) -> None:
        done = trainer.get_num_updates()
        left, option = run_length.updates_left(trainer.cfg, trainer.epoch_itr, epoch, done)
        self.check_end(left, option)

    def check_end(self, left: float, option: str) -> None:
        """Refuse a training that ends before the last pruning.

        Args:
            left: updates to come; updates of an earlier dense run are no pruning steps.
            option: what ends the training after them.

        Raises:
            UserError: names the step and the option that ends the training.
        """
        updates = self.steps + left
        for pruner in self.pruning.pruners:
            schedule = pruner.schedule
            if updates < schedule.last and not pruner.finished:
                key, step = "end_step", schedule.end
                if updates < schedule.start:
                    key, step = "start_step", schedule.start
                raise UserError(
                    f"--sparsity-config {self.path}: {key} {step}: the last pruning comes "
                    f"after {schedule.last} updates with this file, {option} ends the "
                    f"training after {updates}; train longer or lower {key}"
                )

    @contextmanager
    def _noticing(self, optimizer: FairseqOptimizer):
        """Log what is pruned inside, and zero the optimizer's state of it."""
        before = [pruner.pruned_at for pruner in self.pruning.pruners]
        try:
            yield
        except SparsityError as error:
            raise UserError(f"--sparsity-config {self.path}: {error}") from None
        if before == [pruner.pruned_at for pruner in self.pruning.pruners]:
            return
        self._mask_memory(optimizer)
        old, self.sparsity = self.sparsity, self.pruning.sparsity
        logger.info(
            f"pruned weights after {self.steps} updates: sparsity {old:.4f} -> "
            f"{self.sparsity:.4f} (pattern {', '.join(self._patterns())})"
        )

    def _patterns(self):
        return dict.fromkeys(p.settings.pattern for p in self.pruning.pruners)

    def before_step(self, trainer: Trainer) -> None:
        """Score, prune if it is time, and mask the gradients."""
        with self._noticing(trainer.optimizer):
            self.pruning.on_before_optimizer_step(gradient_scale(trainer.optimizer))

    def after_step(self, trainer: Trainer, updated: bool) -> None:
        """Count the update; removed weights stay exactly zero."""
        if not updated:
            return
        with self._noticing(trainer.optimizer):
            self.pruning.on_after_optimizer_step()
        metrics.log_scalar("sparsity", self.sparsity, weight=0, round=4)

    @torch.no_grad()
    def _mask_memory(self, optimizer: FairseqOptimizer) -> None:
        """Zero what the optimizer keeps of removed weights.

        Their gradients are zero from now on, so it stays zero.
        """
        if not isinstance(optimizer, FP16Optimizer):
            self.pruning.mask_optimizer(optimizer.optimizer)
            return
        parameters = dict(self.pruning.model.named_parameters())
        masks = {id(parameters[n]): mask for n, mask in self.pruning.masks.items()}
        for parameter, _, view in memory(optimizer):
            if id(parameter) in masks:
                view.masked_fill_(~masks[id(parameter)], 0)

    def results(self) -> Dict[str, Any]:
        return {"sparsity": round(self.sparsity, 6)}

    def state_dict(self) -> Dict[str, Any]:
        return {**self.pruning.state_dict(), "validated": self._validated}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Resume from a run's state.

        Raises:
            UserError: the configuration was changed since.
        """
        try:
            self.pruning.load_state_dict(state)
        except SparsityError as error:
            raise UserError(
                f"--sparsity-config {self.path}: does not fit the run to go on with "
                f"({error}); use its configuration or another --save-dir"
            ) from None
        self.sparsity = self.pruning.sparsity
        self._validated = bool(state.get("validated"))

    def resume_optimizer(self, saved: Dict[str, Any]) -> None:
        self.load_state_dict(saved)  # the optimizer goes on, and so do masks
