"""One pruning stage: score, select, shrink, cut, as often as it has iterations."""

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from .budget import ParameterCount, Widths, embedding_rate, iteration_rate, plan_widths
from .cut import Cuts, cut
from .errors import PruningError
from .freeze import Freezer
from .groups import ChannelGroup, base_parameters, channel_groups, shrinking_groups
from .importance import score
from .layers import layer_groups, positions_without
from .scoring import Groups, Reduce, Scores
from .selection import Keep, select, select_layers
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
        layer_importance: what ranks whole layers.
        keep_encoder_layers, keep_decoder_layers: how many stay; None leaves all.
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
    layer_importance: str = "ablation"
    keep_encoder_layers: Optional[int] = None
    keep_decoder_layers: Optional[int] = None

    @property
    def layers(self) -> Dict[str, int]:
        """How many layers stay, by the name of their group, where some may go."""
        sides = {"encoder": self.keep_encoder_layers, "decoder": self.keep_decoder_layers}
        return {f"{side}.depth": number for side, number in sides.items() if number is not None}

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
            embedding_rate(model, plan.embedding_ratio) if plan.stage == 1 else count.share
        )
        self.start_layers = {name: count.groups[name].width for name in plan.layers}

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

    def target_layers(self) -> Dict[str, int]:
        """How many layers stay after the iteration that comes or runs, where some may go.

        Equally many go in each, the larger part first.
        """
        done = self.finished_iterations + 1
        return {
            name: start - math.ceil((start - self.plan.layers[name]) * done / self.plan.iterations)
            for name, start in self.start_layers.items()
        }

    def _widths(self, rate: float, layers: Mapping[str, Tensor]) -> Widths:
        plan = self.plan
        options = plan.stage, plan.prune_heads, plan.embedding_ratio, layers
        return plan_widths(self.model, rate, *options)

    def _largest_layers(self) -> Keep:
        """Positions of the largest layers, as many as stay in the end."""
        groups = layer_groups(channel_groups(self.model))
        sizes = {
            name: torch.tensor(
                [float(sum(p.numel() for p in base_parameters(x))) for x in groups[name].layers]
            )
            for name in self.plan.layers
        }
        return select_layers(groups, sizes, self.plan.layers)

    def check(self) -> None:
        """Refuse numbers of layers and a rate out of reach, ahead of any work.

        Raises:
            PruningError: names the layers that there are, the least or largest rate that can
                be met, or the one that is met already.
        """
        rate, groups = self.plan.compression_rate, channel_groups(self.model)
        for side in ("encoder", "decoder"):
            number, group = self.plan.layers.get(f"{side}.depth"), groups.get(f"{side}.depth")
            if number is not None and group is not None and number > group.width:
                raise PruningError(
                    f"$keep_{side}_layers {number}: the model has {group.width}; give at most "
                    "that many"
                )
        layers = self._largest_layers()
        most = ParameterCount(self.model, layers).share
        if layers and most * 1.005 < rate < 1:
            raise PruningError(
                f"$compression_rate {rate:g}: the layers that stay have at most {most:.4f} of "
                "the uncut parameters; give a lower one, or 1 to cut nothing but layers"
            )
        widths = self._widths(rate, layers)
        # a second stage may find that the first has left nothing to do
        done = all(w >= groups[n].width for n, w in widths.items()) and not layers
        if done and (self.plan.stage != 2 or rate == 1):
            share = ParameterCount(self.model).share
            if self.plan.layers:
                kept = " ".join(
                    f"$keep_{name.partition('.')[0]}_layers {number}"
                    for name, number in self.plan.layers.items()
                )
                raise PruningError(
                    f"{kept}: nothing is left to cut, the model has no more layers than that; "
                    "keep fewer, or give a lower $compression_rate"
                )
            raise PruningError(
                f"$compression_rate {rate:g}: nothing is left to cut, the model has "
                f"{share:.4f} of its uncut parameters, from which the rate counts; give a "
                "lower one"
            )

    @property
    def criteria(self) -> List[str]:
        """What ranks layers and what ranks other channels, of those that the plan cuts."""
        layers = [self.plan.layer_importance] if self.plan.layers else []
        widths = [self.plan.importance] if self.plan.compression_rate < 1 else []
        return list(dict.fromkeys(layers + widths))

    def measure(
        self, groups: Groups, batches: Iterable, criterion: str, reduce: Reduce, **options
    ) -> Scores:
        """Importance of what the iteration that comes may remove.

        Args:
            groups: all groups of the model.
            batches, criterion, reduce, options: see ``importance.score``; layers are ranked
                by the plan's own criterion.
        """
        batches, scores, numbers = list(batches), {}, self.target_layers()
        layers = {
            n: g for n, g in layer_groups(groups).items() if numbers.get(n, g.width) < g.width
        }
        if layers:
            kind = self.plan.layer_importance
            scores.update(score(layers, batches, kind, reduce, layers=numbers, **options))
        if self.plan.compression_rate < 1:
            others = {name: group for name, group in groups.items() if group.kind != "layer"}
            options["by_head"] = self.plan.prune_heads
            scores.update(score(others, batches, criterion, reduce, **options))
        return scores

    def begin(self, scores: Scores, steps: int) -> None:
        """Select channels; shrink them over ``steps`` updates (0: cut at once).

        Raises:
            PruningError: scores that are not finite or all 0, or a rate out of reach.
        """
        if scores and not any(values.any() for values in scores.values()):
            raise PruningError(
                f"$importance {self.plan.importance}: every channel's is 0, the loss of the "
                "scoring batches has no gradient; see that $targets"
            )
        groups = channel_groups(self.model)
        others = shrinking_groups(self.model)
        if others:
            raise PruningError(
                f"the channels of {others[0]} are shrinking already, in a stage of which "
                "nothing else is known; $load_stage"
            )
        layers = select_layers(groups, scores, self.target_layers())
        keep = dict(layers)
        if self.plan.compression_rate < 1:
            widths = self._widths(self.target_rate(), layers)
            keep.update(select(self.model, scores, widths, self.plan.prune_heads, layers))
        self.shrinking = {}
        for name, kept in keep.items():
            self.shrinking[name] = positions_without(groups[name], kept)
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

    @property
    def connectivity(self) -> float:
        """Of the selected channels, which have the same; 1 where none shrink."""
        for group, positions in self._shrinking_groups:
            if len(positions):
                return float(group.connectivity[positions[0]])
        return 1.0

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
        going = self.shrinking.items()
        cuts = cut(self.model, {n: positions_without(groups[n], gone) for n, gone in going})
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
            "start_layers": self.start_layers,
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on where a stage was.

        Raises:
            PruningError: it is that of another plan, or damaged.
        """
        self._check_state(state)
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
        self.start_layers = state.get("start_layers", {})
        self._freezer, self._shrinking_groups = None, []

    def _check_state(self, state: Dict[str, Any]) -> None:
        """Refuse a state that :meth:`state_dict` can't have given.

        Raises:
            PruningError: names the part.
        """
        kinds = {"finished_iterations": int, "step": int, "steps": int, "removed": dict}
        wrong = [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]
        wrong += [n for n in ("plan", "start_layers") if not isinstance(state.get(n, {}), dict)]
        if not isinstance(state.get("start_share"), (int, float)):
            wrong.append("start_share")
        groups = channel_groups(self.model)
        for name, positions in {} if wrong else state["removed"].items():
            valid = (
                name in groups and torch.is_tensor(positions) and not positions.is_floating_point()
            )
            if not (valid and ((0 <= positions) & (positions < groups[name].width)).all()):
                wrong.append("removed")
        if wrong:
            raise PruningError(f"$stage_place is damaged: its {wrong[0]} is none of a stage")
