"""Products with a constant sparse weight, one class per layout.

Each is a function of ``x [rows, in]`` (rows > 0) to ``x Wᵀ + b``, ``[rows, out]``,
contiguous, without gradients. Weights are ``[out, in]``, biases ``[out]`` or None.
"""

import functools
import math
import warnings
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SparsityError
from .supports import Plan

Product = Callable[[Tensor], Tensor]
# makes a dense product of a weight [out, in] and a bias [out] or None
DenseFactory = Callable[[Tensor, Optional[Tensor]], Product]

_INT32 = 2**31 - 1
# Rows multiplied at once: more of them fall out of the second-level cache.
_CSR_TILE, _BSR_TILE = 32, 64
# Rows from which numbers are gathered from the transposed input.
_TRANSPOSED_ROWS = 16


class Dense:
    """``F.linear``."""

    def __init__(self, weight: Tensor, bias: Optional[Tensor] = None):
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        try:
            return F.linear(x, self.weight, self.bias)
        except RuntimeError:
            check_width(x, self.weight.shape[1])
            raise


def check_width(x: Tensor, inputs: int) -> None:
    """Refuse an input whose width is not the layer's.

    Raises:
        SparsityError: names both widths.
    """
    if x.shape[1] != inputs:
        raise SparsityError(f"input: {x.shape[1]} numbers in a row, the weight takes {inputs}")


class Constant:
    """The bias alone, for a weight that is all zero."""

    def __init__(self, weight: Tensor, bias: Optional[Tensor] = None):
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias

    def __call__(self, x: Tensor) -> Tensor:
        return self.bias.repeat(len(x), 1)


class Smaller:
    """A dense product without the outputs and inputs whose weights are all zero."""

    def __init__(self, weight: Tensor, bias: Optional[Tensor], dense: DenseFactory):
        used = weight != 0
        rows, columns = used.any(1), used.any(0)
        self.columns = self.inverse = self.bias = None
        if not columns.all():
            self.columns = columns.nonzero().squeeze(1)
            weight = weight.index_select(1, self.columns)
        if not rows.all():
            kept = rows.nonzero().squeeze(1)
            # a last row of zeros stands for all outputs that were cut away
            weight = F.pad(weight.index_select(0, kept), (0, 0, 0, 1))
            self.inverse = _inverse(kept, len(rows))
            self.bias, bias = bias, None
        self.product = dense(weight.contiguous(), bias)

    def __call__(self, x: Tensor) -> Tensor:
        if self.columns is not None:
            x = x.index_select(1, self.columns)
        return _in_order(self.product(x), self.inverse, self.bias)


def _inverse(order: Tensor, outputs: int) -> Tensor:
    """Where each output is found; the one behind the last stands for those left out."""
    inverse = order.new_full((outputs,), len(order))
    inverse[order] = torch.arange(len(order), device=order.device)
    return inverse


def _in_order(y: Tensor, inverse: Optional[Tensor], bias: Optional[Tensor]) -> Tensor:
    if inverse is not None:
        y = y.index_select(1, inverse)
    return y if bias is None else y.add_(bias)


class Gathered:
    """Groups of outputs that share inputs, as one batched product.

    Groups that use fewer inputs than the largest are padded with zeros.
    """

    def __init__(self, weight: Tensor, bias: Optional[Tensor], plan: Plan):
        outputs = len(weight)
        self.inverse = self.bias = None
        if plan.order is not None:
            weight = weight.index_select(0, plan.order)
            self.inverse = _inverse(plan.order, outputs)
            self.bias, bias = bias, None
        self.kept = len(weight)
        # outputs left out find their zero behind the last one
        self.spare = int(plan.order is not None and self.kept < outputs)
        size, groups, places = plan.size, len(plan.unions), plan.columns
        weight = F.pad(weight, (0, 0, 0, groups * size - self.kept))
        width = max(1, *map(len, places))
        packed = weight.new_zeros(groups, width, size)
        columns = places[0].new_zeros(groups, width)
        for number, (used, part) in enumerate(zip(places, weight.split(size))):
            packed[number, : len(used)] = part.index_select(1, used).t()
            columns[number, : len(used)] = used
        self.weight, self.columns, self.size = packed, columns.flatten(), size
        self.group_bias = None
        if bias is not None:
            bias = F.pad(bias, (0, groups * size - self.kept))
            self.group_bias = bias.view(groups, 1, size)

    def __call__(self, x: Tensor) -> Tensor:
        rows, (groups, width, size) = len(x), self.weight.shape
        if rows >= _TRANSPOSED_ROWS and len(self.columns) >= 2 * x.shape[1]:
            # inputs that several groups use are fetched in whole lines of the cache
            x = x.t().contiguous().index_select(0, self.columns)
            x = x.view(groups, width, rows).transpose(1, 2)
        else:
            x = x.index_select(1, self.columns).view(rows, groups, width).transpose(0, 1)
        if self.group_bias is None:
            y = torch.bmm(x, self.weight)
        else:
            y = torch.baddbmm(self.group_bias, x, self.weight)
        if self.spare:
            flat = y.new_empty(rows, groups * size + 1)
            flat[:, :-1].unflatten(1, (groups, size)).copy_(y.transpose(0, 1))
            flat[:, self.kept :] = 0
        else:
            flat = y.transpose(0, 1).reshape(rows, groups * size)
        if self.inverse is None and flat.shape[1] > self.kept:
            return flat[:, : self.kept].contiguous()
        return _in_order(flat, self.inverse, self.bias)


class Grouped:
    """Groups of outputs that share inputs, one dense product per group."""

    def __init__(self, weight: Tensor, bias: Optional[Tensor], plan: Plan, dense: DenseFactory):
        outputs, biases = len(weight), None
        self.inverse = self.bias = None
        if plan.order is not None:
            weight = weight.index_select(0, plan.order)
            self.inverse = _inverse(plan.order, outputs)
            self.bias, bias = bias, None
        self.spare = int(plan.order is not None and len(weight) < outputs)
        parts = weight.split(plan.size)
        biases = [None] * len(parts) if bias is None else bias.split(plan.size)
        self.columns = plan.columns
        self.products = [
            dense(part.index_select(1, used).contiguous(), part_bias)
            for part, part_bias, used in zip(parts, biases, self.columns)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        parts = [
            product(x.index_select(1, used)) for product, used in zip(self.products, self.columns)
        ]
        if self.spare:
            parts.append(x.new_zeros(len(x), 1))
        return _in_order(torch.cat(parts, 1), self.inverse, self.bias)


class Csr:
    """Compressed sparse rows times the transposed input."""

    def __init__(self, weight: Tensor, bias: Optional[Tensor] = None):
        self.weight = compressed(weight)
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.beta = 0 if bias is None else 1

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            return torch.addmv(self.bias, self.weight, x[0], beta=self.beta).unsqueeze(0)
        return by_tiles(x, self._times, _CSR_TILE)

    def _times(self, x: Tensor) -> Tensor:
        x, bias = x.t().contiguous(), self.bias.unsqueeze(1)
        return torch.addmm(bias, self.weight, x, beta=self.beta).t()


class Bsr:
    """Square blocks times the transposed input; the weight is padded to whole blocks."""

    def __init__(self, weight: Tensor, bias: Optional[Tensor], block: int):
        self.outputs, inputs = weight.shape
        self.more = -inputs % block
        padding = -self.outputs % block
        self.weight = compressed(F.pad(weight, (0, self.more, 0, padding)), block)
        self.beta = 0 if bias is None else 1
        if bias is None:
            bias = weight.new_zeros(self.outputs)
        self.bias = F.pad(bias, (0, padding))

    def __call__(self, x: Tensor) -> Tensor:
        if self.more:
            x = F.pad(x, (0, self.more))
        if len(x) > 1:
            return by_tiles(x, self._times, _BSR_TILE)
        y = torch.addmv(self.bias, self.weight, x[0], beta=self.beta)
        return y[: self.outputs].unsqueeze(0)

    def _times(self, x: Tensor) -> Tensor:
        x, bias = x.t().contiguous(), self.bias.unsqueeze(1)
        y = torch.addmm(bias, self.weight, x, beta=self.beta)
        return y[: self.outputs].t()


class SemiStructured:
    """2:4 sparsity on the tensor cores of NVIDIA GPUs (Ampere or later)."""

    def __init__(self, weight: Tensor, bias: Optional[Tensor] = None):
        self.weight = torch.sparse.to_sparse_semi_structured(weight)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@functools.cache
def _use_up_beta_warning() -> None:
    """Trigger torch's warning that compressed tensors are new, which comes once, unseen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = torch.ones(1, 1)
        one.to_sparse_csr()
        one.to_sparse_bsr((1, 1))


def compressed(weight: Tensor, block: Optional[int] = None) -> Tensor:
    """A weight as CSR tensor or, with a block size, as BSR tensor.

    Indices are of 32 bits where these suffice: MKL takes them as they are.
    """
    _use_up_beta_warning()
    if block is None:
        weight = weight.to_sparse_csr()
    else:
        weight = weight.to_sparse_bsr((block, block))
    parts = weight.crow_indices(), weight.col_indices(), weight.values()
    return from_indices(*parts, weight.shape)


def from_indices(crow: Tensor, column: Tensor, values: Tensor, shape) -> Tensor:
    """A CSR (values ``[n]``) or BSR tensor (``[n, block, block]``) of given parts."""
    _use_up_beta_warning()
    if max(values.shape[0], *shape) <= _INT32:
        crow, column = crow.int(), column.int()
    layout = torch.sparse_csr if values.dim() == 1 else torch.sparse_bsr
    return torch.sparse_compressed_tensor(
        crow, column, values, shape, layout=layout, check_invariants=False
    )


def by_tiles(x: Tensor, product: Product, tile: int = _CSR_TILE) -> Tensor:
    """``[rows, in]`` to ``[rows, out]``, contiguous; about ``tile`` rows at a time."""
    count = max(1, round(len(x) / tile))
    if count == 1:
        return product(x).contiguous()
    # whole vectors of the processor
    size = 16 * math.ceil(len(x) / count / 16)
    first, *others = x.split(size)
    done = product(first)
    y = x.new_empty(len(x), done.shape[1])
    y[:size].copy_(done)
    for part, place in zip(others, y.split(size)[1:]):
        place.copy_(product(part))
    return y
