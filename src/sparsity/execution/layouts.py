"""Products with a constant sparse weight in the fastest layout.

What is faster than a dense product depends on the processor, the number of rows and
where the zeros are, so :func:`fastest` measures; by formula it leaves out only what
cannot win. Every layout computes ``x Wᵀ + b`` exactly for any zeros (to rounding: the
order of additions differs). Zeros are taken as absent: an infinite input times zero is
zero here, NaN in a dense product. Products are for inference, they have no gradients.

Layouts:
    dense: all weights.
    smaller: outputs and inputs without any weight are cut away; a smaller dense product.
    gathered: groups of outputs, of each the inputs that it uses; one batched product.
    grouped: the same, one dense product per group (for many rows).
    csr: single weights, times the transposed input.
    bsr: square blocks of weights, times the transposed input.
    semi_structured: two weights of four consecutive inputs; CUDA only.
"""

from numbers import Integral
from typing import Dict, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SparsityError
from .products import (
    Bsr,
    Constant,
    Csr,
    Dense,
    DenseFactory,
    Gathered,
    Grouped,
    Product,
    SemiStructured,
    Smaller,
    check_width,
)
from .supports import Plan, plan_groups
from .timing import BUDGET, MARGIN, Choice, choose_among

LAYOUTS = ("dense", "smaller", "gathered", "grouped", "csr", "bsr", "semi_structured")

# Block sizes, and time of a stored weight in such blocks against blocks of 4.
_BLOCKS = {8: 0.86, 4: 1.0}
# Shares of the dense product's multiplications above which a layout cannot win.
_MOST = {"smaller": 0.95, "gathered": 0.85, "grouped": 0.85, "csr": 0.3, "bsr": 0.4}
# Rows of a product up to which, and as how many, ByRows makes its choice.
_ROWS = ((1, 1), (8, 4), (48, 24), (160, 96), (None, 320))


def why_not(weight: Tensor, layout: str) -> Optional[str]:
    """Why a layout cannot hold a weight ``[out, in]``, or None where it can."""
    if layout not in LAYOUTS:
        return f"is none of {', '.join(LAYOUTS)}"
    if layout in ("csr", "bsr"):
        if weight.dtype not in (torch.float32, torch.float64):
            return f"multiplies float32 and float64 only, the weight is {weight.dtype}"
        if weight.device.type == "cpu" and not torch.backends.mkl.is_available():
            return "needs a PyTorch with MKL"
        if layout == "bsr" and weight.device.type != "cpu":
            return f"is for CPUs, the weight is on {weight.device.type}"
    if layout == "semi_structured":
        if weight.device.type != "cuda":
            return f"runs on CUDA only, the weight is on {weight.device.type}"
        if weight.dtype not in (torch.float16, torch.bfloat16):
            return f"multiplies float16 and bfloat16 only, the weight is {weight.dtype}"
        if weight.shape[0] % 64 or weight.shape[1] % 64:
            return f"needs a multiple of 64 outputs and inputs, not {tuple(weight.shape)}"
        if int((weight.unflatten(1, (-1, 4)) != 0).sum(2).max()) > 2:
            return "needs two zeros in every four consecutive inputs"
    return None


class _Weight:
    """A weight and the facts that layouts need about it, computed once."""

    def __init__(self, weight: Tensor, bias: Optional[Tensor], dense: Optional[DenseFactory]):
        for name, tensor in (("weight", weight), ("bias", bias)):
            if not isinstance(tensor, Tensor) and (tensor is not None or name == "weight"):
                raise SparsityError(f"{name}: must be a tensor, not a {type(tensor).__name__}")
        weight = weight.detach()
        if weight.dim() != 2 or weight.layout != torch.strided:
            raise SparsityError(
                f"weight: must be a dense tensor [out, in], found {weight.layout} of "
                f"shape {tuple(weight.shape)}"
            )
        if bias is not None:
            bias = bias.detach()
            if bias.shape != weight.shape[:1]:
                raise SparsityError(
                    f"bias: must be [{len(weight)}], one per output of the weight, "
                    f"found {list(bias.shape)}"
                )
        self.weight, self.bias, self.dense = weight, bias, dense or Dense
        self.count = int(torch.count_nonzero(weight))
        self._plans: Optional[Tuple[Plan, Plan]] = None
        self._blocks: Dict[int, float] = {}
        self._products: Dict[str, Product] = {}

    def plan(self, layout: str) -> Plan:
        if self._plans is None:
            self._plans = plan_groups(self.weight)
        return self._plans[layout == "grouped"]

    def _blocks_used(self, size: int) -> float:
        """Share of the weights in blocks that have a nonzero weight."""
        if size not in self._blocks:
            outputs, inputs = self.weight.shape
            used = F.pad(self.weight != 0, (0, -inputs % size, 0, -outputs % size))
            used = used.unflatten(0, (-1, size)).unflatten(2, (-1, size))
            self._blocks[size] = float(used.any(3).any(1).float().mean())
        return self._blocks[size]

    def block(self) -> int:
        """The block size expected to be fastest."""
        return min(_BLOCKS, key=lambda size: self._blocks_used(size) * _BLOCKS[size])

    def share(self, layout: str) -> float:
        """Multiplications in a layout, as a share of the dense product's."""
        weight = self.weight
        if layout == "smaller":
            used = weight != 0
            return float(used.any(1).float().mean() * used.any(0).float().mean())
        if layout in ("gathered", "grouped"):
            return self.plan(layout).cost / weight.numel()
        if layout == "bsr":
            return self._blocks_used(self.block())
        return self.count / weight.numel()

    def promising(self, layout: str) -> bool:
        """Whether a layout can be used and might win."""
        if why_not(self.weight, layout) is not None:
            return False
        if layout in ("dense", "semi_structured"):
            return True
        return self.share(layout) <= _MOST[layout]

    def product(self, layout: str) -> Product:
        """The product in a layout; made once and kept."""
        if layout not in self._products:
            product = self._make(layout)
            if type(product) is not Dense:  # which sees to that itself, at no cost
                product = _Guarded(product, *self.weight.shape)
            self._products[layout] = product
        return self._products[layout]

    def forget(self, kept: Sequence[str]) -> None:
        """Drop the products of all layouts but these."""
        self._products = {k: v for k, v in self._products.items() if k in kept}

    def _make(self, layout: str) -> Product:
        weight, bias = self.weight, self.bias
        if layout == "dense":
            return self.dense(weight, bias)
        if self.count == 0:
            return Constant(weight, bias)
        if layout == "smaller":
            return Smaller(weight, bias, self.dense)
        if layout == "gathered":
            return Gathered(weight, bias, self.plan(layout))
        if layout == "grouped":
            return Grouped(weight, bias, self.plan(layout), self.dense)
        if layout == "csr":
            return Csr(weight, bias)
        if layout == "bsr":
            return Bsr(weight, bias, self.block())
        return SemiStructured(weight, bias)


class _Guarded:
    """A product that checks the width of its input and accepts zero rows."""

    def __init__(self, product: Product, outputs: int, inputs: int):
        self.product, self.outputs, self.inputs = product, outputs, inputs

    def __call__(self, x: Tensor) -> Tensor:
        check_width(x, self.inputs)
        return self.product(x) if len(x) else x.new_empty(0, self.outputs)


@torch.no_grad()
def prepare(
    weight: Tensor,
    bias: Optional[Tensor] = None,
    layout: str = "dense",
    dense: Optional[DenseFactory] = None,
) -> Product:
    """``x Wᵀ + b`` in a given layout.

    The product holds the weight as it is now: change the weight and prepare anew.

    Args:
        weight: ``[out, in]``, any pattern of zeros.
        bias: ``[out]`` or None.
        layout: one of :data:`LAYOUTS`.
        dense: makes dense products of a weight and a bias, also the smaller ones of
            other layouts; default ``F.linear``.

    Returns:
        A function of ``[rows, in]`` to ``[rows, out]``, without gradients.

    Raises:
        SparsityError: an unknown layout or one that cannot hold this weight.
    """
    facts = _Weight(weight, bias, dense)
    problem = why_not(facts.weight, layout)
    if problem is not None:
        raise SparsityError(f"layout {layout}: {problem}")
    return facts.product(layout)


@torch.no_grad()
def fastest(
    weight: Tensor,
    bias: Optional[Tensor] = None,
    rows: int = 32,
    dense: Optional[DenseFactory] = None,
    candidates: Optional[Sequence[str]] = None,
    budget: float = BUDGET,
    margin: float = MARGIN,
) -> Choice:
    """Time the layouts briefly on this machine; the fastest.

    A sparse layout is chosen only where it was faster than the dense product by
    ``margin``. Measurements vary: two runs may choose differently where layouts are
    close. For the same in every run name one candidate.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or None.
        rows: of the inputs to come; the choice depends on it.
        dense: makes the dense product to beat, see :func:`prepare`.
        candidates: layouts to choose from, besides dense; default all. One single
            layout is taken without measuring. Several: those that cannot win by
            formula, or cannot hold this weight, are left out.
        budget: seconds to spend on timing, roughly.
        margin: how many times faster than dense a sparse layout must be.

    Raises:
        SparsityError: an unknown candidate, or a single one that cannot hold the weight.
    """
    names = _known(candidates)
    if not isinstance(rows, Integral):
        raise SparsityError(f"rows: {rows!r} is not valid; give an int")
    if len(names) == 1:
        return Choice(names[0], prepare(weight, bias, names[0], dense), {})
    return _choose(_Weight(weight, bias, dense), rows, names, budget, margin)


def _known(candidates: Optional[Sequence[str]]) -> Tuple[str, ...]:
    names = LAYOUTS if candidates is None else tuple(dict.fromkeys(candidates))
    unknown = [name for name in names if name not in LAYOUTS]
    if unknown or not names:
        name = unknown[0] if unknown else "(none)"
        raise SparsityError(f"layout {name}: is none of {', '.join(LAYOUTS)}")
    return names


def _choose(
    facts: _Weight, rows: int, names: Sequence[str], budget: float, margin: float
) -> Choice:
    sparse = [name for name in names if name != "dense"]
    dense = facts.product("dense")
    if not sparse or rows < 1 or facts.weight.numel() == 0:
        return Choice("dense", dense, {})
    if facts.count == 0:
        return Choice(sparse[0], facts.product(sparse[0]), {})
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, facts.weight.shape[1], generator=generator).to(facts.weight)
    products = {"dense": dense}
    for name in sparse:
        if not facts.promising(name):
            continue
        try:
            product = facts.product(name)
            product(x[:2])
        except RuntimeError:
            # this PyTorch, processor or GPU lacks the layout
            continue
        products[name] = product
    return choose_among(products, x, budget, margin)


class ByRows:
    """``x Wᵀ + b`` in the layout that is fastest for the number of rows.

    For one row, few and many rows the layout is chosen at the first use, by
    :func:`fastest`, or ahead of it by :meth:`choose`.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or None.
        dense: see :func:`prepare`.
        candidates: see :func:`fastest`.
        names: choices made before, of a weight with the same zeros.

    Attributes:
        names: chosen layouts, by the number of rows that they were timed with.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Optional[Tensor] = None,
        dense: Optional[DenseFactory] = None,
        candidates: Optional[Sequence[str]] = None,
        names: Optional[Mapping[int, str]] = None,
    ):
        self._candidates = _known(candidates)
        self._facts = _Weight(weight, bias, dense)
        if len(self._candidates) == 1:
            problem = why_not(self._facts.weight, self._candidates[0])
            if problem is not None:
                raise SparsityError(f"layout {self._candidates[0]}: {problem}")
        self._products: Dict[int, Product] = {}
        self.names: Dict[int, str] = dict(names or {})

    @torch.no_grad()
    def choose(self, rows: int) -> str:
        """Choose the layout for about this many rows; its name."""
        typical = next(t for most, t in _ROWS if most is None or rows <= most)
        if len(self._candidates) == 1:
            self.names[typical] = self._candidates[0]
        elif typical not in self.names:
            given = self._facts, typical, self._candidates, BUDGET, MARGIN
            self.names[typical] = _choose(*given).name
            # a later choice makes anew what is not kept
            self._facts.forget(tuple(self.names.values()))
        self._products[typical] = self._facts.product(self.names[typical])
        return self.names[typical]

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, in]`` to ``[rows, out]``."""
        rows = len(x)
        for most, typical in _ROWS:  # noqa: B007  the last one serves any number
            if most is None or rows <= most:
                break
        if typical not in self._products:
            self.choose(rows)
        return self._products[typical](x)
