"""Which layers of a model a pruner owns."""

import re
from typing import Dict, List, Tuple

from torch import nn

from .config import PrunerSettings, PruningConfig
from .errors import SparsityError
from .pruner import Layer


def find_layers(model: nn.Module, config: PruningConfig) -> List[List[Layer]]:
    """Layers of each pruner, in module order.

    A layer belongs to a pruner if its class or one above it is in
    ``prune_layer_type``, an expression of ``names`` is found in its name (or there is
    none), and none of ``exclude_names`` and ``not_to_prune_names`` is. A weight that
    several modules share counts once, and is left alone when one of them is excluded.

    Args:
        model: the model to prune.
        config: settings of all pruners.

    Raises:
        SparsityError: a pruner matches no layer, two match the same layer or weight,
            or a layer's weight cannot be pruned.
    """
    users = _users(model)
    parameters = {id(p): name for name, p in model.named_parameters()}
    owners: Dict[int, Tuple[int, str]] = {}
    found = []
    for number, settings in enumerate(config.pruners, start=1):
        layers = []
        for name, module in model.named_modules(remove_duplicate=False):
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
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                raise SparsityError(
                    f"{config.label(number)}layer {name}: a {type(module).__name__} holds "
                    "inputs before outputs, which patterns do not know; exclude it by name"
                )
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
        found.append(layers)
    return found


def _users(model: nn.Module) -> Dict[int, List[str]]:
    """Names of the modules that hold each parameter, by the parameter's id."""
    users: Dict[int, List[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
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
