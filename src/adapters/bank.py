"""Several adapters on one base, of which one or a weighted sum is active."""

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Union

import torch
from torch import Tensor, nn

from .errors import AdapterError
from .layer import adapted_layers, attribute, remove
from .mixing import weighted_sum
from .reading import adapter_state_dict
from .recognition import unwrapped
from .state import load_adapter_state_dict, restore

State = Dict[str, Tensor]


class AdapterBank:
    """The adapters of one network, by name; the network is changed in place.

    One adapter, a weighted sum of some, or none is active at a time. Only the active one is
    in the network: its parameters are new ones after every :meth:`set_active`, so make
    the optimizer then. What it learns is kept when another takes its place; a weighted
    sum is for inference and learns nothing.

    Args:
        network: the base, without adapters.

    Raises:
        AdapterError: the network has adapters.
    """

    def __init__(self, network: nn.Module):
        if adapted_layers(network):
            raise AdapterError("the network has adapters already; give the base alone")
        self.network = unwrapped(network)
        self.active: Dict[str, float] = {}  # weights by name
        self._states: Dict[str, State] = {}
        self._mixture: State = {}  # what is active, unless one adapter is
        self._base: State = {}  # biases and statistics of the base that the active one replaced
        self._trained = [(p, p.requires_grad) for p in network.parameters()]

    @property
    def names(self) -> List[str]:
        return list(self._states)

    def add(
        self, name: str, adapter: Union[Mapping[str, Tensor], Callable], **options: Any
    ) -> None:
        """Add an adapter; which one is active stays as it is.

        Args:
            adapter: what :func:`adapter_state_dict` gave, or for a fresh adapter
                :func:`SPLoRA` or :func:`SPLoPA`.
            options: of a fresh adapter, as ``rank=8``.

        Raises:
            AdapterError: there is one of this name, or it doesn't fit the network.
        """
        if name in self._states:
            raise AdapterError(f"there is an adapter {name!r} already")
        with self._base_alone():
            if callable(adapter):
                adapter(self.network, inplace=True, **options)
                state = adapter_state_dict(self.network)
                self._remove()
            elif options:
                raise AdapterError(f"{', '.join(options)}: options are of a fresh adapter")
            else:
                restore(self.network, adapter)
                state = {key: value.detach().clone() for key, value in adapter.items()}
        self._states[name] = state

    def set_active(self, adapters: Union[None, str, Mapping[str, float]]) -> None:
        """Let the network compute with an adapter, a weighted sum of several, or none.

        Args:
            adapters: a name, weights by name as in :func:`weighted_sum`, or None for the base.

        Raises:
            AdapterError: an unknown name, or adapters that can't be added up. What was
                active stays so.
        """
        chosen = {adapters: 1.0} if isinstance(adapters, str) else dict(adapters or {})
        for name in chosen:
            self._known(name)
        with self._base_alone():
            mixture: State = {}
            if chosen and list(chosen.values()) != [1.0]:
                states = [self._states[name] for name in chosen]
                mixture = weighted_sum(self.network, states, list(chosen.values()))
            self.active, self._mixture = chosen, mixture

    def state(self, name: str) -> State:
        """What an adapter has learned until now, for a file or another bank.

        Raises:
            AdapterError: an unknown name.
        """
        self._known(name)
        if list(self.active) == [name] and not self._mixture:
            return adapter_state_dict(self.network)
        return dict(self._states[name])

    def _known(self, name: str) -> None:
        if name not in self._states:
            known = ", ".join(map(repr, self._states)) or "none"
            raise AdapterError(f"no adapter {name!r}; there are {known}")

    @contextmanager
    def _base_alone(self) -> Iterator[None]:
        """Within it the network is the base; afterwards it has what is active then."""
        if self.active and not self._mixture:
            (name,) = self.active
            self._states[name] = adapter_state_dict(self.network)
        self._remove()
        try:
            yield
        finally:
            if self.active:
                self._load(self._mixture or self._states[next(iter(self.active))])

    @torch.no_grad()
    def _remove(self) -> None:
        remove(self.network)
        for name, value in self._base.items():
            attribute(self.network, name).copy_(value)
        self._base = {}
        for parameter, trained in self._trained:
            parameter.requires_grad_(trained)

    def _load(self, state: State) -> None:
        values = restore(self.network, state).values
        named = self.network.state_dict(keep_vars=True)
        self._base = {n: named[n].detach().clone() for n in values if n in named}
        load_adapter_state_dict(self.network, state)
        if self._mixture:
            self.network.requires_grad_(False)
