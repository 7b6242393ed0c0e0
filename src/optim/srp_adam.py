"""AdamW on PyTorch's fused implementation."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, List, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II, OmegaConf

from ..connectivity.freeze import Freezer
from ..errors import UserError
from ..modules.torch_private import foreach_norm
from .frozen_step import FrozenStep, clip


@dataclass
class SRPAdamConfig(FairseqDataclass):
    adam_betas: Any = field(default=(0.9, 0.999), metadata={"help": "betas for Adam optimizer"})
    adam_eps: float = field(default=1e-8, metadata={"help": "epsilon for Adam optimizer"})
    weight_decay: float = field(
        default=0.0,
        metadata={"help": "decoupled weight decay; frozen channels do not decay"},
    )
    lr: List[float] = II("optimization.lr")


def parse_betas(value: Any) -> tuple:
    """``(b1, b2)`` from a pair or from its text.

    Raises:
        UserError: not two numbers in [0, 1).
    """
    try:
        if isinstance(value, str):
            value = [float(part) for part in value.strip(" ()[]").split(",")]
        elif OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
        first, second = (float(part) for part in value)
        if 0 <= first < 1 and 0 <= second < 1:
            return first, second
    except (TypeError, ValueError):
        pass
    raise UserError(f"--adam-betas {value!r}: two numbers in [0, 1) are expected, as '(0.9, 0.98)'")


@register_optimizer("srp_adam", dataclass=SRPAdamConfig)
class SRPAdam(FairseqOptimizer):
    """fairseq's ``adam`` (decoupled weight decay, as AdamW) in one fused kernel.

    The only difference: epsilon is added to the bias-corrected second moment's
    root, as in ``torch.optim.AdamW``, not to the uncorrected one's.
    """

    def __init__(self, cfg: SRPAdamConfig, params):
        super().__init__(cfg)
        self._optimizer = torch.optim.AdamW(params, fused=True, **self.optimizer_config)
        self._frozen_step: Optional[FrozenStep] = None

    def freeze(self, freezer: Freezer) -> bool:
        """Leave frozen weights as they are, and out of the gradient norm, from now on.

        Returns:
            Whether it will; if not (on a GPU), the freezer must mask and restore.
        """
        if self._frozen_step is not None and self._frozen_step.freezer is freezer:
            return True
        self.unfreeze()
        if not FrozenStep.suits(self.optimizer):
            return False
        self._frozen_step = FrozenStep(self.optimizer, freezer)
        return True

    def unfreeze(self) -> None:
        """End :meth:`freeze`; due before parameters are cut."""
        if self._frozen_step is not None:
            self._frozen_step.release()
            self._frozen_step = None

    def clip_grad_norm(self, max_norm, aggregate_norm_fn=None):
        if self._frozen_step is not None:
            return self._frozen_step.clip_grad_norm(max_norm, aggregate_norm_fn)
        gradients = [p.grad.detach() for p in self.params if p.grad is not None]
        if not gradients or not all(gradient.is_cuda for gradient in gradients):
            return super().clip_grad_norm(max_norm, aggregate_norm_fn)
        # one operator for all gradients, where fairseq calls one for each
        norms = foreach_norm(gradients, 2, dtype=torch.float32)
        total = torch.linalg.vector_norm(torch.stack(norms))
        if aggregate_norm_fn is not None:
            total = aggregate_norm_fn(total)
        clip(gradients, total, max_norm)
        return total

    def step(self, closure=None, scale=1.0, groups=None):
        if self._frozen_step is None:
            return super().step(closure, scale, groups)
        if closure is not None:
            with torch.enable_grad():
                closure()
        if scale != 1.0:
            self.multiply_grads(1.0 / scale)
        self._frozen_step.step()

    def state_dict(self):
        if self._frozen_step is None:
            return super().state_dict()
        return self._frozen_step.state_dict()

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        self._frozen_step = None  # its moments are out of date
        super().load_state_dict(state_dict, optimizer_overrides)

    @property
    def optimizer_config(self):
        lr = self.cfg.lr
        lr = lr[0] if isinstance(lr, Collection) else lr
        for option, value in (("--lr", lr), ("--weight-decay", self.cfg.weight_decay)):
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{option} {value:g}: must be a number of at least 0")
        epsilon = self.cfg.adam_eps
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise UserError(
                f"--adam-eps {epsilon:g}: must be a number above 0; with 0, weights without "
                "a gradient become NaN"
            )
        return {
            "lr": lr,
            "betas": parse_betas(self.cfg.adam_betas),
            "eps": epsilon,
            "weight_decay": self.cfg.weight_decay,
        }

    @property
    def supports_flat_params(self):
        return True
