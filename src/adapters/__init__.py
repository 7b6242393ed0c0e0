"""Structured pruning adapters: updates of frozen weights that can be cut with them.

SPLoRA (low rank, for channels) and SPLoPA (prototypes, for blocks) of Hedegaard
et al., *Structured Pruning Adapters* (arXiv 2211.10155), for any ``nn.Module``.
This package needs torch and nothing else.
"""

from .attention import SPLoPAMultiheadAttention, SPLoRAMultiheadAttention
from .bank import AdapterBank
from .block import SPLoPALinear
from .errors import AdapterError
from .insertion import SPLoPA, SPLoRA
from .layer import AdaptedLayer, adapted_layers, adapted_weight, fuse, reset_parameter_read
from .low_rank import (
    SPLoRAConv1d,
    SPLoRAConv2d,
    SPLoRAConv3d,
    SPLoRALinear,
)
from .mixing import weighted_sum
from .prototypes import Prototypes
from .reading import adapter_state_dict, configure_parameter_read
from .recognition import insert_like
from .report import report
from .state import load_adapter_state_dict

__all__ = [
    "AdaptedLayer",
    "AdapterBank",
    "AdapterError",
    "Prototypes",
    "SPLoPA",
    "SPLoPALinear",
    "SPLoPAMultiheadAttention",
    "SPLoRA",
    "SPLoRAConv1d",
    "SPLoRAConv2d",
    "SPLoRAConv3d",
    "SPLoRALinear",
    "SPLoRAMultiheadAttention",
    "adapted_layers",
    "adapted_weight",
    "adapter_state_dict",
    "configure_parameter_read",
    "fuse",
    "insert_like",
    "load_adapter_state_dict",
    "report",
    "reset_parameter_read",
    "weighted_sum",
]
