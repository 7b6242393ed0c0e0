"""Weight-level pruning inside any training loop: the Pytorch Pruner's hooks."""

import numbers
import os
from typing import Any, Dict, List, Mapping, Optional, Union

import torch
from torch import Tensor, nn

from ..errors import SparsityError
from ..execution.stored import check_model
from .config import load_config
from .matching import find_layers
from .pruner import Pruner, check_keys
from .settings import PruningConfig

VERSION = 1
# what decides which weights belong together, and cannot change once some are gone
FIXED = (
    "prune_type",
    "pattern",
    "prune_layer_type",
    "names",
    "exclude_names",
    "not_to_prune_names",
)


class Pruning:
    """Prunes a model while it is trained.

    Optimizer steps are counted, in :meth:`on_after_optimizer_step`; a batch whose
    gradients are only accumulated does not count. A prune planned at step s comes
    before the optimizer step after the s-th, when its gradients are there; the last
    one comes right after the s-th, so that training of ``end_step`` steps reaches the
    target. With a ``start_step`` that training never reaches nothing is pruned.

    Masks are a function of weights, gradients and seed, so that processes with equal
    gradients hold equal masks.

    Args:
        config: path of a YAML file, its content as a mapping, or what
            :func:`load_config` returned.
        seed: decides what ``prune_type: random`` removes.

    Raises:
        SparsityError: the configuration or the seed is not valid.

    Attributes:
        config: settings of all pruners.
        step: optimizer steps done.
        pruners: one :class:`Pruner` for each ``!Pruner``; empty without a model.
    """

    def __init__(self, config: Union[str, os.PathLike, Mapping, PruningConfig], seed: int = 1):
        self.config = load_config(config)
        if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
            raise SparsityError(f"seed: {seed!r} is not valid; give an int")
        self.seed: int = int(seed)
        self.step: int = 0
        self.pruners: List[Pruner] = []
        self._model: Optional[nn.Module] = None

    @property
    def model(self) -> Optional[nn.Module]:
        """The model to prune. Setting it finds the layers and checks all targets.

        Once training began it may be set again to the same model with something wrapped
        around it: masks and scores stay.

        Raises:
            SparsityError: a pruner matches no layer, two match the same, a target
                cannot be reached, or it is another model than that of the masks.
        """
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        check_model(model)
        pruners = self._build(model, self.config)
        if self._started:
            for old, new in zip(self.pruners, pruners):
                if not new.same_weights(old):
                    raise SparsityError(
                        "model: training began with another; make a new Pruning for this "
                        "one, load_state_dict() gives it the masks"
                    )
                new.load_state_dict(old.state_dict())
        self.pruners, self._model = pruners, model

    @property
    def _started(self) -> bool:
        return self.step > 0 or any(p.masks or p.scores.state for p in self.pruners)

    def _build(self, model: nn.Module, config: PruningConfig) -> List[Pruner]:
        layers_of_each = find_layers(model, config)
        pruners = []
        for number, (settings, layers) in enumerate(zip(config.pruners, layers_of_each), 1):
            try:
                pruners.append(Pruner(settings, layers, self.seed))
            except SparsityError as error:
                raise SparsityError(config.label(number) + str(error)) from None
        return pruners

    def update_items_for_all_pruners(self, **settings) -> None:
        """Change settings of all pruners, as ``start_step=…, end_step=…``.

        Raises:
            SparsityError: a key is unknown, a value is not valid, or it cannot change
                any more because something was pruned; or the target is higher and
                ``end_step`` leaves no prune to reach it. Nothing has changed then.
        """
        config = self.config.replace(**settings)
        if self._model is None:
            self.config = config
            return
        if not self._started:
            self.pruners = self._build(self._model, config)
        else:
            for old, new in zip(self.config.pruners, config.pruners):
                for key in FIXED:
                    if getattr(old, key) != getattr(new, key):
                        raise SparsityError(
                            f"{key}: cannot change once training began; change it before"
                        )
            for pruner, new in zip(self.pruners, config.pruners):
                pruner.check_settings(new)
            for pruner, new in zip(self.pruners, config.pruners):
                pruner.reschedule(new)
        self.config = config

    def on_train_begin(self) -> None:
        """Call before training, when the model is set and its state is loaded.

        Raises:
            SparsityError: there is no model, or a layer is frozen that is scored by
                its gradient.
        """
        if self._model is None:
            raise SparsityError("model: missing; set .model before on_train_begin()")
        for pruner in self.pruners:
            for name, weight in pruner.parameters.items():
                if pruner.scores.uses_gradients and not weight.requires_grad:
                    raise SparsityError(
                        f"{name}: is frozen, and prune_type {pruner.settings.prune_type} "
                        "needs its gradient; exclude it by name or use magnitude"
                    )
        self.mask_weights()

    def on_epoch_begin(self, epoch: int) -> None:
        """Does nothing; kept for the template. Pruning follows optimizer steps."""

    def on_step_begin(self, local_step: int) -> None:
        """Does nothing; kept for the template, which counts batches here."""

    def on_step_end(self) -> None:
        """Does nothing; :meth:`on_after_optimizer_step` does the work."""

    def on_epoch_end(self) -> None:
        """Does nothing; kept for the template. Pruning follows optimizer steps."""

    def on_before_eval(self) -> None:
        """Call before an evaluation: zeroes the removed weights once more."""
        self.mask_weights()

    def on_after_eval(self) -> None:
        """Does nothing; kept for the template."""

    def on_train_end(self) -> None:
        """Call after training: zeroes the removed weights once more."""
        self.mask_weights()

    @torch.no_grad()
    def on_before_optimizer_step(self, gradient_scale: float = 1.0) -> None:
        """Call when all gradients of an optimizer step are there.

        Updates the scores, prunes if it is time, masks weights and gradients. A step
        whose gradients are not finite adds nothing to the scores; a prune that needs
        them waits for the next step.

        Args:
            gradient_scale: what gradients are to be multiplied with, as 1/loss scale.

        Raises:
            SparsityError: a layer has no gradient, or weights are not finite.
        """
        readers = [p for p in self.pruners if p.uses_gradients_at(self.step)]
        finite = not readers or self._finite(readers)
        if finite:
            for pruner in readers:
                pruner.update_scores(gradient_scale)
        for pruner in self.pruners:
            if pruner.pending(self.step) and (finite or pruner not in readers):
                pruner.prune(self.step)
                pruner.mask_weights()
        self.mask_gradients()

    @torch.no_grad()
    def on_after_optimizer_step(self, optimizer: Optional[torch.optim.Optimizer] = None) -> None:
        """Call after every optimizer step: counts it and masks the weights again.

        Args:
            optimizer: its moments are masked too.
        """
        self.step += 1
        for pruner in self.pruners:
            if pruner.schedule.last == self.step and pruner.ready(self.step):
                pruner.prune(self.step)
                pruner.mask_gradients()
            pruner.scores.forget()
        self.mask_weights()
        if optimizer is not None:
            self.mask_optimizer(optimizer)

    @staticmethod
    def _finite(pruners: List[Pruner]) -> bool:
        gradients = [
            weight.grad
            for pruner in pruners
            for weight in pruner.parameters.values()
            if weight.grad is not None
        ]
        # one pass without memory: a sum is finite unless something in it is not
        sums = [gradient.sum(dtype=_wide(gradient)) for gradient in gradients]
        return not sums or bool(torch.stack([s.cpu() for s in sums]).isfinite().all())

    def mask_weights(self) -> None:
        """Zero the removed weights."""
        for pruner in self.pruners:
            pruner.mask_weights()

    def mask_gradients(self) -> None:
        """Zero the gradients of removed weights."""
        for pruner in self.pruners:
            pruner.mask_gradients()

    def mask_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero the moments of removed weights: state tensors shaped like the weight."""
        for pruner in self.pruners:
            pruner.mask_optimizer(optimizer)

    @property
    def masks(self) -> Dict[str, Tensor]:
        """Masks by parameter name, True = kept; of pruners that removed something."""
        return {k: v for pruner in self.pruners for k, v in pruner.parameter_masks.items()}

    @property
    def sparsity(self) -> float:
        """Share of the pruners' weights that is removed."""
        elements = sum(pruner.elements for pruner in self.pruners)
        return sum(pruner.removed for pruner in self.pruners) / max(1, elements)

    @property
    def finished(self) -> bool:
        """Whether all pruners have done their last prune."""
        return bool(self.pruners) and all(pruner.finished for pruner in self.pruners)

    def state_dict(self) -> Dict[str, Any]:
        """Everything needed to resume; readable with ``weights_only=True``."""
        return {
            "version": VERSION,
            "step": self.step,
            "pruners": [pruner.state_dict() for pruner in self.pruners],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state``; the model must be set.

        Raises:
            SparsityError: there is no model, the state is damaged or of another
                configuration or model, or its prunes are over below the target.
        """
        if self._model is None:
            raise SparsityError("model: missing; set .model before load_state_dict()")
        if not isinstance(state, Mapping) or state.get("version") != VERSION:
            raise SparsityError("the checkpoint's state of pruning is of another version")
        check_keys(state, ("step", "pruners"))
        parts = state["pruners"]
        if not isinstance(state["step"], int) or not isinstance(parts, (list, tuple)):
            raise SparsityError("the checkpoint's state of pruning is damaged")
        if len(parts) != len(self.pruners):
            raise SparsityError(
                f"pruners: the checkpoint was pruned with {len(parts)}, the "
                f"configuration has {len(self.pruners)}; use the same"
            )
        pairs = list(enumerate(zip(self.pruners, parts), 1))
        for action in (Pruner.check_state, Pruner.load_state_dict):
            for number, (pruner, part) in pairs:
                try:
                    action(pruner, part)
                except SparsityError as error:
                    raise SparsityError(self.config.label(number) + str(error)) from None
        self.step = state["step"]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
