"""Which adapters a state dict holds, and insertion of the same into a network."""

from dataclasses import dataclass, field
from typing import Callable, Dict, List, Mapping, Optional, Set, Tuple, TypeVar

from torch import Tensor, nn

from .block import Block
from .errors import AdapterError
from .insertion import freeze, insert, keep_to_itself, register
from .layer import AdaptedLayer, Part, SharedParameters, adapted_layers, attribute, join, parts
from .low_rank import LowRank, LowRankSettings
from .masks import expect_shape
from .prototypes import PositionWeights, Prototypes
from .selection import CLASSES, Settings, adapted_class, check
from .update import WeightUpdate

ENTRIES = {
    "SPLoRA": ("rows", "cols", "in_features_mask", "out_features_mask"),
    "SPLoPA": ("pos_weights", "layout", "block_mask", "row_ids", "column_ids"),
}
# they hold the network that they wrap as ``module``
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
SIGNS = {"SPLoRA": ("rows", "cols"), "SPLoPA": ("layout",)}

Shared = TypeVar("Shared", bound=SharedParameters)


@dataclass
class Update:
    """One update that a state dict holds.

    Args:
        path: where it is held in the network.
        part: the weight that it belongs to.
        entries: its entries by name.
        settings: read off the entries.
        original: outputs and inputs of the layer when it was adapted (SPLoPA).
        prototypes: path of its prototypes in the network (SPLoPA).
        positions: path of its shared position weights (SPLoPA), if any.
    """

    path: str
    part: Part
    entries: Dict[str, Tensor]
    settings: Settings
    original: Optional[Tuple[int, int]] = None
    prototypes: str = ""
    positions: str = ""


@dataclass
class SavedAdapters:
    """All adapters that a state dict holds for a network."""

    kinds: Dict[str, str] = field(default_factory=dict)  # by layer
    updates: Dict[str, List[Update]] = field(default_factory=dict)  # by layer
    prototypes: Dict[str, Tuple[Tensor, Tensor]] = field(default_factory=dict)
    positions: Dict[str, Tensor] = field(default_factory=dict)
    used: Set[str] = field(default_factory=set)  # keys that belong to an adapter


def recognise(network: nn.Module, entries: Mapping[str, Tensor]) -> SavedAdapters:
    """Find the adapters in ``entries`` and check that they fit ``network``.

    Raises:
        AdapterError: an unknown layer, a shape that doesn't fit, a missing entry.
    """
    saved = SavedAdapters()
    _find_shared(entries, saved)
    layers = _layers(network)
    for name, layer in layers.items():
        kinds = {
            kind
            for kind, signs in SIGNS.items()
            for part in parts(layer)
            if any(join(name, part.update, sign) in entries for sign in signs)
        }
        if not kinds:
            continue
        if len(kinds) > 1:
            raise AdapterError(f"{name}: found entries of both {' and '.join(kinds)}")
        (kind,) = kinds
        saved.kinds[name] = kind
        saved.updates[name] = [
            _recognise_update(kind, name, layer, part, entries, saved) for part in parts(layer)
        ]
    held = {id(layers[name]) for name in saved.kinds}
    for name, layer in layers.items():
        if isinstance(layer, AdaptedLayer) and id(layer) not in held:
            raise AdapterError(
                f"{name or 'the layer'} has an adapter, but the state dict holds none for it"
            )
    _refuse_unknown(network, entries, saved)
    return saved


def _layers(network: nn.Module) -> Dict[str, nn.Module]:
    """Every layer that some adapter fits or that has one, under all its names."""
    named = list(network.named_modules(remove_duplicate=False))
    inside = {
        id(child)
        for _, module in named
        if isinstance(module, nn.MultiheadAttention)
        for child in module.children()
    }
    return {
        name: module
        for name, module in named
        if id(module) not in inside
        and (
            isinstance(module, AdaptedLayer)
            or any(adapted_class(kind, type(module)) for kind in CLASSES)
        )
    }


def _find_shared(entries: Mapping[str, Tensor], saved: SavedAdapters) -> None:
    for key, tensor in entries.items():
        path, _, name = key.rpartition(".")
        last = path.rpartition(".")[2]
        if name == "rows" and last.startswith("prototypes") and tensor.dim() == 3:
            cols = _need(entries, f"{path}.cols")
            count, rank = tensor.shape[:2]
            size = cols.shape[1] if cols.dim() == 3 else 0
            expect_shape(cols, (count, size, rank), f"{path}.cols")
            saved.prototypes[path] = (tensor, cols)
        elif name == "weights" and last.startswith("pos_weights_") and tensor.dim() == 3:
            saved.positions[path] = tensor


def _need(entries: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in entries:
        raise AdapterError(f"the state dict lacks {key}")
    return entries[key]


def _recognise_update(
    kind: str,
    name: str,
    layer: nn.Module,
    part: Part,
    entries: Mapping[str, Tensor],
    saved: SavedAdapters,
) -> Update:
    path = join(name, part.update)
    own = {n: entries[join(path, n)] for n in ENTRIES[kind] if join(path, n) in entries}
    for sign in SIGNS[kind]:
        _need(entries, join(path, sign))
    saved.used.update(join(path, n) for n in own)
    weight = part.weight_of(layer).detach()
    where = path or "the layer"
    if kind == "SPLoRA":
        return Update(path, part, own, LowRank.recognise(own, weight, where))
    if weight.dim() != 2:
        raise AdapterError(f"{where}: SPLoPA can't adapt {type(layer).__name__}")
    expect_shape(own["layout"], (4,), f"{where}.layout")
    *original, p, q = own["layout"].tolist()
    prototypes = _prototypes_for(path, (p, q), saved)
    count, rank, _ = saved.prototypes[prototypes][0].shape
    saved.used.update(f"{prototypes}.{n}" for n in ("rows", "cols"))
    shared = prototypes != join(path, "prototypes")
    settings, size = Block.recognise(own, weight, where, (count, rank), shared)
    update = Update(path, part, own, settings, size, prototypes)
    if settings.shared_pos_weights:
        shape = (count, *settings.grid(original))
        fitting = [n for n, w in saved.positions.items() if tuple(w.shape) == shape]
        if not fitting:
            raise AdapterError(f"the state dict lacks {join(path, 'pos_weights')}")
        update.positions = fitting[0]
        saved.used.add(f"{fitting[0]}.weights")
    return update


def _prototypes_for(path: str, size: Tuple[int, int], saved: SavedAdapters) -> str:
    """Path of the prototypes: the layer's own, its nearest ancestor's, or others."""
    fitting = [
        name
        for name, (rows, cols) in saved.prototypes.items()
        if (cols.shape[1], rows.shape[2]) == size
    ]
    if not fitting:
        raise AdapterError(
            f"the state dict lacks prototypes with blocks of {size[0]}x{size[1]} for {path}"
        )

    def closeness(name):
        owner = name.rpartition(".")[0]
        above = not owner or path == owner or path.startswith(owner + ".")
        return (above, len(owner)) if above else (False, 0)

    return max(fitting, key=closeness)


def _refuse_unknown(network, entries, saved: SavedAdapters) -> None:
    every = type(network).named_parameters(network, remove_duplicate=False)
    native = {n for n, _ in every}
    native |= {n for n, _ in network.named_buffers(remove_duplicate=False)}
    names = {n for names in ENTRIES.values() for n in names}
    for key in entries:
        layer, _, name = key.rpartition(".")
        if name in names and key not in saved.used and key not in native:
            raise AdapterError(
                f"the state dict holds {key}, but the network has no layer "
                f"{layer or 'of its own'} that such an adapter fits"
            )


def attach(network: nn.Module, saved: SavedAdapters, train_others: bool) -> List[str]:
    """Insert what was saved, where it isn't there yet.

    Raises:
        AdapterError: a layer can't be adapted or has another adapter. Nothing
            has changed then.
    """
    there = adapted_layers(network)
    modules = dict(network.named_modules(remove_duplicate=False))
    missing: Dict[str, Dict[str, nn.Module]] = {}
    known = {id(layer) for layer in there.values()}
    for name, updates in saved.updates.items():
        layer = modules[name]
        if isinstance(layer, AdaptedLayer):
            _check_same(layer, name, saved.kinds[name], updates)
        elif id(layer) not in known:
            known.add(id(layer))
            missing.setdefault(saved.kinds[name], {})[name] = layer
    _check_places(network, saved, modules)
    for kind, layers in missing.items():
        check(network, kind, {n: saved.updates[n][0].settings for n in layers}, layers)
    users = _users(saved)
    for kind, layers in missing.items():
        starts = {name: _start_like(network, saved.updates[name], users) for name in layers}
        insert(network, kind, starts, layers)
    if "" in saved.updates:
        keep_to_itself(network)
    if saved.updates:
        freeze(network, train_others)
    return list(saved.updates)


def _check_same(layer, name: str, kind: str, updates: List[Update]) -> None:
    same = type(layer) in CLASSES[kind].values()
    for update in updates:
        args: tuple = (update.settings,)
        if kind == "SPLoPA":
            args += (update.original,)
        if not same or not update.part.update_of(layer).fits(*args):
            raise AdapterError(
                f"{name or 'the layer'} has another adapter "
                f"({layer.extra_repr() or type(layer).__name__}) than the state dict "
                f"({kind}, {update.settings})"
            )


def _check_places(network, saved: SavedAdapters, modules) -> None:
    """Shared parameters must have a place in the network."""
    for updates in saved.updates.values():
        for update in updates:
            for path in filter(None, (update.prototypes, update.positions)):
                owner, _, name = path.rpartition(".")
                if owner == update.path:
                    continue
                if owner not in modules:
                    raise AdapterError(
                        f"the state dict holds {path}, but the network has no {owner}"
                    )
                taken = getattr(modules[owner], name, None)
                if taken is not None and not isinstance(taken, (Prototypes, PositionWeights)):
                    raise AdapterError(
                        f"the state dict holds {path}, which the network uses for "
                        f"{type(taken).__name__}"
                    )


def _users(saved: SavedAdapters) -> Dict[str, int]:
    users: Dict[str, int] = {}
    for updates in saved.updates.values():
        for update in updates:
            users[update.prototypes] = users.get(update.prototypes, 0) + 1
    return users


def _start_like(network, updates: List[Update], users: Dict[str, int]) -> Callable:
    by_part = {update.part.update: update for update in updates}

    def start(update: WeightUpdate, part: Part, weight: Tensor) -> None:
        wanted = by_part[part.update]
        settings = wanted.settings
        if isinstance(settings, LowRankSettings):
            return update.start(weight, settings)

        def shared_positions() -> PositionWeights:
            assert wanted.original is not None  # every update of blocks has them
            return PositionWeights(settings, settings.grid(wanted.original), weight)

        prototypes = _place(network, wanted.prototypes, lambda: Prototypes(settings, weight))
        owner = wanted.prototypes.rpartition(".")[0]
        prototypes.shared = users[wanted.prototypes] > 1 or owner != wanted.path
        positions = None
        if wanted.positions:
            positions = _place(network, wanted.positions, shared_positions)
        update.start(weight, settings, prototypes, positions, wanted.original)

    return start


def _place(network: nn.Module, path: str, create: Callable[[], Shared]) -> Shared:
    """The shared parameters at ``path``, created if they aren't there."""
    above, _, name = path.rpartition(".")
    owner = network.get_submodule(above)
    if getattr(owner, name, None) is None:
        register(owner, name, create())
    return attribute(owner, name)


def insert_like(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    prefix: str = "",
    train_others: bool = False,
) -> List[str]:
    """Adapt, in place, exactly the layers that have an adapter in ``state_dict``.

    Ranks, block sizes and prototypes are read off the entries, so that a loader
    needs no configuration. The values aren't loaded. Doing it again changes
    nothing; a state dict without adapters changes nothing.

    Args:
        network: of the (cut) shape that the state dict was saved with.
        state_dict: a full one, or that of :func:`adapter_state_dict`.
        prefix: of the network's entries in ``state_dict``.
        train_others: see :func:`SPLoRA`.

    Returns:
        The names of the adapted layers.

    Raises:
        AdapterError: an unknown layer, a shape that doesn't fit, a missing entry,
            or a layer with another adapter. Nothing has changed then.
    """
    entries = {
        key[len(prefix) :]: value
        for key, value in state_dict.items()
        if key.startswith(prefix) and isinstance(value, Tensor)
    }
    entries, network = without_wrapper(network, entries), unwrapped(network)
    return attach(network, recognise(network, entries), train_others)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network within ``DataParallel`` and its like."""
    return network.module if isinstance(network, WRAPPERS) else network


def without_wrapper(network: nn.Module, entries: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Entries by their names in the network that a wrapper holds.

    A state of a wrapped network calls them ``module.*``, and fits the network without
    its wrapper, as one of the plain network fits the wrapped one.
    """
    own = isinstance(getattr(unwrapped(network), "module", None), nn.Module)
    if own or not all(key.startswith("module.") for key in entries):
        return dict(entries)
    return {key.removeprefix("module."): value for key, value in entries.items()}
