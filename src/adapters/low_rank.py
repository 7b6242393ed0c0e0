"""SPLoRA: a low-rank update that can be cut by inputs and outputs.

Hedegaard et al., *Structured Pruning Adapters* (arXiv 2211.10155), section 3.1.
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Dict, List, Mapping, Optional, Union, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .errors import AdapterError
from .layer import AdaptedLinear, SelfAdapted
from .masks import check_mask, expect_shape, mask_size, pack, unpack
from .reading import ConfigurableRead
from .update import WeightUpdate, no_autocast, recording, uniform


@dataclass(frozen=True)
class LowRankSettings:
    """Settings of SPLoRA.

    Args:
        rank: rank of the update, or a fraction in (0, 1) of the outputs.
        init_range: ``cols ~ U(-init_range, init_range)``.
        fresh: whether the update is a new one. The layer of one that was saved may have
            been cut below its rank since.
    """

    rank: Union[int, float] = 16
    init_range: float = 1e-4
    fresh: bool = True

    def __post_init__(self):
        rank = self.rank
        whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
        if not whole and not (isinstance(rank, float) and 0 < rank < 1):
            raise AdapterError(
                f"rank {rank!r}: expected an integer of at least 1 or a fraction in (0, 1)"
            )
        check_init_range(self.init_range)

    def size(self, n: int, m: int) -> int:
        """The rank for a weight ``[n, m]``.

        Raises:
            AdapterError: a fresh one above ``min(n, m)``, where it has full rank anyway.
        """
        rank = self.rank
        if isinstance(rank, float):
            rank = max(1, round(rank * n))
        if self.fresh and rank > min(n, m):
            raise AdapterError(f"rank {rank} is above min(outputs, inputs) = {min(n, m)}")
        return rank

    def check(self, weight: Tensor) -> None:
        """Raises AdapterError if ``weight [n, m, *kernel]`` can't be adapted."""
        self.size(*weight.shape[:2])
        kernel = tuple(weight.shape[2:])
        if any(k % 2 == 0 for k in kernel):
            raise AdapterError(f"kernel {kernel} has no centre; all kernel sizes must be odd")


def check_init_range(init_range: float) -> None:
    """Raises AdapterError unless ``init_range`` is a finite number from 0 on."""
    number = isinstance(init_range, Real) and not isinstance(init_range, bool)
    if not number or not 0 <= init_range < math.inf:
        raise AdapterError(f"init_range {init_range!r}: expected a number of at least 0")


class LowRank(WeightUpdate):
    """Parameters ``rows [r, m]`` and ``cols [n, r]`` of ``cols @ rows``.

    ``adapter_slices`` says which of them is cut when a dimension of the weight is cut:
    ``{dimension of the weight: (name, dimension)}``.
    """

    adapter_names = ("rows", "cols")
    adapter_slices = {0: ("cols", 0), 1: ("rows", 1)}
    mask_names = ("in_features_mask", "out_features_mask")
    rows: nn.Parameter
    cols: nn.Parameter

    @property
    def rank(self) -> int:
        return self.rows.shape[0]

    def start(self, weight: Tensor, settings: LowRankSettings) -> None:
        """Register fresh parameters for ``weight [n, m, *kernel]``."""
        n, m = weight.shape[:2]
        rank = settings.size(n, m)
        self.rows = uniform((rank, m), 1 / math.sqrt(rank * m), weight)
        self.cols = uniform((n, rank), settings.init_range, weight)

    def share(self, other: "LowRank") -> None:
        self.rows, self.cols = other.rows, other.cols

    def remove(self) -> None:
        del self.rows, self.cols

    def shared_modules(self) -> List[nn.Module]:
        return []

    def sources(self) -> List[Tensor]:
        own = self._parameters
        return [cast(Tensor, own["rows"]), cast(Tensor, own["cols"])]

    def merge(self, weight: Tensor) -> Tensor:
        """``weight [n, m, *kernel]`` plus the update (at the centre tap), cast once."""
        with no_autocast(weight.device):
            update = self.cols @ self.rows
            kernel = weight.shape[2:]
            if kernel:
                update = update.view(*update.shape, *[1] * len(kernel))
                update = F.pad(update, [k // 2 for k in reversed(kernel) for _ in "ab"])
            return (weight + update).to(weight.dtype)

    def read(self, mask: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        rows: Tensor = self.rows
        cols: Tensor = self.cols
        kept = mask.get("in_features_mask")
        if kept is not None:
            rows = rows[:, kept.to(rows.device)]
        kept = mask.get("out_features_mask")
        if kept is not None:
            cols = cols[kept.to(cols.device)]
        return {"rows": rows, "cols": cols}

    def read_weight(self, weight: Tensor, mask: Mapping[str, Tensor]) -> Tensor:
        for dim, name in enumerate(("out_features_mask", "in_features_mask")):
            if mask.get(name) is not None:
                kept = mask[name].to(weight.device)
                weight = weight.index_select(dim, kept.nonzero()[:, 0])
        return weight

    def check_masks(self, mask: Mapping[str, Tensor], where: str) -> None:
        sizes = dict(in_features_mask=self.rows.shape[1:])
        sizes.update(out_features_mask=self.cols.shape[:1])
        check_mask(mask, sizes, where)

    def mask_bits(self) -> int:
        return self.rows.shape[1] + self.cols.shape[0]

    def packed_masks(self, mask: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        return {name: pack(mask[name]) for name in mask if mask[name] is not None}

    @staticmethod
    def out_mask(mask: Mapping[str, Tensor]) -> Optional[Tensor]:
        return mask.get("out_features_mask")

    @classmethod
    def recognise(cls, entries: Mapping[str, Tensor], weight: Tensor, where: str):
        """Settings of an update, read off the shapes of its saved entries.

        Raises:
            AdapterError: an entry is missing or doesn't fit ``weight``.
        """
        sizes = []
        for dim, name in enumerate(("out_features_mask", "in_features_mask")):
            size = weight.shape[dim]
            if name in entries:
                size = mask_size(entries[name], size, f"{where}.{name}")
            sizes.append(size)
        rank = entries["rows"].shape[0] if entries["rows"].dim() else 0
        expect_shape(entries["rows"], (rank, sizes[1]), f"{where}.rows")
        expect_shape(entries["cols"], (sizes[0], rank), f"{where}.cols")
        settings = LowRankSettings(rank, fresh=False)
        try:
            settings.check(weight)
        except AdapterError as error:
            raise AdapterError(f"{where}: {error}") from None
        return settings

    def fits(self, settings: LowRankSettings) -> bool:
        return self.rank == settings.rank

    @classmethod
    def restore(cls, entries: Mapping[str, Tensor], weight: Tensor):
        n, m = weight.shape[:2]
        masks = {}
        rows, cols = entries["rows"], entries["cols"]
        if "in_features_mask" in entries:
            kept = masks["in_features_mask"] = unpack(entries["in_features_mask"], m)
            index = kept.nonzero()[:, 0].to(rows.device)  # masks may be on the CPU
            rows = rows.new_zeros(rows.shape[0], m).index_copy_(1, index, rows)
        if "out_features_mask" in entries:
            kept = masks["out_features_mask"] = unpack(entries["out_features_mask"], n)
            index = kept.nonzero()[:, 0].to(cols.device)
            cols = cols.new_zeros(n, cols.shape[1]).index_copy_(0, index, cols)
        return {"rows": rows, "cols": cols}, masks


class _MergedProduct(torch.autograd.Function):
    """``x (W + cols rows)ᵀ + b`` with gradients of x, b, rows and cols, never of W.

    The update is added to the weight, anew in the backward pass, so that outputs and
    gradients of x take one product each, and no more memory than a plain layer's.
    """

    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(x, weight, bias, rows, cols, product):
        return product(x, torch.addmm(weight, cols, rows), bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, rows, cols, ctx.product = inputs
        ctx.save_for_backward(x, weight, rows, cols)

    @staticmethod
    def backward(ctx, grad):
        x, weight, rows, cols = ctx.saved_tensors
        product = ctx.product
        by_x = by_bias = by_rows = by_cols = None
        flat, inputs = grad.flatten(0, -2), x.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            by_x = product(grad, torch.addmm(weight, cols, rows).t())
        if ctx.needs_input_grad[2]:
            by_bias = flat.sum(0)
        if ctx.needs_input_grad[3]:
            by_rows = product(product(flat, cols.t()).t(), inputs.t())
        if ctx.needs_input_grad[4]:
            by_cols = product(product(inputs, rows).t(), flat.t()).t()
        return by_x, None, by_bias, by_rows, by_cols, None


class SPLoRALinear(ConfigurableRead, LowRank, AdaptedLinear):
    """``x Wᵀ + b + (x rowsᵀ) colsᵀ``; fused in inference."""

    def forward(self, x: Tensor) -> Tensor:
        product = self.product
        if self.fuses():
            return product(x, self.fused_weights()["weight"], self.bias)
        weight = self.weight.detach()
        if self._merging_pays(x, weight):
            rows, cols = self.rows, self.cols
            return _MergedProduct.apply(x, weight, self.bias, rows, cols, product)
        low = self.rows.to(weight.dtype), self.cols.to(weight.dtype)
        return product(x, weight, self.bias) + product(product(x, low[0]), low[1])

    def _merging_pays(self, x: Tensor, weight: Tensor) -> bool:
        """Whether adding the update to the weight is less work than to the outputs.

        In half precision it would round the update away.
        """
        n, m = weight.shape
        return (
            not x.is_nested
            and x.dim() > 1
            and x.numel() * (n + m) >= 2 * n * m * m
            and x.dtype == weight.dtype == self.rows.dtype
            and not torch.is_autocast_enabled(x.device.type)
            and not torch.compiler.is_compiling()
            and not recording()
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"


class _LowRankConv(ConfigurableRead, LowRank, SelfAdapted, _ConvNd):
    """The update goes to the centre tap, as two convolutions of size 1."""

    def forward(self, x: Tensor) -> Tensor:
        if self.fuses():
            return self._conv_forward(x, self.fused_weights()["weight"], self.bias)
        weight = self.weight.detach()
        base = self._conv_forward(x, weight, self.bias)
        return base + self._low_rank(x, weight)

    def _low_rank(self, x: Tensor, weight: Tensor) -> Tensor:
        dims = weight.dim() - 2
        convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        reach = [d * (k // 2) for d, k in zip(self.dilation, weight.shape[2:])]
        padding = [0] * dims
        if self.padding_mode != "zeros":
            around = self._reversed_padding_repeated_twice
            x = F.pad(x, around, mode=self.padding_mode)
        elif isinstance(self.padding, str):
            padding = reach if self.padding == "same" else [0] * dims
        else:
            padding = list(self.padding)
        # Where the centre tap of the first and the last window lies in the input.
        margins = [p - r for p, r in zip(padding, reach)]
        if any(margins):
            x = F.pad(x, [margin for margin in reversed(margins) for _ in "ab"])
        rows, cols = self.rows.to(weight.dtype), self.cols.to(weight.dtype)
        ones = [1] * dims
        rows = rows.repeat(self.groups, 1).view(-1, rows.shape[1], *ones)
        hidden = convolve(x, rows, stride=self.stride, groups=self.groups)
        return convolve(hidden, cols.view(*cols.shape, *ones), groups=self.groups)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"


class SPLoRAConv1d(_LowRankConv, nn.Conv1d):
    """``nn.Conv1d`` with a low-rank update of its centre tap."""

    plain_class = nn.Conv1d


class SPLoRAConv2d(_LowRankConv, nn.Conv2d):
    """``nn.Conv2d`` with a low-rank update of its centre tap."""

    plain_class = nn.Conv2d


class SPLoRAConv3d(_LowRankConv, nn.Conv3d):
    """``nn.Conv3d`` with a low-rank update of its centre tap."""

    plain_class = nn.Conv3d
