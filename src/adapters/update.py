"""What holds the parameters of an update, and remembers what it computed from them."""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

_HALF = (torch.float16, torch.bfloat16)


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


class WeightUpdate(AdapterModule, ABC):
    """What holds the parameters of one weight's update: a layer, or a module within it."""

    mask_names: Tuple[str, ...] = ()
    # The arguments of these two are those of the kind's settings.
    start: Callable[..., None]
    fits: Callable[..., bool]

    @abstractmethod
    def share(self, other: Any) -> None:
        """Use the parameters of a layer that has the same weight."""

    @abstractmethod
    def remove(self) -> None:
        """Leave nothing of the update in the module."""

    @abstractmethod
    def shared_modules(self) -> List[nn.Module]:
        """The modules with parameters that other layers may use as well."""

    @abstractmethod
    def sources(self) -> List[Tensor]:
        """Everything that the update is computed from."""

    @abstractmethod
    def merge(self, weight: Tensor) -> Tensor:
        """``weight`` plus the update, cast once."""

    @abstractmethod
    def read(self, mask: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """The learned parameters of what ``mask`` keeps."""

    @abstractmethod
    def read_weight(self, weight: Tensor, mask: Mapping[str, Tensor]) -> Tensor:
        """What ``mask`` keeps of the base weight."""

    @abstractmethod
    def check_masks(self, mask: Mapping[str, Tensor], where: str) -> None:
        """Raises AdapterError for a mask that doesn't fit."""

    @abstractmethod
    def mask_bits(self) -> int:
        """How many bits the masks have in a file."""

    @abstractmethod
    def packed_masks(self, mask: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Bit-packed masks, and what else a file needs to rebuild the update."""

    @staticmethod
    @abstractmethod
    def out_mask(mask: Mapping[str, Tensor]) -> Optional[Tensor]:
        """The outputs whose bias is kept, ``[n]``, or None for all."""

    @classmethod
    @abstractmethod
    def restore(
        cls, entries: Mapping[str, Tensor], weight: Tensor
    ) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
        """Full parameters and buffers from saved entries, zero where masked; and masks."""


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
