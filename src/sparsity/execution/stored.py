"""A weight stored as its nonzero values, and products with it."""

from abc import ABC, abstractmethod
from typing import Any, Callable, Dict, NamedTuple, Optional, Self, Tuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import SparsityError
from .products import by_tiles, from_indices

# Density up to which training multiplies stored values alone.
_SPARSE_TRAINING = 0.25
_INT32 = 2**31 - 1


class Pattern(NamedTuple):
    """Where the values of a weight ``[out, in]`` stand, row by row.

    Attributes:
        shape: of the weight as a matrix.
        crow: ``[out + 1]``, where each output's values begin.
        column: ``[n]``, the input of each value.
        places: ``[n]``, position in the flattened matrix, int64.
    """

    shape: Tuple[int, int]
    crow: Tensor
    column: Tensor
    places: Tensor

    @classmethod
    def of(cls, shape: Tuple[int, int], crow: Tensor, column: Tensor) -> "Pattern":
        counts = crow.diff().long()
        rows = torch.arange(shape[0], device=crow.device)
        rows = rows.repeat_interleave(counts, output_size=len(column))
        return cls(shape, crow, column, rows * shape[1] + column)

    def transposed(self) -> Tuple["Pattern", Tensor]:
        """The pattern of the transposed matrix, and the order of its values."""
        outputs, inputs = self.shape
        order = self.column.argsort(stable=True)
        crow = F.pad(torch.bincount(self.column, minlength=inputs).cumsum(0), (1, 0))
        rows = self.places.div(max(1, inputs), rounding_mode="floor")
        parts = crow.to(self.crow), rows[order].to(self.column)
        return Pattern.of((inputs, outputs), *parts), order

    def dense(self, values: Tensor) -> Tensor:
        """The matrix; differentiable by ``values``."""
        flat = values.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_copy(0, self.places, values).view(self.shape)

    def csr(self, values: Tensor) -> Tensor:
        return from_indices(self.crow, self.column, values.detach(), self.shape)

    def problem(self, count: int) -> Optional[str]:
        """What is wrong with the indices of ``count`` values, or None."""
        outputs, inputs = self.shape
        crow, column = self.crow, self.column
        if crow.shape != (outputs + 1,) or column.shape != (count,):
            return "crow_indices or col_indices have another length"
        if crow[0] != 0 or crow[-1] != count or (crow.diff() < 0).any():
            return "crow_indices do not ascend from 0 to the number of values"
        if count and not (0 <= column.min() and column.max() < inputs):
            return f"col_indices are not in 0 to {inputs - 1}"
        if (Pattern.of(*self[:3]).places.diff() <= 0).any():
            return "col_indices do not ascend within an output"
        return None


class SparseProduct(torch.autograd.Function):
    """``x Wᵀ + b`` with the gradients of ``x``, of the stored values and of ``b``.

    Where few values are stored, they alone are multiplied, in the backward pass too.
    """

    @staticmethod
    def forward(ctx, x, values, bias, pattern, transposed):
        ctx.pattern, ctx.transposed = pattern, transposed
        if transposed is None:
            weight = pattern.dense(values)
            ctx.save_for_backward(x, weight)
            return F.linear(x, weight, bias)
        ctx.save_for_backward(x, values)
        y = _times(pattern.csr(values), x)
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # of the weight its values, or all of it where all is multiplied
        x, values = ctx.saved_tensors
        pattern, by_x, by_values, by_bias = ctx.pattern, None, None, None
        if ctx.needs_input_grad[0]:
            if ctx.transposed is None:
                by_x = grad @ values
            else:
                other, order = ctx.transposed
                by_x = _times(other.csr(values.index_select(0, order)), grad)
        if ctx.needs_input_grad[1]:
            if ctx.transposed is None:
                by_values = (grad.t() @ x).flatten().index_select(0, pattern.places)
            else:
                zeros = pattern.csr(torch.zeros_like(values))
                columns = grad.t().contiguous()
                product = torch.sparse.sampled_addmm(zeros, columns, x.contiguous())
                by_values = product.values()
        if ctx.needs_input_grad[2]:
            by_bias = grad.sum(0)
        return by_x, by_values, by_bias, None, None


def _times(csr: Tensor, x: Tensor) -> Tensor:
    """``x [rows, in]`` times a CSR matrix ``[out, in]``, transposed."""
    if not len(x):
        return x.new_empty(0, csr.shape[0])
    return by_tiles(x, lambda part: (csr @ part.t().contiguous()).t())


def _stamp(tensor: Optional[Tensor]) -> Optional[Tuple[int, int]]:
    """Changes when a tensor is replaced or written.

    Not where it is written to through ``.data`` or by a fused optimizer: only reading
    all of it would tell, which costs as much as a product with one row.
    """
    if tensor is None or tensor.is_inference():
        return None
    return tensor.data_ptr(), tensor._version


def recording() -> bool:
    """Whether a graph is being traced or exported; it gets the dense weight."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def check_model(model: object) -> None:
    """Refuse a model that is not a ``torch.nn.Module``."""
    if not isinstance(model, nn.Module):
        raise SparsityError(f"model: a {type(model).__name__} is none; give a torch.nn.Module")


def zero_held(layer: nn.Module) -> None:
    """Write the zeros that a layer holds, as ``DenseLinear`` does, into its weight."""
    settle = getattr(layer, "zero_held", None)
    if settle is not None:
        settle()


Dense = TypeVar("Dense", bound=nn.Module)
Product = TypeVar("Product", bound=Callable)


class StoredWeight(nn.Module, ABC):
    """Base class of layers whose weight is stored as values and indices.

    The state dict has ``values`` ``[n]``, ``crow_indices`` ``[out + 1]``,
    ``col_indices`` ``[n]`` and ``bias``; the weight is seen as a matrix of its first
    dimension by all others. Loading one with another number of values resizes the
    layer.

    Args:
        weight_shape: of the dense weight.
        bias: learn one.
    """

    def __init__(self, weight_shape: Tuple[int, ...], bias: bool, device, dtype):
        super().__init__()
        self.weight_shape = tuple(weight_shape)
        outputs, inputs = self.matrix_shape
        if max(outputs, inputs) > _INT32:
            raise SparsityError(f"weight of shape {self.weight_shape}: is too large")
        given = {"device": device, "dtype": dtype}
        self.values = nn.Parameter(torch.empty(0, **given))
        self.bias: Optional[nn.Parameter]
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(outputs, **given)) if bias else None
        )
        crow = torch.zeros(outputs + 1, dtype=torch.int32, device=device)
        self.register_buffer("crow_indices", crow)
        self.register_buffer("col_indices", crow[:0].clone())
        self.forget()

    @property
    def matrix_shape(self) -> Tuple[int, int]:
        inputs = 1
        for size in self.weight_shape[1:]:
            inputs *= size
        return self.weight_shape[0], inputs

    def store(self, weight: Tensor, bias: Optional[Tensor]) -> None:
        """Take over a dense layer's bias and the nonzero values of its weight."""
        matrix = weight.detach().flatten(1)
        places = matrix.flatten().nonzero().squeeze(1)
        counts = (matrix != 0).sum(1)
        short = torch.int32 if len(places) <= _INT32 else torch.int64
        self.crow_indices = F.pad(counts.cumsum(0), (1, 0)).to(short)
        self.col_indices = (places % max(1, matrix.shape[1])).to(short)
        values = matrix.flatten().index_select(0, places)
        self.values = nn.Parameter(values, requires_grad=weight.requires_grad)
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        self.forget()

    @classmethod
    @abstractmethod
    def from_dense(cls, layer: Any) -> Self:
        """Store the nonzero weights of a dense layer, which is left unchanged."""

    @abstractmethod
    def to_dense(self) -> nn.Module:
        """A dense layer with exactly these weights."""

    def give(self, layer: Dense) -> Dense:
        """Set a dense layer's weight and bias to what is stored."""
        weight = layer.get_parameter("weight")
        with torch.no_grad():
            weight.copy_(self.weight)
            if self.bias is not None:
                bias = layer.get_parameter("bias")
                bias.copy_(self.bias)
                bias.requires_grad_(self.bias.requires_grad)
        weight.requires_grad_(self.values.requires_grad)
        return layer.train(self.training)

    def forget(self) -> None:
        """Drop everything derived from the values and their positions."""
        self._pattern: Optional[Pattern] = None
        self._transposed: Optional[Tuple[Pattern, Tensor]] = None
        self._product: Any = None
        self._made_of: Optional[tuple] = None
        self._names: Dict = {}

    @property
    def pattern(self) -> Pattern:
        if self._pattern is not None and not recording():
            return self._pattern
        pattern = Pattern.of(self.matrix_shape, self.crow_indices, self.col_indices)
        if not recording():
            self._pattern = pattern
        return pattern

    @property
    def weight(self) -> Tensor:
        """The dense weight, computed on each access; differentiable by the stored values."""
        return self.pattern.dense(self.values).view(self.weight_shape)

    @property
    def density(self) -> float:
        outputs, inputs = self.matrix_shape
        return self.values.numel() / max(1, outputs * inputs)

    def transposed_for_training(self) -> Optional[Tuple[Pattern, Tensor]]:
        """The pattern of the transposed weight, or None where dense products are used."""
        if (
            self.density > _SPARSE_TRAINING
            or self.values.device.type != "cpu"
            or self.values.dtype not in (torch.float32, torch.float64)
            or self.values.numel() == 0
            or not torch.backends.mkl.is_available()
        ):
            return None
        if self._transposed is None:
            self._transposed = self.pattern.transposed()
        return self._transposed

    def is_constant(self, x: Tensor) -> bool:
        """Whether a product prepared ahead may be used: evaluating, without gradients."""
        # a replica of DataParallel lives for one pass, and has tensors but no parameters
        if self.training or getattr(self, "_is_replica", False):
            return False
        if not torch.is_grad_enabled():
            return True
        if x.requires_grad or any(p.requires_grad for p in self.parameters()):
            # what comes next may change the values, and fused optimizers leave no trace
            self._product = None
            return False
        return True

    def constant_product(self, make: Callable[[], Product]) -> Product:
        """The prepared product for the current values; made if there is none."""
        parameters = self._parameters  # a third of the time of self.values
        stamp = _stamp(parameters["values"]), _stamp(parameters["bias"])
        if self._product is None or stamp != self._made_of:
            self._product, self._made_of = make(), stamp
        return self._product

    def train(self, mode: bool = True):
        # the choice of the layout stays: zeros are where they were
        self._product = None
        return super().train(mode)

    def _apply(self, function, recurse=True):
        result = super()._apply(function, recurse)
        self.forget()
        return result

    def _replicate_for_data_parallel(self):
        replica = super()._replicate_for_data_parallel()
        replica._pattern = replica._transposed = None  # of the first device
        return replica

    def __getstate__(self):
        state = self.__dict__.copy()
        state.update(_pattern=None, _transposed=None, _product=None, _made_of=None)
        return state

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, *rest):
        missing, unexpected, errors = rest
        parts = [
            state_dict.get(prefix + name) for name in ("values", "crow_indices", "col_indices")
        ]
        if all(isinstance(part, Tensor) for part in parts):
            values, crow, column = parts
            problem = Pattern(self.matrix_shape, crow, column, column).problem(len(values))
            if problem is not None:
                errors.append(f"{prefix}values: {problem}; the state dict is damaged")
                return
            if len(values) != len(self.values):
                # the same parameter, so that an optimizer still has it
                self.values.data = self.values.data.new_empty(len(values))
                self.values.grad = None
            if column.dtype != self.col_indices.dtype or len(column) != len(self.col_indices):
                device = self.col_indices.device
                self.col_indices = torch.empty_like(column, device=device)
                self.crow_indices = torch.empty_like(crow, device=device)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *rest)
        self.forget()
