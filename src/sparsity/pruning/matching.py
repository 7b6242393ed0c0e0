"""Which layers of a model a pruner owns."""

import logging
import re
from typing import Dict, Iterable, List, Optional, Tuple

from torch import nn

from ..errors import SparsityError
from .pruner import Layer
from .settings import PrunerSettings, PruningConfig

logger = logging.getLogger(__name__)

WRAPPERS = ("module", "_orig_mod")  # of DistributedDataParallel, of torch.compile


def find_layers(model: nn.Module, config: PruningConfig) -> List[List[Layer]]:
    """Layers of each pruner, in module order.

    A layer belongs to a pruner if its class or one above it is in
    ``prune_layer_type``, an expression of ``names`` is found in its name (or there is
    none), and none of ``exclude_names`` and ``not_to_prune_names`` is. A weight that
    several modules share counts once, and is left alone when one of them is excluded.
    Names are those in the model that DistributedDataParallel, torch.compile and the like
    may have wrapped. Layers without weights are left out. The log names expressions that
    are found in no name.

    Args:
        model: the model to prune.
        config: settings of all pruners.

    Raises:
        SparsityError: a pruner matches no layer, two match the same layer or weight,
            or a layer's weight cannot be pruned.
    """
    modules = _named_modules(model)
    users = _users(modules)
    parameters = {id(p): name for name, p in model.named_parameters()}
    owners: Dict[int, Tuple[int, str]] = {}
    owned = []
    for number, settings in enumerate(config.pruners, start=1):
        layers: List[Layer] = []
        for name, module in modules:
            if not _matches(settings, name, module):
                continue
            weight = getattr(module, "weight", None)
            if not isinstance(weight, nn.Parameter) or id(weight) not in parameters:
                raise SparsityError(
                    f"{config.label(number)}layer {name}: a {type(module).__name__} whose "
                    "weight is no parameter of the model; exclude it by name"
                )
            if any(_excluded(settings, user) for user in users[id(weight)]):
                continue
            problem = _problem(module, weight)
            if problem is not None:
                where = f"{config.label(number)}layer {name or type(module).__name__}"
                raise SparsityError(f"{where}: {problem}")
            if weight.numel() == 0:
                continue
            owner, first = owners.setdefault(id(weight), (number, name))
            if owner != number:
                other = "" if first == name else f" (as {first})"
                raise SparsityError(
                    f"layer {name}: pruners {owner}{other} and {number} both match it; "
                    "narrow names or exclude_names of one"
                )
            if first == name and all(layer.name != name for layer in layers):
                layers.append(Layer(name, parameters[id(weight)], module))
        if not layers:
            raise SparsityError(
                f"{config.label(number)}matches no layer: none of class "
                f"{', '.join(settings.prune_layer_type)} has a name that fits names "
                f"{list(settings.names)} and is not excluded; adapt names, exclude_names, "
                "not_to_prune_names or prune_layer_type"
            )
        owned.append(layers)
        _warn_of_unmatched(settings, config.label(number), modules)
    return owned


def _warn_of_unmatched(
    settings: PrunerSettings, label: str, modules: Iterable[Tuple[str, nn.Module]]
) -> None:
    """Warn of expressions that match no layer, such as mistyped ones."""
    for key in ("names", "exclude_names", "not_to_prune_names"):
        for text in getattr(settings, key):
            if not any(re.search(text, name) for name, _ in modules):
                logger.warning(f"{label}{key}: {text!r} is found in no layer's name")


def _named_modules(model: nn.Module) -> List[Tuple[str, nn.Module]]:
    """All modules by name, without the prefixes of wrappers."""
    while not model._parameters and [*model._modules] in [[name] for name in WRAPPERS]:
        (model,) = model.children()
    return [
        (".".join(part for part in name.split(".") if part != "_orig_mod"), module)
        for name, module in model.named_modules(remove_duplicate=False)
    ]


def _problem(module: nn.Module, weight: nn.Parameter) -> Optional[str]:
    """Why a layer's weight cannot be pruned, or None."""
    kind = type(module).__name__
    if weight.is_meta or isinstance(weight, nn.UninitializedParameter):
        return "its weight has no values yet; load them first"
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return (
            f"a {kind} holds inputs before outputs, which patterns do not know; exclude it by name"
        )
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
        return (
            f"{kind} with sparse=True has gradients that cannot be masked; make it with "
            "sparse=False or exclude it by name"
        )
    return None


def _users(modules: Iterable[Tuple[str, nn.Module]]) -> Dict[int, List[str]]:
    """Names of the modules that hold each parameter, by the parameter's id."""
    users: Dict[int, List[str]] = {}
    for name, module in modules:
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(name)
    return users


def _matches(settings: PrunerSettings, name: str, module: nn.Module) -> bool:
    classes = {above.__name__ for above in type(module).__mro__}
    if classes.isdisjoint(settings.prune_layer_type):
        return False
    if settings.names and not any(re.search(text, name) for text in settings.names):
        return False
    return not _excluded(settings, name)


def _excluded(settings: PrunerSettings, name: str) -> bool:
    expressions = (*settings.exclude_names, *settings.not_to_prune_names)
    return any(re.search(text, name) for text in expressions)
