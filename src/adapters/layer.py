"""What every adapted layer has in common.

An adapted layer is the layer itself: its class is exchanged for a subclass that
adds parameters to it. So hooks, tied weights, references from elsewhere, mode,
dtype and device stay as they are. The base weight stays where it was, frozen.

Legend: ``n`` outputs, ``m`` inputs of a weight ``W [n, m]``.
"""

import copy
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Set, Tuple, Type, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import AdapterError
from .update import AdapterModule, WeightUpdate, recording

# What configure_parameter_read() replaces on an instance.
READERS = ("named_parameters", "state_dict", "zero_grad")


@dataclass(frozen=True)
class Part:
    """One weight matrix of a layer, and where its update is held.

    Args:
        update: name of the submodule with the update's parameters, ``""`` when
            the layer holds them itself.
        weight: path of the weight in the layer.
        bias: path of the bias.
        weight_rows: the rows of the weight that belong to this part, or None.
        bias_rows: the same for the bias.
        extra: path of a bias ``[1, 1, n]`` that attention appends to what the weight
            makes (``add_bias_kv=True``), or ``""``.
    """

    update: str
    weight: str
    bias: str
    weight_rows: Optional[slice] = None
    bias_rows: Optional[slice] = None
    extra: str = ""

    def weight_of(self, layer: nn.Module) -> Tensor:
        weight = attribute(layer, self.weight)
        return weight if self.weight_rows is None else weight[self.weight_rows]

    def bias_of(self, layer: nn.Module) -> Optional[Tensor]:
        bias = attribute(layer, self.bias)
        if bias is None or self.bias_rows is None:
            return bias
        return bias[self.bias_rows]

    def update_of(self, layer: nn.Module) -> WeightUpdate:
        return attribute(layer, self.update) if self.update else cast(WeightUpdate, layer)


_WHOLE = (Part("", "weight", "bias"),)


def parts(layer: nn.Module) -> Tuple[Part, ...]:
    """The weight matrices of a layer, plain or adapted."""
    if not isinstance(layer, nn.MultiheadAttention):
        return _WHOLE
    width = layer.embed_dim
    pieces = []
    for i, name in enumerate("qkv"):
        rows = slice(i * width, (i + 1) * width)
        extra = "" if name == "q" else f"bias_{name}"
        packed = layer.in_proj_weight is not None
        weight = "in_proj_weight" if packed else f"{name}_proj_weight"
        weight_rows = rows if packed else None
        pieces.append(Part(f"{name}_adapter", weight, "in_proj_bias", weight_rows, rows, extra))
    return (*pieces, Part("out_adapter", "out_proj.weight", "out_proj.bias"))


def attribute(module: nn.Module, path: str) -> Any:
    """``module.<path>``, with dots."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def join(*names: str) -> str:
    """A dotted path, without its empty pieces."""
    return ".".join(name for name in names if name)


def _no_fast_path(module, args):
    """A hook that does nothing.

    ``nn.TransformerEncoderLayer`` hands the weights of layers without hooks to
    a fused kernel, past the layers themselves.
    """


class AdaptedLayer(AdapterModule):
    """Base of the adapted layers: base weight, update, fusing."""

    plain_class: Type[nn.Module]
    holder: Type[WeightUpdate]  # of the updates that the layer doesn't hold itself

    def updates(self) -> Dict[str, WeightUpdate]:
        """The modules that hold the parameters of the updates, by name."""
        return {part.update: part.update_of(self) for part in parts(self)}

    def adapted_weights(self) -> Dict[str, Tensor]:
        """The weights with their updates, by path, differentiable in the adapters."""
        pieces: Dict[str, List[Tensor]] = {}
        for part in parts(self):
            weight = part.weight_of(self).detach()
            merged = part.update_of(self).merge(weight)
            pieces.setdefault(part.weight, []).append(merged)
        return {n: p[0] if len(p) == 1 else torch.cat(p) for n, p in pieces.items()}

    def fused_weights(self) -> Dict[str, Tensor]:
        """The same as constants, computed once and kept until a parameter changes."""
        return self.remember("fused", self.all_sources(), self._fuse_now)

    def all_sources(self) -> List[Tensor]:
        """Everything that the adapted weights are computed from."""
        sources = [attribute(self, part.weight) for part in parts(self)]
        for update in self.updates().values():
            sources += update.sources()
        return sources

    def _fuse_now(self) -> Dict[str, Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            return {n: w.contiguous() for n, w in self.adapted_weights().items()}

    def current_weights(self) -> Dict[str, Tensor]:
        """Fused weights where nothing learns, differentiable ones otherwise."""
        return self.fused_weights() if self.fuses() else self.adapted_weights()

    def fuses(self) -> bool:
        """Whether this forward pass is inference."""
        if self.training or torch.compiler.is_compiling() or recording():
            return False
        if getattr(self, "_is_replica", False):  # of DataParallel, gone after this pass
            return False
        if not torch.is_grad_enabled():
            return True
        bases = {id(attribute(self, part.weight)) for part in parts(self)}
        learns = any(t.requires_grad for t in self.all_sources() if id(t) not in bases)
        if learns:  # a fused optimizer's step leaves no trace either
            self.__dict__.get("_remembered", {}).pop("fused", None)
        return not learns

    def biases(self) -> Dict[str, nn.Parameter]:
        """The biases, which are learned with the adapters, by path."""
        paths = dict.fromkeys(p for part in parts(self) for p in (part.bias, part.extra) if p)
        biases = {path: attribute(self, path) for path in paths}
        return {path: bias for path, bias in biases.items() if bias is not None}

    def become_adapted(self, plain_class: Type[nn.Module]) -> None:
        """Called once, when the class was exchanged."""
        if plain_class is not type(self).plain_class:
            self.plain_class = plain_class
        hooks: Dict[Any, Callable] = self._forward_pre_hooks  # torch's own keys are numbers
        hooks["adapter"] = _no_fast_path

    def become_plain(self, weights: Dict[str, Tensor]) -> None:
        """Take the plain class again, with ``weights`` in place of base and update."""
        for path, weight in weights.items():
            parameter = attribute(self, path)
            parameter.data = weight
            parameter.grad = None
        for part in parts(self):
            if part.update:
                del self._modules[part.update]
            else:
                part.update_of(self).remove()
        self.forget()
        hooks: Dict[Any, Callable] = self._forward_pre_hooks
        hooks.pop("adapter", None)
        reset_parameter_read(self)
        self.__class__ = self.__dict__.pop("plain_class", type(self).plain_class)

    @torch.no_grad()
    def to_module(self) -> nn.Module:
        """A plain layer with ``W + update``, which owns its storage."""
        weights = {n: w.contiguous() for n, w in self.adapted_weights().items()}
        plain = copy.deepcopy(self)
        plain.become_plain(weights)
        drop_shared(plain)
        return plain.requires_grad_(True)


class SelfAdapted(AdaptedLayer, WeightUpdate):
    """A layer that holds the update of its one weight itself."""

    def all_sources(self) -> List[Tensor]:
        # asked for in every call: attributes of modules take ten times as long to look up
        return [cast(Tensor, self._parameters["weight"]), *self.sources()]


class AdaptedLinear(SelfAdapted, nn.Linear):
    """Base of the adapted linear layers."""

    plain_class = nn.Linear

    @property
    def product(self) -> Callable:
        """``F.linear``, or what the plain class has in its place."""
        return getattr(self.plain_class, "product", F.linear)


def reset_parameter_read(network: nn.Module) -> None:
    """Let ``parameters()`` and ``state_dict()`` show everything again."""
    for name in READERS:
        network.__dict__.pop(name, None)


class SharedParameters(AdapterModule):
    """Adapter parameters that several layers of one model use."""

    shared = True


def drop_shared(network: nn.Module) -> None:
    """Remove shared parameters that no adapted layer of ``network`` uses any more."""
    used: Set[int] = set()
    for module in network.modules():
        if isinstance(module, AdaptedLayer):
            for update in module.updates().values():
                used.update(id(s) for s in update.shared_modules())
    for module in list(network.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, SharedParameters) and id(child) not in used:
                del module._modules[name]


def adapted_layers(network: nn.Module) -> Dict[str, AdaptedLayer]:
    """The adapted layers of a network by name; a layer is its own ``""``."""
    return {n: m for n, m in network.named_modules() if isinstance(m, AdaptedLayer)}


def adapted_weight(module: nn.Module, name: str = "weight") -> Tensor:
    """The weight that a layer works with: ``W`` with its update, or a plain ``W``.

    Criteria that rank weights read it. Differentiable in the adapters.
    """
    if isinstance(module, AdaptedLayer):
        weights = module.adapted_weights()
        if name in weights:
            return weights[name]
    return attribute(module, name)


def remove(network: nn.Module) -> None:
    """Take every adapter away, in place; weights are those of the base, biases stay."""
    for layer in adapted_layers(network).values():
        layer.become_plain({})
    drop_shared(network)
    reset_parameter_read(network)


@torch.no_grad()
def fuse(network: nn.Module) -> nn.Module:
    """Add every update to its weight, in place; the layers become plain again.

    Weights stay the same parameters, so ties and references hold. Flags
    ``requires_grad`` stay as they are. Give the whole network: shared prototypes inside
    of a part are removed with its adapters, whichever layers outside still use them.

    Returns:
        ``network``.

    Raises:
        AdapterError: a layer that holds the prototypes of other layers.
    """
    layers = adapted_layers(network)
    for child in network.children():
        if "" in layers and isinstance(child, SharedParameters) and child.shared:
            raise AdapterError(
                f"this {type(network).__name__} holds prototypes of other layers; fuse the network"
            )
    fused: Dict[int, Tensor] = {}
    for layer in layers.values():
        for path, weight in layer.adapted_weights().items():
            fused[id(attribute(layer, path))] = weight.contiguous()
    for layer in layers.values():
        paths = dict.fromkeys(part.weight for part in parts(layer))
        layer.become_plain({p: fused[id(attribute(layer, p))] for p in paths})
    drop_shared(network)
    reset_parameter_read(network)
    return network
