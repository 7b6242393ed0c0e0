"""Which kinds of pruning a run has: the one place that knows them by name."""

from typing import Any, Collection, Dict, List

from torch import nn

from ..checkpoints.pretrained import check_not_shrinking
from ..errors import UserError
from ..options import SRPTranslationConfig, prunes_channels
from .channel_pruning import ChannelPruning, stage_plan
from .pruning_run import PruningRun
from .speed_budget import MeasureFor, SpeedBudget
from .weight_pruning import WeightPruning


def build_pruning(
    cfg: SRPTranslationConfig, model: nn.Module, seed: int, measure_for: MeasureFor
) -> List[PruningRun]:
    """The pruning that the task's options ask for, over a model with its weights.

    Args:
        seed: of random scores.
        measure_for: times candidates for ``--speed-up``.

    Raises:
        UserError: the options do not fit the model.
    """
    runs: List[PruningRun] = []
    if prunes_channels(cfg):
        budget = None if cfg.speed_up is None else SpeedBudget(cfg, measure_for)
        runs.append(ChannelPruning(stage_plan(cfg), model, budget))
    if cfg.sparsity_config:
        runs.append(WeightPruning(cfg.sparsity_config, model, seed))
    return runs


def check_goes_on(
    runs: Collection[PruningRun],
    model: nn.Module,
    saved: Dict[str, Any],
    path: str,
    anew: bool,
) -> None:
    """Refuse to go on from a checkpoint whose run pruned, without that pruning.

    Args:
        runs: the pruning of the run that goes on.
        model: with the checkpoint's weights.
        saved: states in the checkpoint, by name.
        path: its file.
        anew: whether nothing but weights is taken, as by ``--finetune-from-model``.

    Raises:
        UserError: names the file and what to do.
    """
    names = {run.name for run in runs}
    if ChannelPruning.name not in names:
        check_not_shrinking(model, f"checkpoint {path}")
    if WeightPruning.name in saved and WeightPruning.name not in names and not anew:
        raise UserError(
            f"checkpoint {path}: its run removes weights; give its --sparsity-config again to "
            "go on, or start anew with the weights: --pretrained-model, another --save-dir"
        )
