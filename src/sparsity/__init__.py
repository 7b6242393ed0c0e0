"""Pruning of single weights and blocks, sparse files and sparse layers, for any model.

Gradual or one-shot pruning inside a training (:class:`Pruning`, the Pytorch Pruner's
configuration and hooks), with one call (``prune_by_pct`` and its like, as in
ModelPruningLibrary), files without zeros, layers that multiply without them, and a
report. This package needs torch, numpy, PyYAML, isal and safetensors, pandas and
matplotlib for reports and pictures, and nothing else of this project.
"""

from .errors import SparsityError
from .execution.layers import (
    DenseConv2d,
    DenseLinear,
    SparseConv2d,
    SparseLinear,
    to_dense,
    to_sparse,
)
from .execution.layouts import LAYOUTS, ByRows, fastest, prepare
from .execution.optim import SGD
from .files.storage import (
    is_sparse_file,
    load_sparse,
    read_metadata,
    save_sparse,
    sparse_size,
)
from .magnitude import (
    Prunable,
    prune_by_pct,
    prune_by_rank,
    prune_by_threshold,
    random_prune_by_pct,
)
from .prunable import apply_masks, calc_num_prunable_params, masks, parameter_name
from .pruning.config import load_config
from .pruning.hooks import Pruning
from .pruning.masking import Mask
from .pruning.patterns import parse_pattern
from .pruning.settings import PrunerSettings, PruningConfig

__all__ = [
    "ByRows",
    "DenseConv2d",
    "DenseLinear",
    "LAYOUTS",
    "Mask",
    "Prunable",
    "PrunerSettings",
    "Pruning",
    "PruningConfig",
    "SGD",
    "SparseConv2d",
    "SparseLinear",
    "SparsityError",
    "apply_masks",
    "calc_num_prunable_params",
    "fastest",
    "is_sparse_file",
    "load_config",
    "load_sparse",
    "masks",
    "parameter_name",
    "parse_pattern",
    "prepare",
    "prune_by_pct",
    "prune_by_rank",
    "prune_by_threshold",
    "random_prune_by_pct",
    "read_metadata",
    "save_sparse",
    "sparse_size",
    "sparsity_report",
    "to_dense",
    "to_sparse",
]


def __getattr__(name: str):
    if name == "sparsity_report":  # pandas takes a while to load, and few need it
        from .report import sparsity_report

        return sparsity_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
