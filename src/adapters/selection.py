"""Which layers of a network are adapted, and whether they can be."""

from fnmatch import fnmatchcase
from typing import Any, Dict, Iterable, List, Optional, Sequence, Type, Union

from torch import nn

from .attention import SPLoPAMultiheadAttention, SPLoRAMultiheadAttention
from .block import SPLoPALinear
from .errors import AdapterError
from .layer import AdaptedLayer, attribute, parts
from .low_rank import (
    LowRankSettings,
    SPLoRAConv1d,
    SPLoRAConv2d,
    SPLoRAConv3d,
    SPLoRALinear,
)
from .prototypes import BlockSettings

Settings = Union[LowRankSettings, BlockSettings]
Patterns = Union[None, str, Sequence[str]]

CLASSES: Dict[str, Dict[Type[nn.Module], Type[AdaptedLayer]]] = {
    "SPLoRA": {
        c.plain_class: c
        for c in (
            SPLoRALinear,
            SPLoRAConv1d,
            SPLoRAConv2d,
            SPLoRAConv3d,
            SPLoRAMultiheadAttention,
        )
    },
    "SPLoPA": {c.plain_class: c for c in (SPLoPALinear, SPLoPAMultiheadAttention)},
}


def adapted_class(kind: str, plain: Type[nn.Module]) -> Optional[Type[AdaptedLayer]]:
    """What a layer of type ``plain`` becomes, None if that can't be.

    A subclass of ``nn.Linear`` that differs in the library alone says so by a
    static method ``product``, which stands for ``F.linear``; adapted layers use it
    as well and become that subclass again when they are fused.
    """
    if plain not in CLASSES[kind] and issubclass(plain, nn.Linear):
        if hasattr(plain, "product") and not issubclass(plain, AdaptedLayer):
            plain = nn.Linear
    return CLASSES[kind].get(plain)


def _patterns(option: str, patterns: Patterns) -> List[str]:
    names = _several(patterns, str)
    if names is None:
        raise AdapterError(f"{option} {patterns!r}: expected a name, a pattern or several")
    return names


def _several(value: Any, kind: type) -> Optional[list]:
    """A list of one, of several or (of None) of no values; None if one is of no ``kind``."""
    if value is None or isinstance(value, kind):
        return [] if value is None else [value]
    values = list(value) if isinstance(value, Iterable) else [value]
    return values if all(isinstance(v, kind) for v in values) else None


def _types(types: Optional[Sequence[Type[nn.Module]]], applicable: tuple) -> tuple:
    classes = _several(types, type)
    if classes is None:
        raise AdapterError(f"types {types!r}: expected classes, as [torch.nn.Linear]")
    return tuple(classes) or applicable


def select(
    network: nn.Module,
    kind: str,
    include: Patterns = None,
    exclude: Patterns = None,
    types: Optional[Sequence[Type[nn.Module]]] = None,
) -> Dict[str, nn.Module]:
    """The layers to adapt by name, each once.

    Raises:
        AdapterError: a pattern that matches nothing or leaves nothing out, no layer is
            left, or an argument that is none.
    """
    applicable = tuple(CLASSES[kind])
    adaptable = ", ".join(c.__name__ for c in applicable)
    include, exclude = _patterns("include", include), _patterns("exclude", exclude)
    types = _types(types, applicable)
    if not isinstance(network, nn.Module):
        raise AdapterError(f"a {type(network).__name__} is neither a layer nor a network")
    if isinstance(network, applicable) and (include or exclude):
        raise AdapterError("include and exclude name layers of a network; this is a layer")
    if isinstance(network, AdaptedLayer):
        raise AdapterError(f"{type(network).__name__} has an adapter already")
    names: Dict[int, List[str]] = {}
    modules: Dict[int, nn.Module] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
    inside = {
        id(child)
        for module in modules.values()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.children()
    }
    candidates = {
        key: module
        for key, module in modules.items()
        if isinstance(module, applicable) and key not in inside and isinstance(module, types)
    }
    for option, patterns, among in (
        ("include", include, candidates),
        ("exclude", exclude, modules),
    ):
        for pattern in patterns:
            if not any(fnmatchcase(n, pattern) for key in among for n in names[key]):
                raise AdapterError(
                    f"{option} pattern {pattern!r} matches no layer that {kind} adapts "
                    f"({adaptable})"
                )

    def matches(key, patterns):
        return any(fnmatchcase(n, p) for n in names[key] for p in patterns)

    selected = {
        names[key][0]: module
        for key, module in candidates.items()
        if (not include or matches(key, include)) and not matches(key, exclude)
    }
    if not selected:
        raise AdapterError(
            f"{type(network).__name__} has no layer to adapt; {kind} adapts {adaptable}"
        )
    layers = [name for key in candidates for name in names[key]]
    others = [name for key in modules if key not in candidates for name in names[key]]
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in layers):
            _check_apart(pattern, [n for n in others if fnmatchcase(n, pattern)], selected)
    return selected


def _check_apart(pattern: str, others: List[str], selected: Dict[str, nn.Module]) -> None:
    """Refuse a pattern of modules around or inside of layers: it leaves none of them out."""
    for other in others:
        for name in selected:
            if name.startswith(f"{other}.") or other.startswith(f"{name}."):
                better = f"{other}.*" if name.startswith(f"{other}.") else name
                raise AdapterError(
                    f"exclude pattern {pattern!r} matches {other}, but {name} is adapted; "
                    f"exclude {better!r}"
                )


def check(
    network: nn.Module,
    kind: str,
    settings: Dict[str, Settings],
    selected: Dict[str, nn.Module],
) -> None:
    """Raises AdapterError, with the layer's name, if one can't be adapted."""
    for name, layer in selected.items():
        try:
            _check_type(layer, kind)
            for part in parts(layer):
                weight = attribute(layer, part.weight)
                if not isinstance(weight, nn.Parameter):
                    raise AdapterError(f"its {part.weight} is computed (weight norm, pruning?)")
                if not weight.is_floating_point():
                    raise AdapterError(f"its {part.weight} is of type {weight.dtype}")
                bias = attribute(layer, part.bias)
                if bias is not None and not isinstance(bias, nn.Parameter):
                    raise AdapterError(f"its {part.bias} is computed (pruning?)")
                settings[name].check(part.weight_of(layer))
        except AdapterError as error:
            raise AdapterError(
                f"{kind} can't adapt {name or 'the layer'}: {error}; exclude it or change that"
            ) from None
    _check_ties(network, kind, selected)


def _check_type(layer: nn.Module, kind: str) -> None:
    if isinstance(layer, AdaptedLayer):
        raise AdapterError("it has an adapter already")
    if adapted_class(kind, type(layer)) is None:
        raise AdapterError(
            f"{type(layer).__module__}.{type(layer).__name__} is a subclass whose own "
            "behaviour would be lost"
        )


def _check_ties(network: nn.Module, kind: str, selected: Dict[str, nn.Module]) -> None:
    """A weight is adapted in all the places where it is used, or in none."""
    adapted = {id(layer) for layer in selected.values()}
    for layer in selected.values():
        if isinstance(layer, nn.MultiheadAttention):
            adapted.add(id(layer.out_proj))
    weights = {
        id(attribute(layer, part.weight)): name
        for name, layer in selected.items()
        for part in parts(layer)
    }
    for other_name, other in network.named_modules():
        for parameter in other._parameters.values():
            if id(parameter) in weights and id(other) not in adapted:
                name = weights[id(parameter)]
                raise AdapterError(
                    f"{kind} can't adapt {name}: it shares its weight with {other_name} "
                    f"({type(other).__name__}), which isn't adapted; exclude {name}"
                )
