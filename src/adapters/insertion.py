"""Insertion of adapters into layers and whole networks."""

import copy
from typing import Callable, Dict, List, Optional, Sequence, Set, Tuple, Type, Union

from torch import Tensor, nn

from .errors import AdapterError
from .layer import AdaptedLayer, Part, SharedParameters, adapted_layers, attribute, parts
from .low_rank import LowRankSettings
from .prototypes import BlockSettings, PositionWeights, Prototypes, block_sides
from .selection import Patterns, Settings, adapted_class, check, select
from .update import WeightUpdate


def SPLoRA(
    module: nn.Module,
    rank: Union[int, float] = 16,
    init_range: float = 1e-4,
    include: Patterns = None,
    exclude: Patterns = None,
    types: Optional[Sequence[Type[nn.Module]]] = None,
    inplace: bool = False,
    train_others: bool = False,
) -> nn.Module:
    """Adapt a layer, or all layers of a network, with low-rank updates.

    Linear, Conv1d, Conv2d, Conv3d and MultiheadAttention are adapted. Their
    weights are frozen; adapters and biases are trained. An adapter works where its layer
    is called: a module that reads the layer's ``weight`` itself passes it by.

    Args:
        module: a layer or a network.
        rank: rank of the updates, or a fraction in (0, 1) of a layer's outputs.
        init_range: ``cols ~ U(-init_range, init_range)``; 0 means exactly zero.
        include: patterns (``fnmatch``) of names of layers; all by default.
        exclude: patterns of names of layers to leave out.
        types: types of layers; all applicable ones by default.
        inplace: adapt ``module`` itself instead of a copy.
        train_others: leave the other parameters of the network as they are
            instead of freezing them.

    Returns:
        The adapted module.

    Raises:
        AdapterError: an option that isn't valid, a pattern that matches nothing,
            no layer to adapt, or a layer that can't be adapted (with its name).
    """
    settings = LowRankSettings(rank, init_range)
    return _adapt(module, "SPLoRA", settings, include, exclude, types, inplace, train_others)


def SPLoPA(
    module: nn.Module,
    block_size: Union[int, Tuple[int, int]] = 32,
    num_prototypes: int = 64,
    rank: int = 1,
    shared_prototypes: bool = True,
    shared_pos_weights: bool = False,
    init_range: float = 1e-4,
    include: Patterns = None,
    exclude: Patterns = None,
    types: Optional[Sequence[Type[nn.Module]]] = None,
    inplace: bool = False,
    train_others: bool = False,
) -> nn.Module:
    """Adapt a layer, or all layers of a network, with updates made of blocks.

    Linear and MultiheadAttention are adapted. The other arguments, the result
    and the errors are those of :func:`SPLoRA`.

    Args:
        module: a layer or a network.
        block_size: outputs and inputs of a block, or one number for both.
        num_prototypes: number of prototypes.
        rank: rank of a prototype.
        shared_prototypes: one set of prototypes for the whole network.
        shared_pos_weights: one set of position weights for all layers with
            equally many blocks.
        init_range: the prototypes' ``cols ~ U(-init_range, init_range)``.
    """
    settings = BlockSettings(
        block_sides(block_size),
        num_prototypes,
        rank,
        shared_prototypes,
        shared_pos_weights,
        init_range,
    )
    return _adapt(module, "SPLoPA", settings, include, exclude, types, inplace, train_others)


def _adapt(module, kind, settings, include, exclude, types, inplace, train_others):
    selected = select(module, kind, include, exclude, types)
    check(module, kind, dict.fromkeys(selected, settings), selected)
    _check_shared(module, settings)
    if not inplace:
        module = copy.deepcopy(module)
        modules = dict(module.named_modules(remove_duplicate=False))
        selected = {name: modules[name] for name in selected}
    shared = SharedSets(module, selected)
    start = start_with(settings, shared)
    insert(module, kind, dict.fromkeys(selected, start), selected)
    if "" in selected:
        keep_to_itself(module)
    freeze(module, train_others)
    return module


class SharedSets:
    """The shared prototypes and position weights of one network.

    They are registered on the network itself, under ``prototypes`` (or
    ``prototypes_{p}x{q}`` beside others) and ``pos_weights_{R}x{C}``; a container
    whose children are called in turn leaves them to its first adapted layer.
    """

    def __init__(self, network: nn.Module, selected: Dict[str, nn.Module]):
        self.network = network
        self.owner = network
        if isinstance(network, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            self.owner = next(iter(selected.values()), network)

    def prototypes(self, settings: BlockSettings, like: Tensor) -> Prototypes:
        shared = existing_prototypes(self.network, settings)
        if shared is None:
            shared = Prototypes(settings, like)
            name = "prototypes"
            if hasattr(self.owner, name):
                name = "prototypes_{}x{}".format(*settings.block_size)
            register(self.owner, name, shared)
        return shared

    def positions(self, settings, grid, like) -> PositionWeights:
        name = "pos_weights_{}x{}".format(*grid)
        shared = getattr(self.owner, name, None)
        if shared is None:
            shared = PositionWeights(settings, grid, like)
            register(self.owner, name, shared)
        return shared


def register(owner: nn.Module, name: str, module: SharedParameters) -> None:
    module.train(owner.training)
    owner.add_module(name, module)


def existing_prototypes(network: nn.Module, settings: BlockSettings):
    """The network's shared prototypes of this block size, if it has any."""
    for module in network.modules():
        if isinstance(module, Prototypes) and module.shared:
            if module.block_size == settings.block_size:
                return module
    return None


def _check_shared(network: nn.Module, settings: Settings) -> None:
    if not isinstance(settings, BlockSettings):
        return
    if settings.shared_prototypes:
        existing = existing_prototypes(network, settings)
        if existing is not None and not existing.fits(settings):
            raise AdapterError(
                f"the network's prototypes ({existing.extra_repr()}) don't have "
                f"num_prototypes={settings.num_prototypes}, rank={settings.rank}; use "
                "those, or shared_prototypes=False"
            )
        for name in ("prototypes", "prototypes_{}x{}".format(*settings.block_size)):
            taken = getattr(network, name, None)
            if taken is not None and not isinstance(taken, Prototypes):
                raise AdapterError(
                    f"{type(network).__name__} has an attribute {name!r} of its own; "
                    "use shared_prototypes=False"
                )
    for module in network.modules():
        if settings.shared_pos_weights and isinstance(module, PositionWeights):
            if module.weights.shape[0] != settings.num_prototypes:
                raise AdapterError(
                    f"the network's shared position weights are for "
                    f"{module.weights.shape[0]} prototypes, not "
                    f"{settings.num_prototypes}; use shared_pos_weights=False"
                )


def own_prototypes(update: nn.Module, settings: BlockSettings, like: Tensor):
    """New prototypes that belong to one layer."""
    prototypes = Prototypes(settings, like)
    prototypes.shared = False
    register(update, "prototypes", prototypes)
    return prototypes


def keep_to_itself(layer: nn.Module) -> None:
    """Shared parameters of a layer that was adapted alone are shared by no other."""
    for child in layer.children():
        if isinstance(child, SharedParameters):
            child.shared = False


def start_with(settings: Settings, shared: SharedSets) -> Callable:
    """What registers the parameters of one update."""

    def start(update: WeightUpdate, part: Part, weight: Tensor) -> None:
        if isinstance(settings, LowRankSettings):
            return update.start(weight, settings)
        positions = None
        if settings.shared_pos_weights:
            grid = settings.grid(weight.shape)
            positions = shared.positions(settings, grid, weight)
        if settings.shared_prototypes:
            prototypes = shared.prototypes(settings, weight)
        else:
            prototypes = own_prototypes(update, settings, weight)
        update.start(weight, settings, prototypes, positions)

    return start


def insert(
    network: nn.Module,
    kind: str,
    starts: Dict[str, Callable],
    selected: Dict[str, nn.Module],
) -> None:
    """Exchange the classes of the ``selected`` layers, which :func:`check` passed.

    Args:
        starts: per layer, a function of (update, part, weight) that registers the
            parameters. Layers with one weight share those of the first.
    """
    known: Dict[tuple, WeightUpdate] = {}
    for name, layer in selected.items():
        plain = type(layer)
        adapted = adapted_class(kind, plain)
        assert adapted is not None and isinstance(layer, plain)  # check() saw to it
        layer.__class__ = adapted
        assert isinstance(layer, AdaptedLayer)
        layer.become_adapted(plain)
        for part in parts(layer):
            if part.update:
                holder = layer.holder()
                layer.add_module(part.update, holder.train(layer.training))
            update = part.update_of(layer)
            key = (id(attribute(layer, part.weight)), str(part.weight_rows))
            if key in known:
                update.share(known[key])
            else:
                starts[name](update, part, part.weight_of(layer).detach())
                known[key] = update


def freeze(network: nn.Module, train_others: bool) -> None:
    """Train adapters and the biases of adapted layers, never their weights."""
    layers = adapted_layers(network).values()
    learned: List[Optional[nn.Parameter]] = []
    bases: Set[int] = set()
    for layer in layers:
        learned += layer.biases().values()
        bases.update(id(attribute(layer, part.weight)) for part in parts(layer))
        for update in layer.updates().values():
            learned += [getattr(update, name) for name in update.adapter_names]
            for shared in update.shared_modules():
                learned += shared.parameters()
    # all of them, whatever configure_parameter_read() shows
    for _, parameter in type(network).named_parameters(network):
        if not train_others or id(parameter) in bases:
            parameter.requires_grad_(False)
            parameter.grad = None  # of before; optimizers and clipping would use it
    for trained in learned:
        if trained is not None:
            trained.requires_grad_(True)
