"""Speed as the budget of a pruning run: ``--speed-up``."""

import logging
from dataclasses import replace
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer

from ..checks.speed import FAIRSEQ, UNCUT
from ..connectivity.stage import StagePlan
from ..errors import UserError
from ..options import SRPTranslationConfig
from ..planning.choice import choose
from ..planning.rows import Measure, Row

logger = logging.getLogger(__name__)

# What times candidates for a stage of the trainer's model in an engine, stock fairseq too if told.
MeasureFor = Callable[[Trainer, StagePlan, str, bool], Tuple[List[Row], Measure]]

# What a choice is, of what all processes get from the first.
CHOICE = ("encoder_layers", "decoder_layers", "rate", "parameters", "measured", "low", "high")
_WHOLE = ("encoder_layers", "decoder_layers", "parameters")


class SpeedBudget:
    """The rate and numbers of layers with which a model is so many times as fast.

    They are chosen when the first epoch begins, by the first process, and stand in the state:
    a run that goes on does not choose again.

    Args:
        cfg: the task's options.
        measure_for: times candidates.

    Attributes:
        choice: ``CHOICE`` by name, None until it is made.
    """

    def __init__(self, cfg: SRPTranslationConfig, measure_for: MeasureFor):
        names = ("speed_up", "speed_engine", "keep_encoder_layers", "keep_decoder_layers")
        self.asked: Dict[str, Any] = {name: getattr(cfg, name) for name in names}
        self.asked["speed_baseline"] = cfg.speed_baseline or UNCUT
        self._measure_for = measure_for
        self.choice: Optional[Dict[str, Any]] = None

    def __str__(self) -> str:
        return f"--speed-up {self.asked['speed_up']:g}"

    def choose(self, trainer: Trainer, plan: StagePlan) -> StagePlan:
        """Choose, in all processes alike.

        Args:
            plan: the stage, with the numbers of layers that are given.

        Returns:
            The stage that leaves the choice.

        Raises:
            UserError: nothing is fast enough, or the model is as it is.
        """
        numbers, error = torch.zeros(len(CHOICE), dtype=torch.float64), None
        if trainer.data_parallel_rank == 0:
            try:
                numbers = torch.tensor(self._chosen(trainer, plan), dtype=torch.float64)
            except Exception as problem:  # the other processes wait
                error = problem
        if trainer.data_parallel_world_size > 1:
            group = distributed_utils.get_data_parallel_group()
            numbers = numbers.to(trainer.device)
            distributed_utils.all_reduce(numbers, group=group)
        if error is not None:
            raise error
        if not numbers.any():
            raise UserError(f"{self}: the first process has found nothing, see its message")
        self.choice = dict(zip(CHOICE, numbers.tolist()))
        self.choice.update({name: int(self.choice[name]) for name in _WHOLE})
        return self.applied(plan, trainer.get_model())

    def _chosen(self, trainer: Trainer, plan: StagePlan) -> Tuple[float, ...]:
        speed_up, engine = self.asked["speed_up"], self.asked["speed_engine"]
        baseline = self.asked["speed_baseline"]
        rows, measure = self._measure_for(trainer, plan, engine, baseline == FAIRSEQ)
        chosen = choose(rows, measure, speed_up, baseline)
        logger.info(f"{self}: {chosen.reasons(speed_up)}")
        row = chosen.row
        return (*row.candidate.depths, row.candidate.rate, row.parameters, *row.times(baseline))

    def applied(self, plan: StagePlan, model) -> StagePlan:
        """The stage that leaves the choice."""
        kept = {}
        for side in ("encoder", "decoder"):
            number, name = self.choice[f"{side}_layers"], f"keep_{side}_layers"
            fewer = number < len(getattr(model, side).layers)
            kept[name] = number if fewer or self.asked[name] is not None else None
        return replace(plan, compression_rate=self.choice["rate"], **kept)

    # -- state and results --------------------------------------------------------------

    def results(self) -> Dict[str, Any]:
        """Columns of ``results.csv``."""
        choice = self.choice or dict.fromkeys(CHOICE, "")
        layers = f"{choice['encoder_layers']}+{choice['decoder_layers']}"
        return {
            "speed_up": self.asked["speed_up"],
            "speed_engine": self.asked["speed_engine"],
            "speed_baseline": self.asked["speed_baseline"],
            "planned_speed_up": choice["measured"] and round(choice["measured"], 3),
            "planned_rate": choice["rate"],
            "planned_layers": layers if self.choice else "",
        }

    def state_dict(self) -> Dict[str, Any]:
        return {"asked": self.asked, "choice": self.choice}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on with the choice that a run has made.

        Raises:
            UserError: it was asked for something else.
        """
        for name, saved in {"speed_baseline": UNCUT, **state["asked"]}.items():
            if self.asked[name] != saved:
                option = name.replace("_", "-")
                given, saved = ("none" if x is None else x for x in (self.asked[name], saved))
                raise UserError(
                    f"--{option} {given}: the stage to go on with in this folder has {saved}; "
                    "give that, or another --save-dir"
                )
        self.choice = state["choice"]
