"""What :func:`adapter_state_dict` gave, loaded again."""

from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Tuple, Type

import torch
from torch import Tensor, nn

from .block import Block
from .errors import AdapterError
from .layer import attribute, join
from .low_rank import LowRank
from .masks import expect_shape
from .reading import statistics
from .recognition import SavedAdapters, attach, recognise, unwrapped, without_wrapper
from .update import WeightUpdate

UPDATES: Dict[str, Type[WeightUpdate]] = {"SPLoRA": LowRank, "SPLoPA": Block}


@torch.no_grad()
def load_adapter_state_dict(
    network: nn.Module, state: Mapping[str, Tensor], train_others: bool = False
) -> Dict[str, Dict[str, Tensor]]:
    """Load what :func:`adapter_state_dict` gave onto the same base, in place.

    Adapters are inserted where they are missing. The outputs then are those of
    the saved network, bit for bit. Where a state was saved with masks of inputs
    and outputs, adapters and biases are zero outside of them; the base weights
    aren't touched, so cutting or gating those channels is left to the caller.

    Returns:
        The unpacked masks, as :func:`configure_parameter_read` takes them.

    Raises:
        AdapterError: an unknown layer, a shape that doesn't fit, a missing or
            unexpected entry. Nothing has changed then.
    """
    restored = restore(network, state)
    network = unwrapped(network)
    attach(network, restored.saved, train_others)
    for key, value in restored.values.items():
        attribute(network, key).copy_(value)
    return restored.masks


@dataclass
class Restored:
    """What a state makes of a network: its adapters, values by name, and masks."""

    saved: SavedAdapters
    values: Dict[str, Tensor] = field(default_factory=dict)
    masks: Dict[str, Dict[str, Tensor]] = field(default_factory=dict)


def restore(network: nn.Module, state: Mapping[str, Tensor]) -> Restored:
    """Check a state and give its values their full shapes; nothing changes.

    Raises:
        AdapterError: see :func:`load_adapter_state_dict`.
    """
    if not isinstance(state, Mapping):
        raise AdapterError(f"the state is a {type(state).__name__}, no dict of tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise AdapterError(f"the state holds {name}, a {kind}, which isn't of an adapter")
    state, network = without_wrapper(network, state), unwrapped(network)
    saved = recognise(network, state)
    if not saved.updates:
        raise AdapterError("the state holds no adapter")
    modules = dict(network.named_modules(remove_duplicate=False))
    whole = Restored(saved)
    values, masks = whole.values, whole.masks
    for name, updates in saved.updates.items():
        layer = modules[name]
        sizes: Dict[str, List[Tuple[int, Optional[Tensor]]]] = {}
        for update in updates:
            weight = update.part.weight_of(layer).detach()
            holder = UPDATES[saved.kinds[name]]
            full, mask = holder.restore(update.entries, weight)
            values.update({join(update.path, n): t for n, t in full.items()})
            masks[update.path] = mask
            for path in filter(None, (update.part.bias, update.part.extra)):
                if attribute(layer, path) is not None:
                    sizes.setdefault(path, []).append((weight.shape[0], holder.out_mask(mask)))
        extras = {update.part.extra for update in updates}
        for path, pieces in sizes.items():
            key = join(name, path)
            if key in state:
                saved.used.add(key)
                values[key] = _restore_bias(state[key], pieces, key, attribute(layer, path))
            elif path not in extras:  # these were frozen when older states were made
                raise AdapterError(f"the state lacks {key}")
    for path, (rows, cols) in saved.prototypes.items():
        values.update({f"{path}.rows": rows, f"{path}.cols": cols})
    values.update({f"{path}.weights": w for path, w in saved.positions.items()})
    for key, value in statistics(network).items():
        if key in state:  # older states have none
            expect_shape(state[key], value.shape, key)
            saved.used.add(key)
            values[key] = state[key]
    unexpected = sorted(set(state) - saved.used)
    if unexpected:
        raise AdapterError(f"the state holds {unexpected[0]}, which isn't of an adapter")
    return whole


def _restore_bias(
    saved: Tensor, pieces: List[Tuple[int, Optional[Tensor]]], key: str, bias: Tensor
) -> Tensor:
    """The whole bias, zero where it was masked."""
    kept = torch.cat(
        [
            torch.ones(size, dtype=torch.bool) if mask is None else mask.cpu()
            for size, mask in pieces
        ]
    ).to(saved.device)
    expect_shape(saved, (*bias.shape[:-1], int(kept.sum())), key)
    return saved.new_zeros(bias.shape).index_copy_(-1, kept.nonzero()[:, 0], saved)
