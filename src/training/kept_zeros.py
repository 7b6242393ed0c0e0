"""Finetuning a sparse model: its zeros stay zeros, unless ``--release-zeros``."""

import logging
from typing import Any, Dict, List, Optional, Tuple

import torch
from fairseq.trainer import Trainer
from torch import nn

from ..checkpoints.zeros import count_zeros, is_sparse
from ..errors import UserError
from ..sparsity import Mask
from .pruning_run import PruningRun

logger = logging.getLogger(__name__)


class KeptZeros(PruningRun):
    """Keeps weights at zero that are zero when training begins.

    They are looked for once; an update costs a mask on gradients and on weights.

    Args:
        model: with its weights.
    """

    name = "kept_zeros"
    unfinished = False

    def __init__(self, model: nn.Module):
        self._model = model
        self.sparsity = 0.0  # of the weight matrices that have zeros
        self._masks: List[Tuple[nn.Parameter, Mask]] = []
        self.fit_to_cut()

    @torch.no_grad()
    def fit_to_cut(self) -> None:
        zeros = {name: count for name, count in count_zeros(self._model).items() if count}
        parameters = dict(self._model.named_parameters())
        learned = [parameters[name] for name in zeros if parameters[name].requires_grad]
        self._masks = [(weight, Mask(weight != 0)) for weight in learned]
        elements = sum(parameters[name].numel() for name in zeros)
        self.sparsity = sum(zeros.values()) / max(1, elements)

    def before_step(self, trainer: Trainer) -> None:
        for weight, mask in self._masks:
            if weight.grad is not None:
                mask.apply(weight.grad)

    def after_step(self, trainer: Trainer, updated: bool) -> None:
        for weight, mask in self._masks:
            mask.apply(weight)

    def results(self) -> Dict[str, Any]:
        return {"sparsity": round(self.sparsity, 6)}

    def state_dict(self) -> Dict[str, Any]:
        return {}  # the zeros are in the weights; that it is there says that they are kept

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        pass


def keep_zeros(trainer: Trainer, goes_on_from: Optional[Dict[str, Any]]) -> None:
    """Let a training keep the zeros of the model that it begins with.

    A run that goes on does as it did so far.

    Args:
        trainer: of the run, with the weights that it begins with.
        goes_on_from: states of the checkpoint whose optimizer it goes on with, by name;
            None where a run begins.

    Raises:
        UserError: weights are in no process as a whole.
    """
    task, model, cfg = trainer.task, trainer.get_model(), trainer.cfg
    options = task.cfg
    if getattr(options, "release_zeros", True) or options.sparsity_config or options.adapter:
        return  # another task's; these decide what becomes of zeros; nothing but adapters learns
    if not (is_sparse(model) if goes_on_from is None else KeptZeros.name in goes_on_from):
        return
    backend = cfg.distributed_training
    if backend.ddp_backend == "fully_sharded" or backend.zero_sharding == "os":
        raise UserError(
            "--ddp-backend fully_sharded, --zero-sharding os: the model has zeros to keep, which "
            "needs whole weights in every process; leave it out, or add --release-zeros"
        )
    run = KeptZeros(model)
    task.pruning_runs = [*task.pruning_runs, run]
    logger.info(
        f"weights that are zero stay zero (sparsity {run.sparsity:.4f}); --release-zeros lets "
        "them learn"
    )
