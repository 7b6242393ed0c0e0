"""What every adapted layer has in common.

An adapted layer is the layer itself: its class is exchanged for a subclass that
adds parameters to it. So hooks, tied weights, references from elsewhere, mode,
dtype and device stay as they are. The base weight stays where it was, frozen.

Legend: ``n`` outputs, ``m`` inputs of a weight ``W [n, m]``.
"""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Type, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import AdapterError

# What configure_parameter_read() replaces on an instance.
READERS = ("named_parameters", "state_dict", "zero_grad")

_HALF = (torch.float16, torch.bfloat16)


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

    def update_of(self, layer: nn.Module) -> "WeightUpdate":
        return attribute(layer, self.update) if self.update else cast(WeightUpdate, layer)


def parts(layer: nn.Module) -> Tuple[Part, ...]:
    """The weight matrices of a layer, plain or adapted."""
    if not isinstance(layer, nn.MultiheadAttention):
        return (Part("", "weight", "bias"),)
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


def adapter_dtype(dtype: torch.dtype) -> torch.dtype:
    """Adapters stay float32 next to half types, where small updates would be lost."""
    return torch.float32 if dtype in _HALF else dtype


def uniform(shape: Sequence[int], bound: float, like: Tensor) -> nn.Parameter:
    """A new parameter ``~ U(-bound, bound)``; exactly zero for ``bound=0``."""
    data = torch.zeros(shape, dtype=adapter_dtype(like.dtype), device=like.device)
    return nn.Parameter(data.uniform_(-bound, bound) if bound else data)


def no_autocast(device: torch.device):
    """Updates are added up in the adapters' own precision."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def recording() -> bool:
    """Whether a graph for use elsewhere is made: nothing in it may depend on memory."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


class AdapterModule(nn.Module):
    """A module with adapter parameters, which remembers what it computed from them."""

    adapter_names: Tuple[str, ...] = ()
    # TorchScript would compile them when a layer is traced
    __jit_unused_properties__ = ["block_size", "positions", "product", "rank", "shared_prototypes"]

    def remember(self, name: str, sources: List[Tensor], compute: Callable) -> Any:
        """``compute()``, again only when one of ``sources`` has changed.

        In-place changes through ``.data`` leave no trace; :meth:`train` and
        :meth:`eval` forget everything for their sake.
        """
        if recording():
            return compute()
        memory = self.__dict__.setdefault("_remembered", {})
        known = memory.get(name)
        if known is not None and _unchanged(known[0], sources):
            return known[1]
        value = compute()
        if any(t.is_inference() for t in sources):  # these have no version
            return value
        # The aliases keep the storages alive, so that an address can't be reused.
        memory[name] = [(t.detach(), t.data_ptr(), t._version) for t in sources], value
        return value

    def forget(self) -> None:
        self.__dict__.pop("_remembered", None)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_remembered"}

    def train(self, mode: bool = True):
        self.forget()
        return super().train(mode)

    def _load_from_state_dict(self, *args, **kwargs):
        self.forget()
        return super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn, recurse=True):
        self.forget()
        named = [self._parameters.get(name) for name in self.adapter_names]
        own = [p for p in named if p is not None]
        own_ids = {id(t) for p in own for t in (p, p.grad) if t is not None}

        def keep_precision(tensor):
            applied = fn(tensor)
            if id(tensor) in own_ids and applied.dtype in _HALF:
                return tensor.to(applied.device, torch.float32)
            return applied

        return super()._apply(keep_precision, recurse)


class WeightUpdate(AdapterModule):
    """What holds the parameters of one weight's update: a layer, or a module within it."""

    mask_names: Tuple[str, ...] = ()
    # The arguments of these two are those of the kind's settings.
    start: Callable[..., None]
    fits: Callable[..., bool]

    def share(self, other: Any) -> None:
        """Use the parameters of a layer that has the same weight."""
        raise NotImplementedError

    def remove(self) -> None:
        """Leave nothing of the update in the module."""
        raise NotImplementedError

    def shared_modules(self) -> List[nn.Module]:
        """The modules with parameters that other layers may use as well."""
        raise NotImplementedError

    def sources(self) -> List[Tensor]:
        """Everything that the update is computed from."""
        raise NotImplementedError

    def merge(self, weight: Tensor) -> Tensor:
        """``weight`` plus the update, cast once."""
        raise NotImplementedError

    def read(self, mask: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """The learned parameters of what ``mask`` keeps."""
        raise NotImplementedError

    def read_weight(self, weight: Tensor, mask: Mapping[str, Tensor]) -> Tensor:
        """What ``mask`` keeps of the base weight."""
        raise NotImplementedError

    def check_masks(self, mask: Mapping[str, Tensor], where: str) -> None:
        """Raises AdapterError for a mask that doesn't fit."""
        raise NotImplementedError

    def mask_bits(self) -> int:
        """How many bits the masks have in a file."""
        raise NotImplementedError

    def packed_masks(self, mask: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Bit-packed masks, and what else a file needs to rebuild the update."""
        raise NotImplementedError

    @staticmethod
    def out_mask(mask: Mapping[str, Tensor]) -> Optional[Tensor]:
        """The outputs whose bias is kept, ``[n]``, or None for all."""
        raise NotImplementedError

    @classmethod
    def restore(
        cls, entries: Mapping[str, Tensor], weight: Tensor
    ) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
        """Full parameters and buffers from saved entries, zero where masked; and masks."""
        raise NotImplementedError


def _unchanged(known: List[Tuple[Tensor, int, int]], tensors: List[Tensor]) -> bool:
    if len(known) != len(tensors):
        return False
    for (alias, address, version), tensor in zip(known, tensors):
        if (
            tensor.is_inference()
            or tensor._version != version
            or tensor.data_ptr() != address
            or tensor.shape != alias.shape
            or tensor.stride() != alias.stride()
            or tensor.dtype != alias.dtype
        ):
            return False
    return True


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


class AdaptedLinear(AdaptedLayer, nn.Linear):
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
