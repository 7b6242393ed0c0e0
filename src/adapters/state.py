"""What :func:`adapter_state_dict` gave, loaded again."""

from typing import Dict, List, Mapping, Optional, Tuple, Type

import torch
from torch import Tensor, nn

from .block import Block
from .errors import AdapterError
from .layer import WeightUpdate, attribute, join
from .low_rank import LowRank
from .masks import expect_shape
from .reading import statistics
from .recognition import attach, recognise

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
    if not isinstance(state, Mapping):
        raise AdapterError(f"the state is a {type(state).__name__}, no dict of tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise AdapterError(f"the state holds {name}, a {kind}, which isn't of an adapter")
    found = recognise(network, state)
    if not found.updates:
        raise AdapterError("the state holds no adapter")
    modules = dict(network.named_modules(remove_duplicate=False))
    values: Dict[str, Tensor] = {}
    masks: Dict[str, Dict[str, Tensor]] = {}
    for name, updates in found.updates.items():
        layer = modules[name]
        sizes: Dict[str, List[Tuple[int, Optional[Tensor]]]] = {}
        for update in updates:
            weight = update.part.weight_of(layer).detach()
            holder = UPDATES[found.kinds[name]]
            restored, mask = holder.restore(update.entries, weight)
            values.update({join(update.path, n): t for n, t in restored.items()})
            masks[update.path] = mask
            if attribute(layer, update.part.bias) is not None:
                kept = holder.out_mask(mask)
                sizes.setdefault(update.part.bias, []).append((weight.shape[0], kept))
        for path, pieces in sizes.items():
            key = join(name, path)
            if key not in state:
                raise AdapterError(f"the state lacks {key}")
            found.used.add(key)
            values[key] = _restore_bias(state[key], pieces, key)
    for path, (rows, cols) in found.prototypes.items():
        values.update({f"{path}.rows": rows, f"{path}.cols": cols})
    values.update({f"{path}.weights": w for path, w in found.positions.items()})
    for key, value in statistics(network).items():
        if key in state:  # older states have none
            expect_shape(state[key], value.shape, key)
            found.used.add(key)
            values[key] = state[key]
    unexpected = sorted(set(state) - found.used)
    if unexpected:
        raise AdapterError(f"the state holds {unexpected[0]}, which isn't of an adapter")
    attach(network, found, train_others)
    for key, value in values.items():
        attribute(network, key).copy_(value)
    return masks


def _restore_bias(saved: Tensor, pieces, key: str) -> Tensor:
    """The whole bias, zero where it was masked."""
    kept = torch.cat(
        [
            torch.ones(size, dtype=torch.bool) if mask is None else mask.cpu()
            for size, mask in pieces
        ]
    ).to(saved.device)
    expect_shape(saved, (int(kept.sum()),), key)
    return saved.new_zeros(kept.numel()).index_copy_(0, kept.nonzero()[:, 0], saved)
