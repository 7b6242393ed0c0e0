"""The functions of torch that no release promises, each with a public one in its place.

Nothing else of this project calls a function of torch whose name begins with an
underscore. Each is looked up here once; where a torch lacks it, the public fallback gives
the same result, only slower. This file imports nothing of the project, so that any room
but the libraries may import it.
"""

from functools import partial
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw

_BLOCK_ROWS = 64  # rows that oneDNN is told to expect; any number of them is right


def _look_up(owner: Any, name: str) -> Optional[Callable]:
    """The function ``owner.name``, or None where this torch has none."""
    return getattr(owner, name, None)


LINEAR_POINTWISE = _look_up(torch.ops.mkldnn, "_linear_pointwise")
REORDER_LINEAR_WEIGHT = _look_up(torch.ops.mkldnn, "_reorder_linear_weight")
FUSED_ADAMW = _look_up(torch, "_fused_adamw_")
THRESHOLD_BACKWARD = _look_up(torch.ops.aten, "threshold_backward")


def has_onednn() -> bool:
    """Whether matrix products can be asked of oneDNN."""
    return LINEAR_POINTWISE is not None and torch.backends.mkldnn.is_available()


def onednn_linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """``x Wᵀ + b`` on oneDNN, not differentiable; public: ``F.linear``.

    Shapes:
        x ``[..., in]``, weight ``[out, in]`` or what :func:`onednn_weight` made of it,
        bias ``[out]``, result ``[..., out]``.
    """
    if LINEAR_POINTWISE is None:
        return F.linear(x, weight, bias)
    return LINEAR_POINTWISE(x, weight, bias, "none", [], "")


def onednn_weight(weight: Tensor) -> Tensor:
    """A weight ``[out, in]`` laid out for :func:`onednn_linear`; public: row by row."""
    weight = weight.contiguous()
    if REORDER_LINEAR_WEIGHT is None or LINEAR_POINTWISE is None:
        return weight
    return REORDER_LINEAR_WEIGHT(weight, _BLOCK_ROWS)


def threshold_backward(gradient: Tensor, output: Tensor) -> Tensor:
    """The gradient of relu from its output; public: ``torch.where``."""
    if THRESHOLD_BACKWARD is None:
        return torch.where(output <= 0, 0, gradient)
    return THRESHOLD_BACKWARD(gradient, output, 0)


def fused_adamw_(
    parameters: List[Tensor],
    gradients: List[Tensor],
    exp_avgs: List[Tensor],
    exp_avg_sqs: List[Tensor],
    steps: List[Tensor],
    **settings: float,
) -> None:
    """One step of AdamW on all parameters, in place; public: ``torch.optim.adamw.adamw``.

    The public function checks every parameter first, a tenth of the kernel's time.

    Args:
        steps: how many steps each has had, this one included.
        settings: lr, beta1, beta2, weight_decay, eps.
    """
    tensors = parameters, gradients, exp_avgs, exp_avg_sqs, []
    if FUSED_ADAMW is not None:
        FUSED_ADAMW(
            *tensors,
            steps,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=None,
            **settings,
        )
        return
    for step in steps:
        step.sub_(1)  # which the public function counts itself
    adamw(*tensors, steps, fused=True, amsgrad=False, maximize=False, **settings)


def _for_each(name: str, tensors: Sequence[Tensor], *values: Any, **settings: Any) -> Any:
    """``Tensor.name`` of every tensor; a list among ``values`` has a value for each."""
    apply = getattr(Tensor, name)
    return [
        apply(tensor, *(v[i] if isinstance(v, (list, tuple)) else v for v in values), **settings)
        for i, tensor in enumerate(tensors)
    ]


def _on_all(name: str) -> Callable:
    """One operator for many tensors, which a GPU is asked for once; public: a loop."""
    return _look_up(torch, f"_foreach_{name}") or partial(_for_each, name)


foreach_copy_ = _on_all("copy_")
foreach_mul_ = _on_all("mul_")
foreach_norm = _on_all("norm")
foreach_zero_ = _on_all("zero_")


def has_avx512_bf16() -> bool:
    """Whether the processor has instructions for bfloat16, as torch or the system says."""
    capabilities = _look_up(torch.cpu, "get_capabilities")
    if capabilities is not None:
        return bool(capabilities().get("avx512_bf16", False))
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
