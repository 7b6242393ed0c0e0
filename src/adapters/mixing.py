"""A weighted sum of adapters of one base, as an adapter of its own."""

import math
from numbers import Real
from typing import Dict, FrozenSet, List, Mapping, Sequence, Set

import torch
from torch import Tensor, nn

from .errors import AdapterError
from .layer import adapted_layers, attribute, join
from .recognition import Update, unwrapped
from .state import Restored, restore

# What block updates must have in common: which weights there are, and which are zero.
_SAME = ("layout", "block_mask", "row_ids", "column_ids")


def weighted_sum(
    network: nn.Module, states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> Dict[str, Tensor]:
    """The adapter that adds ``sum(w · U)`` to each weight, of updates ``U``; exact.

    Ranks add up, or numbers of prototypes. Biases are ``b + sum(w · (b' - b))`` of the
    base's ``b`` and each adapter's ``b'``. A layer that some of the states leave alone
    gets the updates of the others.

    Args:
        network: the base, without adapters.
        states: of :func:`adapter_state_dict`. Where one was saved with masks of inputs and
            outputs, its update is zero outside of them.
        weights: one for each state; any finite numbers.

    Returns:
        A state for :func:`load_adapter_state_dict`.

    Raises:
        AdapterError: a state that doesn't fit the base, or states that can't be added:
            of two kinds, with other blocks, or with other statistics of batch normalization.
    """
    if adapted_layers(network):
        raise AdapterError("the network has adapters; give the base alone")
    if not states or len(states) != len(weights):
        raise AdapterError(f"{len(states)} states and {len(weights)} weights: give one each")
    for weight in weights:
        if not isinstance(weight, Real) or not math.isfinite(weight):
            raise AdapterError(f"weight {weight!r}: expected a finite number")
    network = unwrapped(network)
    return _Sum(network, [restore(network, state) for state in states], weights).state()


class _Sum:
    def __init__(self, network: nn.Module, terms: List[Restored], weights: Sequence[float]):
        self.network, self.terms, self.weights = network, terms, weights
        self.result: Dict[str, Tensor] = {}
        self.done: Set[str] = set()  # names in the terms that were seen to

    @torch.no_grad()
    def state(self) -> Dict[str, Tensor]:
        layers = {name: None for term in self.terms for name in term.saved.kinds}
        for name in layers:
            kinds = {t.saved.kinds[name] for t in self.terms if name in t.saved.kinds}
            if len(kinds) > 1:
                raise AdapterError(f"{name}: {' and '.join(sorted(kinds))} can't be added up")
            paths = {u.path: None for t in self.terms for u in t.saved.updates.get(name, ())}
            for path in paths:
                if kinds == {"SPLoRA"}:
                    self._add_low_rank(path)
                else:
                    self._add_blocks(name, path)
        for name in {n: None for t in self.terms for n in t.values if n not in self.done}:
            self._add_values(name)
        return self.result

    def _pieces(self, name: str) -> List[Tensor]:
        self.done.add(name)
        return [term.values[name] for term in self.terms if name in term.values]

    def _scaled(self, name: str) -> List[Tensor]:
        self.done.add(name)
        pairs = zip(self.terms, self.weights)
        return [term.values[name] * w for term, w in pairs if name in term.values]

    def _add_low_rank(self, path: str) -> None:
        rows, cols = join(path, "rows"), join(path, "cols")
        self.result[rows] = torch.cat(self._pieces(rows))
        self.result[cols] = torch.cat(self._scaled(cols), 1)

    def _update(self, term: Restored, name: str, path: str) -> List[Update]:
        return [update for update in term.saved.updates.get(name, ()) if update.path == path]

    def _add_blocks(self, name: str, path: str) -> None:
        updates = [self._update(term, name, path) for term in self.terms]
        there = [held[0] for held in updates if held]
        first = there[0]
        for update in there[1:]:
            if (update.prototypes, update.positions) != (first.prototypes, first.positions):
                raise AdapterError(f"{path}: only some of the adapters share their prototypes")
        for key in (join(path, entry) for entry in _SAME):
            values = self._pieces(key)
            if not all(torch.equal(value, values[0]) for value in values):
                raise AdapterError(f"{key}: the adapters have other blocks or block masks")
            self.result[key] = values[0]
        if f"{first.prototypes}.rows" not in self.result:
            self._add_prototypes(first.prototypes)
        positions = f"{first.positions}.weights" if first.positions else join(path, "pos_weights")
        if positions in self.result:
            return
        if first.positions and len(self._users(first.positions)) > 1:
            raise AdapterError(f"{positions}: the adapters share them among different layers")
        self.done.add(positions)
        like = next(t.values[positions] for t in self.terms if positions in t.values)
        pieces = []
        for term, weight in zip(self.terms, self.weights):
            if positions in term.values:
                pieces.append(term.values[positions] * weight)
            elif first.prototypes in term.saved.prototypes:  # of other layers' updates
                count = len(term.values[f"{first.prototypes}.rows"])
                pieces.append(like.new_zeros(count, *like.shape[1:]))
        self.result[positions] = torch.cat(pieces)

    def _users(self, positions: str) -> Set[FrozenSet[str]]:
        """The sets of updates that terms share these position weights among, if they do."""
        updates = [[u for us in t.saved.updates.values() for u in us] for t in self.terms]
        users = [frozenset(u.path for u in us if u.positions == positions) for us in updates]
        return {paths for paths in users if paths}

    def _add_prototypes(self, path: str) -> None:
        """Prototypes ``cols [N, p, r] @ rows [N, r, q]``, with zeros up to the largest ``r``."""
        rows, cols = (self._pieces(f"{path}.{name}") for name in ("rows", "cols"))
        if len({(c.shape[1], r.shape[2]) for r, c in zip(rows, cols)}) > 1:
            raise AdapterError(f"{path}: the adapters have blocks of different sizes")
        rank = max(r.shape[1] for r in rows)
        pad = torch.nn.functional.pad
        wide = [pad(r, (0, 0, 0, rank - r.shape[1])) for r in rows]
        self.result[f"{path}.rows"] = torch.cat(wide)
        self.result[f"{path}.cols"] = torch.cat([pad(c, (0, rank - c.shape[2])) for c in cols])

    def _add_values(self, name: str) -> None:
        """Biases, and what batch normalization has seen."""
        base = attribute(self.network, name)
        if not isinstance(base, nn.Parameter):
            values = self._pieces(name)
            if len(values) < len(self.terms) or not all(torch.equal(v, values[0]) for v in values):
                raise AdapterError(f"{name}: statistics of batch normalization can't be added up")
            self.result[name] = values[0]
            return
        rest = 1 - sum(w for t, w in zip(self.terms, self.weights) if name in t.values)
        total = sum(self._scaled(name), torch.zeros_like(base))
        self.result[name] = total + rest * base if rest else total
