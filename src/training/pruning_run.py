"""What prunes during training, as the trainer sees it."""

from abc import ABC, abstractmethod
from typing import Any, Dict, Optional

from fairseq.trainer import Trainer


class PruningRun(ABC):
    """One way of pruning inside fairseq's training loop.

    The task makes a list of them, the trainer walks it: it calls a method of each at
    the point of the loop that the method is named after. What a kind of pruning has
    nothing to do at it leaves out.
    """

    name: str  # of its state in checkpoints

    @property
    @abstractmethod
    def unfinished(self) -> bool:
        """Whether it has still to prune; until then no model is kept as the best."""

    def begin_run(self, cfg) -> None:
        """Complete the options of the run, before anything is loaded."""

    def resume(self, trainer: Trainer, saved: Optional[Dict[str, Any]], path: str) -> None:
        """Check that a checkpoint is of the same pruning; its weights are loaded by now.

        Args:
            saved: what :meth:`state_dict` gave to it, None if it has none.
            path: its file.

        Raises:
            UserError: its run did something else.
        """

    def resume_optimizer(self, saved: Dict[str, Any]) -> None:
        """Go on with what belongs to an optimizer's state that was loaded.

        It is so with ``--reset-dataloader``, too, with which fairseq leaves
        :meth:`load_state_dict` out.
        """

    def begin_epoch(self, trainer: Trainer, epoch: int) -> None:
        """Do what is due at the start of an epoch, be it one that is resumed within.

        Raises:
            UserError: a limit ends the training before its pruning.
        """

    def before_step(self, trainer: Trainer) -> None:
        """Do what is due when the gradients of an update are complete, not yet clipped."""

    def after_step(self, trainer: Trainer, updated: bool) -> None:
        """Do what is due after a step.

        Args:
            updated: whether it changed the weights; after an overflow it did not.
        """

    def fit_to_cut(self) -> None:
        """Go on with a model whose channels were just cut."""

    def validation_is_stale(self) -> bool:
        """Whether results so far are of another model than the validation that begins."""
        return self.unfinished

    def results(self) -> Dict[str, Any]:
        """Columns of ``results.csv`` after a validation."""
        return {}

    @abstractmethod
    def state_dict(self) -> Dict[str, Any]:
        """What a checkpoint must hold to go on from here exactly."""

    @abstractmethod
    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on where a run was.

        Raises:
            UserError: its options were others.
        """
