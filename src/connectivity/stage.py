"""One pruning stage: score, select, shrink, cut, as often as it has iterations."""

import logging
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from .budget import ParameterCount, Widths, embedding_rate, iteration_rate, plan_widths
from .cut import Cuts, cut
from .errors import PruningError
from .freeze import Freezer
from .groups import ChannelGroup, channel_groups, shrinking_groups
from .importance import Scores
from .selection import select
from .shrink import connectivity_at

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StagePlan:
    """What the user asked for.

    Args:
        compression_rate: share of the uncut model's parameters to keep.
        stage: 0 all widths, 1 embedding widths, 2 the others.
        iterations: how often channels are scored and removed.
        period: epochs that one iteration lasts.
        warming_up: epochs before the first scoring.
        decreasing: schedule of the connectivity; None cuts at once.
        prune_heads: attention modules lose whole heads.
        embedding_ratio: embeddings keep so many times the share that other widths do.
        importance, importance_norm, importance_per_example: what ranks the channels.
    """

    compression_rate: float
    stage: int = 0
    iterations: int = 1
    period: int = 1
    warming_up: int = 0
    decreasing: Optional[str] = "sa"
    prune_heads: bool = False
    embedding_ratio: float = 1.0
    importance: str = "fisher"
    importance_norm: str = "none"
    importance_per_example: bool = False

    @property
    def epochs(self) -> int:
        """Epochs that a run must have for its last cut.

        Shrinking ends with an epoch; one shot is made at the start of one.
        """
        if self.decreasing:
            return self.warming_up + self.iterations * self.period
        return self.warming_up + (self.iterations - 1) * self.period + 1


class PruningStage:
    """State of a stage over a model.

    The caller scores when :meth:`due` says so, hands the scores to
    :meth:`begin`, masks gradients and restores frozen weights with ``freezer``,
    calls :meth:`advance` after every update and :meth:`cut` when ``ready``.
    All state is in :meth:`state_dict` and the model's buffers.
    """

    def __init__(self, plan: StagePlan, model: nn.Module):
        self.plan = plan
        self.model = model
        self.finished_iterations = 0
        # positions of the channels that shrink, by group; empty between iterations
        self.shrinking: Dict[str, Tensor] = {}
        self.step, self.steps = 0, 0
        self._freezer: Optional[Freezer] = None
        # the same, on the groups' devices
        self._shrinking_groups: List[Tuple[ChannelGroup, Tensor]] = []
        count = ParameterCount(model)
        # stage 1 narrows the embedding of whatever was cut elsewhere
        self.start_share = (
            embedding_rate(model, plan.embedding_ratio)
            if plan.stage == 1
            else count(count.current) / count(count.original)
        )

    @property
    def done(self) -> bool:
        return self.finished_iterations >= self.plan.iterations

    @property
    def ready(self) -> bool:
        """Whether the selected channels can be cut."""
        return bool(self.shrinking) and self.step >= self.steps

    def due(self, epoch: int) -> bool:
        """Whether an iteration starts with this epoch (1-based)."""
        if self.done or self.shrinking:
            return False
        return epoch > self.plan.warming_up + self.finished_iterations * self.plan.period

    def last_epoch(self) -> int:
        """The epoch at whose end the running iteration's shrinking ends."""
        return self.plan.warming_up + (self.finished_iterations + 1) * self.plan.period

    def target_rate(self) -> float:
        """Compression rate after the iteration that comes or runs."""
        share = self.plan.compression_rate / self.start_share
        return self.start_share * iteration_rate(
            min(1.0, share), self.finished_iterations + 1, self.plan.iterations
        )

    def _widths(self, rate: float) -> Widths:
        plan = self.plan
        return plan_widths(self.model, rate, plan.stage, plan.prune_heads, plan.embedding_ratio)

    def check(self) -> None:
        """Refuse a rate out of reach, ahead of any work.

        Raises:
            PruningError: names the least rate that can be met, or the one that is met already.
        """
        rate, groups = self.plan.compression_rate, channel_groups(self.model)
        widths = self._widths(rate)
        # a second stage may find that the first has left nothing to do
        if self.plan.stage != 2 and all(w >= groups[n].width for n, w in widths.items()):
            count = ParameterCount(self.model)
            share = count(count.current) / count(count.original)
            raise PruningError(
                f"$compression_rate {rate:g}: nothing is left to cut, the model has "
                f"{share:.4f} of its uncut parameters, from which the rate counts; give a "
                "lower one"
            )

    def begin(self, scores: Scores, steps: int) -> None:
        """Select channels; shrink them over ``steps`` updates (0: cut at once).

        Raises:
            PruningError: scores that are not finite or all 0, or a rate out of reach.
        """
        if not any(score.any() for score in scores.values()):
            raise PruningError(
                f"$importance {self.plan.importance}: every channel's is 0, the loss of the "
                "scoring batches has no gradient; see that $targets"
            )
        widths = self._widths(self.target_rate())
        keep = select(self.model, scores, widths, self.plan.prune_heads)
        groups = channel_groups(self.model)
        others = shrinking_groups(self.model)
        if others:
            raise PruningError(
                f"the channels of {others[0]} are shrinking already, in a stage of which "
                "nothing else is known; $load_stage"
            )
        self.shrinking = {}
        for name, kept in keep.items():
            gone = torch.ones(groups[name].width, dtype=torch.bool)
            gone[kept.cpu()] = False
            self.shrinking[name] = gone.nonzero().squeeze(1)
        self.step, self.steps = 0, steps
        self._freezer, self._shrinking_groups = None, []
        if not self.shrinking:
            logger.warning("nothing to prune: the model is as small as asked already")
            self.finished_iterations += 1

    @property
    def freezer(self) -> Optional[Freezer]:
        """Freezes the selected channels; None outside shrinking."""
        if self._freezer is None and self.shrinking:
            self._freezer = Freezer(self.model, self.shrinking)
        return self._freezer

    def advance(self, epochs: int = 0) -> None:
        """Count one update and shrink the connectivity of the selected channels.

        Args:
            epochs: epochs of the iteration's period that have ended.
        """
        self.shrink_to(self.step + 1, epochs)

    def finish_shrinking(self) -> None:
        """Set the selected connectivities to exactly 0, whatever updates are missing."""
        self.shrink_to(self.steps, self.plan.period)

    @torch.no_grad()
    def shrink_to(self, step: int, epochs: int = 0) -> None:
        """The same after ``step`` updates of the iteration."""
        self.step = step
        value = connectivity_at(
            self.plan.decreasing or "sa", step, self.steps, epochs, self.plan.period
        )
        if not self._shrinking_groups:
            groups = channel_groups(self.model)
            for name, positions in self.shrinking.items():
                device = groups[name].connectivity.device
                self._shrinking_groups.append((groups[name], positions.to(device)))
        for group, positions in self._shrinking_groups:
            group.shrink(positions, value)

    def cut(self) -> Cuts:
        """Remove the selected channels physically; their connectivity is 0.

        Returns:
            What was cut, for the optimizer's state.
        """
        self.finish_shrinking()
        groups = channel_groups(self.model)
        keep = {}
        for name, positions in self.shrinking.items():
            stays = torch.ones(groups[name].width, dtype=torch.bool)
            stays[positions] = False
            keep[name] = stays.nonzero().squeeze(1)
        cuts = cut(self.model, keep)
        self.shrinking, self._freezer, self._shrinking_groups = {}, None, []
        self.finished_iterations += 1
        return cuts

    def state_dict(self) -> Dict[str, Any]:
        return {
            "plan": asdict(self.plan),
            "finished_iterations": self.finished_iterations,
            "removed": self.shrinking,  # its name in the files that runs go on from
            "step": self.step,
            "steps": self.steps,
            "start_share": self.start_share,
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on where a stage was.

        Raises:
            PruningError: it is that of another plan.
        """
        asked = asdict(self.plan)
        for name, its in state.get("plan", asked).items():  # older states have no plan
            if asked.get(name) != its:
                given, saved = (
                    "$no_schedule" if value is None else value for value in (asked.get(name), its)
                )
                raise PruningError(f"${name} {given}: $stage_place has {saved}; $give_that")
        self.finished_iterations = state["finished_iterations"]
        self.shrinking = dict(state["removed"])
        self.step, self.steps = state["step"], state["steps"]
        self.start_share = state["start_share"]
        self._freezer, self._shrinking_groups = None, []
