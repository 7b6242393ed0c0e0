"""What adapters cost, next to the weights that they adapt."""

from typing import Any, Dict, List, Optional

from torch import nn

from .layer import adapted_layers, attribute, join, parts
from .reading import Masks, check_masks, learned

Row = Dict[str, Any]


def report(network: nn.Module, masks: Optional[Masks] = None) -> List[Row]:
    """Sizes per adapted layer, of shared parameters, and in total (last row).

    Args:
        network: an adapted network or layer.
        masks: see :func:`configure_parameter_read`.

    Returns:
        Rows with ``name``, ``kind``, ``base`` (parameters of the layer, in the
        total row of the whole network, without adapters), ``adapter`` (learned
        adapter parameters), ``biases`` (learned), ``mask_bits``, ``bytes`` (of all
        that is learned, and masks; without statistics of batch normalization),
        ``percent`` (adapter and biases of ``base``), ``exceeds`` (more
        adapter parameters than weights adapted) and ``note``.

    Raises:
        AdapterError: no adapter, or a mask that doesn't fit.
    """
    masks = masks or {}
    check_masks(network, masks)
    rows, counted, shared = [], set(), {}
    for name, layer in adapted_layers(network).items():
        row = _row(name, type(layer).__name__)
        biases = {join(name, path) for path in layer.biases()}
        stored = {
            join(name, part.update, n): getattr(part.update_of(layer), n)
            for part in parts(layer)
            for n in part.update_of(layer).adapter_names
        }
        for key, tensor in learned(name, layer, masks).items():
            original = stored[key] if key in stored else attribute(network, key)
            if id(original) in counted:
                continue  # tied to a layer above
            counted.add(id(original))
            row["biases" if key in biases else "adapter"] += tensor.numel()
            row["bytes"] += tensor.numel() * tensor.element_size()
        for path in dict.fromkeys(part.weight for part in parts(layer)):
            weight = attribute(layer, path)
            if id(weight) not in counted:
                counted.add(id(weight))
                row["weights"] += weight.numel()
        row["base"] = row["weights"] + sum(b.numel() for b in layer.biases().values())
        for update in layer.updates().values():
            row["mask_bits"] += update.mask_bits()
            shared.update({id(m): m for m in update.shared_modules()})
        row["bytes"] += -(-row["mask_bits"] // 8)
        rows.append(_finish(row))
    for module in shared.values():
        row = _row("", type(module).__name__)
        for parameter in module.parameters():
            counted.add(id(parameter))
            row["adapter"] += parameter.numel()
            row["bytes"] += parameter.numel() * parameter.element_size()
        names = [n for n, m in network.named_modules() if m is module]
        row["name"] = names[0] if names else "(held elsewhere)"
        rows.append(_finish(row))
    total = _row("total", type(network).__name__)
    for key in ("weights", "adapter", "biases", "mask_bits", "bytes"):
        total[key] = sum(row[key] for row in rows)
    adapters = {
        id(p)
        for layer in adapted_layers(network).values()
        for update in layer.updates().values()
        for p in [getattr(update, n) for n in update.adapter_names]
    }
    adapters |= {id(p) for m in shared.values() for p in m.parameters()}
    everything = type(network).named_parameters(network)
    total["base"] = sum(p.numel() for _, p in everything if id(p) not in adapters)
    return [*rows, _finish(total)]


def _row(name: str, kind: str) -> Row:
    numbers = ("weights", "base", "adapter", "biases", "mask_bits", "bytes")
    return {"name": name, "kind": kind, **dict.fromkeys(numbers, 0)}


def _finish(row: Row) -> Row:
    learned_now = row["adapter"] + row["biases"]
    row["percent"] = 100 * learned_now / row["base"] if row["base"] else 0.0
    row["exceeds"] = 0 < row["weights"] < row["adapter"]
    row["note"] = ""
    if row["exceeds"]:
        row["note"] = (
            f"the adapter ({row['adapter']:,}) exceeds the weights it adapts "
            f"({row['weights']:,}); a smaller rank or fewer prototypes would do"
        )
    return row
