"""Count the zeros of pruned models, and warn where fused adapters fill them."""

import logging
from typing import Dict

import torch
from torch import nn

from ..adapters import fuse

logger = logging.getLogger(__name__)

# Share of zeros from which a model counts as sparse: a dense one has next to none.
SPARSE = 0.01


@torch.no_grad()
def count_zeros(model: nn.Module) -> Dict[str, int]:
    """Zeros of the parameters that are matrices (or have more dimensions), by name.

    An embedding's row for padding is no weight, so its zeros alone are none.
    """
    rows = {}
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            rows[id(module.weight)] = module.padding_idx
    counts = {}
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            counts[name] = weight.numel() - int(weight.count_nonzero())
            row = rows.get(id(weight))
            if row is not None and counts[name] == weight.shape[1] and not weight[row].any():
                counts[name] = 0
    return counts


def is_sparse(model: nn.Module) -> bool:
    """Whether a model was pruned: at least 1 % of its weights are zero."""
    counts = count_zeros(model)
    elements = sum(weight.numel() for n, weight in model.named_parameters() if n in counts)
    return sum(counts.values()) >= SPARSE * elements > 0


def fuse_adapters(model: nn.Module, origin: str) -> nn.Module:
    """Fuse a model's adapters with its weights; warn if that fills zeros.

    Args:
        origin: option and file of the model, for messages.
    """
    before = count_zeros(model)
    fused = fuse(model)
    after = count_zeros(fused)
    elements = {n: w.numel() for n, w in fused.named_parameters() if before.get(n)}
    filled = sum(before[name] - after[name] for name in elements)
    zeros, total = sum(before[name] for name in elements), sum(elements.values())
    if filled > SPARSE * total > 0:
        logger.warning(
            f"{origin}: its adapters, fused with sparse weights, fill {filled:,} of "
            f"{zeros:,} zeros: sparsity {zeros / total:.4f} -> {(zeros - filled) / total:.4f}; "
            "finetune without adapters to keep them, or prune again (--sparsity-config)"
        )
    return fused
