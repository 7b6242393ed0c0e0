"""One pruner: its layers, masks, scores and schedule."""

from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from ..errors import SparsityError
from .allocation import allocate, check_reachable
from .masking import Mask
from .patterns import parse_pattern
from .scores import Scores
from .settings import PrunerSettings

NEVER = -1
STATE = ("prune_type", "pattern", "seed", "pruned_at", "layers", "masks", "scores")


def check_keys(state: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Refuse a state that lacks one of ``keys``."""
    for key in keys:
        if not isinstance(state, Mapping) or key not in state:
            raise SparsityError(f"the checkpoint's state of pruning has no {key!r}: it is damaged")


def _check_types(state: Mapping[str, Any]) -> None:
    """Refuse a pruner's state with anything but what :meth:`Pruner.state_dict` puts there."""
    kinds = {"seed": int, "layers": Mapping, "masks": Mapping, "scores": Mapping}
    wrong = [key for key, kind in kinds.items() if not isinstance(state[key], kind)]
    for key, kind in (("pruned_at", int), ("reached", (int, float))):
        if not isinstance(state.get(key), (kind, type(None))):
            wrong.append(key)
    for key in () if wrong else ("masks", "scores"):
        if not all(map(torch.is_tensor, state[key].values())):
            wrong.append(key)
    if wrong:
        raise SparsityError(f"the checkpoint's state of pruning is damaged: its {wrong[0]}")


class Layer(NamedTuple):
    """A layer that a pruner owns.

    Attributes:
        name: of the module.
        parameter: name of its weight in the model's ``named_parameters``.
        module: whose ``weight`` is pruned.
    """

    name: str
    parameter: str
    module: nn.Module

    @property
    def weight(self) -> nn.Parameter:
        return self.module.get_parameter("weight")


class Pruner:
    """What one ``!Pruner`` of a configuration does to its layers.

    Args:
        settings: checked settings.
        layers: the layers it owns, in module order.
        seed: decides what ``prune_type: random`` draws.

    Raises:
        SparsityError: the target cannot be reached under the caps of these layers.

    Attributes:
        settings: as given.
        layers: modules by layer name.
        pruned_at: step of the latest prune, -1 before the first.
        reached: target of the prunes so far.
    """

    def __init__(self, settings: PrunerSettings, layers: List[Layer], seed: int = 1):
        self._layers = {layer.name: layer for layer in layers}
        self.layers: Dict[str, nn.Module] = {x.name: x.module for x in layers}
        self.pattern = parse_pattern(settings.pattern)
        self.settings = settings
        self._masks: Dict[str, Mask] = {}
        self.pruned_at, self.reached = NEVER, 0.0
        self.scores = Scores(settings.prune_type, seed)
        self.check_settings(settings)

    def check_settings(self, settings: PrunerSettings) -> None:
        """Refuse ``settings`` whose target these layers cannot reach any more."""
        self._check_end(settings)
        shapes = []
        for layer in self._layers.values():
            try:
                shapes.append(self.pattern.matrix(layer.weight.detach()).shape)
            except SparsityError as error:
                raise SparsityError(f"layer {layer.name}: {error}") from None
            if layer.weight.is_complex() and self.scores.uses_gradients:
                raise SparsityError(
                    f"layer {layer.name}: its weight is complex, and prune_type "
                    f"{settings.prune_type} scores real ones; exclude it by name, or use "
                    "prune_type magnitude"
                )
        check_reachable(
            self.pattern,
            shapes,
            settings.target_sparsity,
            settings.max_sparsity_ratio_per_layer,
            settings.prune_domain,
        )

    def _check_end(self, settings: PrunerSettings) -> None:
        target = settings.target_sparsity
        if self.pruned_at >= settings.schedule.last and target > self.reached:
            raise SparsityError(
                f"target_sparsity: {target} is more than the {self.reached:g} that is "
                f"pruned, and end_step {settings.end_step} leaves no pruning after that of "
                f"step {self.pruned_at}; raise end_step too"
            )

    def reschedule(self, settings: PrunerSettings) -> None:
        """Go on with other ``settings`` of the same pattern, criterion and layers.

        They are some that :meth:`check_settings` does not refuse.
        """
        self.settings = settings

    @property
    def schedule(self):
        return self.settings.schedule

    @property
    def finished(self) -> bool:
        """Whether the last prune is done."""
        return self.pruned_at >= self.schedule.last

    def pending(self, step: int) -> bool:
        """Whether a prune planned at or before ``step`` is still to be done."""
        return self.schedule.latest(step) > self.pruned_at

    def ready(self, step: int) -> bool:
        """Whether a prune is pending at ``step`` and has the scores it needs."""
        if not self.pending(step):
            return False
        return not self.scores.uses_gradients or bool(self.scores.state)

    @property
    def elements(self) -> int:
        """Number of weights in its layers."""
        return sum(layer.weight.numel() for layer in self._layers.values())

    @property
    def masks(self) -> Dict[str, Tensor]:
        """Bool, shaped like the weight, True = kept, by layer name.

        Empty until something was removed.
        """
        return {name: mask.kept for name, mask in self._masks.items()}

    @property
    def removed(self) -> int:
        """Number of weights removed."""
        return sum(int((~mask).sum()) for mask in self.masks.values())

    @property
    def parameters(self) -> Dict[str, nn.Parameter]:
        """Its weights by parameter name."""
        return {layer.parameter: layer.weight for layer in self._layers.values()}

    @property
    def parameter_masks(self) -> Dict[str, Tensor]:
        """Its masks by parameter name."""
        return {self._layers[name].parameter: m for name, m in self.masks.items()}

    def same_weights(self, other: "Pruner") -> bool:
        """Whether the layers are those of ``other``, with the same parameters."""
        ours, theirs = self._layers, other._layers
        return ours.keys() == theirs.keys() and all(
            layer.weight is theirs[name].weight for name, layer in ours.items()
        )

    def uses_gradients_at(self, step: int) -> bool:
        """Whether its scores read the gradients of the step after ``step``."""
        if not self.scores.uses_gradients or self.finished:
            return False
        if self.scores.criterion.keeps:
            return True
        # the last prune may come right after this step
        return self.pending(step) or self.schedule.last == step + 1

    @torch.no_grad()
    def update_scores(self, gradient_scale: float = 1.0) -> None:
        """Count the gradients that the layers hold now."""
        for name, layer in self._layers.items():
            weight = layer.weight
            self.scores.update(name, weight, weight.grad, gradient_scale)

    @torch.no_grad()
    def prune(self, step: int) -> None:
        """Do the prunes planned at or before ``step``, at once.

        Raises:
            SparsityError: a layer had no gradient so far, or a score is not finite.
        """
        target = self.schedule.sparsity_after(step)
        elements = [layer.weight.numel() for layer in self._layers.values()]
        # a layer's least share grows with the target
        least = self.settings.min_sparsity_ratio_per_layer
        least *= target / self.settings.target_sparsity if target else 0
        if target > 0:
            matrices, scores, sizes, removed = [], [], [], []
            for name, layer in self._layers.items():
                matrix = self.pattern.matrix(self._finite_scores(name, layer))
                matrices.append(matrix)
                scores.append(self.pattern.block_scores(matrix, self.settings.reduce))
                sizes.append(self.pattern.block_sizes(matrix.shape))
                removed.append(self._removed_blocks(name, scores[-1]))
            chosen = allocate(
                scores,
                sizes,
                removed,
                elements,
                target,
                self.settings.max_sparsity_ratio_per_layer,
                self.settings.prune_domain,
                least,
            )
            del scores, removed
            for (name, layer), matrix, blocks in zip(self._layers.items(), matrices, chosen):
                if name not in self._masks or bool(blocks.any()):
                    self._remove(name, layer, self.pattern.expand(blocks, matrix))
        self.pruned_at, self.reached = step, max(self.reached, target)
        self.scores.forget(everything=self.finished)

    def _finite_scores(self, name: str, layer: Layer) -> Tensor:
        scores = self.scores.scores(name, layer.weight)
        if scores is None:
            raise SparsityError(
                f"layer {name}: prune_type {self.settings.prune_type} needs a gradient of "
                "its weight and there was none; unfreeze it, exclude it by name, or use "
                "prune_type magnitude"
            )
        low, high = torch.aminmax(scores)
        if not bool(torch.isfinite(high - low)):
            raise SparsityError(
                f"layer {name}: its {self.settings.prune_type} scores are not all finite, "
                "so its weights or gradients are not; lower the learning rate"
            )
        return scores

    def _removed_blocks(self, name: str, like: Tensor) -> Tensor:
        mask = self._masks.get(name)
        if mask is None:
            return torch.zeros_like(like, dtype=torch.bool)
        return self.pattern.removed_blocks(self.pattern.matrix(mask.kept.to(like.device)))

    def _remove(self, name: str, layer: Layer, kept: Tensor) -> None:
        mask = self.pattern.tensor(kept, layer.weight.shape).contiguous()
        if name in self._masks:
            mask &= self._masks[name].kept.to(mask.device)
        self._masks[name] = Mask(mask)

    def mask_weights(self) -> None:
        """Zero what was removed."""
        for name, mask in self._masks.items():
            mask.apply(self._layers[name].weight)

    def mask_gradients(self) -> None:
        """Zero the gradients of what was removed."""
        for name, mask in self._masks.items():
            gradient = self._layers[name].weight.grad
            if gradient is not None:
                mask.apply(gradient)

    def mask_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero the optimizer's moments of what was removed."""
        for name, mask in self._masks.items():
            weight = self._layers[name].weight
            for value in optimizer.state.get(weight, {}).values():
                if torch.is_tensor(value) and value.shape == weight.shape:
                    mask.apply(value)

    def state_dict(self) -> Dict[str, Any]:
        """Masks, scores and position; plain containers and tensors only."""
        return {
            "prune_type": self.settings.prune_type,
            "pattern": self.settings.pattern,
            "seed": self.scores.seed,
            "pruned_at": self.pruned_at,
            "reached": self.reached,
            "layers": {n: list(x.weight.shape) for n, x in self._layers.items()},
            "masks": self.masks,  # never written to, only replaced
            "scores": {n: s.detach().clone() for n, s in self.scores.state.items()},
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state of another criterion, pattern or model, or a damaged one."""
        check_keys(state, STATE)
        _check_types(state)
        for key in ("prune_type", "pattern"):
            if state[key] != getattr(self.settings, key):
                raise SparsityError(
                    f"{key}: the checkpoint was pruned with {state[key]!r}, the "
                    f"configuration says {getattr(self.settings, key)!r}; use the same"
                )
        shapes = {n: list(x.weight.shape) for n, x in self._layers.items()}
        for name in [*shapes, *state["layers"]]:
            ours, theirs = shapes.get(name), state["layers"].get(name)
            if ours != theirs:
                raise SparsityError(
                    f"layer {name}: the checkpoint's pruner has it with shape {theirs}, "
                    f"this one with {ours}; use the same model and configuration"
                )
        for kind in ("masks", "scores"):
            for name, tensor in state[kind].items():
                if list(tensor.shape) != shapes.get(name):
                    raise SparsityError(
                        f"layer {name}: the checkpoint's {kind} have shape "
                        f"{list(tensor.shape)}, its weight {shapes.get(name)}; the state "
                        "is damaged"
                    )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state`` was taken that :meth:`check_state` does not refuse.

        Raises:
            SparsityError: the target was changed to one that is not reached any more.
        """
        self._masks = {}
        for name, mask in state["masks"].items():
            self._masks[name] = Mask(mask.to(self._layers[name].weight.device, torch.bool))
        self.scores.seed = state["seed"]
        self.scores.state = {n: s.detach().clone() for n, s in state["scores"].items()}
        self.pruned_at = state["pruned_at"]
        # states of before this was kept are of the same target
        self.reached = state.get("reached", self.schedule.sparsity_after(self.pruned_at))
        self._check_end(self.settings)
