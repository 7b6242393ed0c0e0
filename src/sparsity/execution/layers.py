"""Dense layers that hold pruned weights at zero, and layers that store only nonzero weights.

model = to_sparse(model)                     # trains the weights that are not zero
model = to_sparse(model, trainable=False)    # for inference: sparse where faster
model = to_dense(model)                      # nn.Linear and nn.Conv2d again
"""

import copy
import logging
import math
from collections import defaultdict
from numbers import Integral
from typing import Dict, Iterable, Mapping, Optional, Sequence, Set, Type, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SparsityError
from .convolution import SparseConv2d
from .layouts import LAYOUTS, ByRows
from .products import DenseFactory, check_width
from .stored import SparseProduct, StoredWeight, check_model, recording, zero_held
from .timing import choose_among

logger = logging.getLogger(__name__)


class _Prunable(nn.Module):
    """A dense layer that can hold its pruned weights, those that are exactly zero, at zero."""

    weight: Tensor
    mask: Optional[Tensor]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # no part of the state dict, which stays that of nn.Linear and nn.Conv2d
        self.register_buffer("mask", None, persistent=False)

    def hold_zeros(self, hold: bool = True) -> None:
        """Keep the weights that are zero now at zero, whatever the optimizer.

        They get no gradient and are read as zero. Call it again after further pruning.
        After loading a state dict its zeros are held.

        Args:
            hold: False lets them grow again.
        """
        self.zero_held()
        self.mask = self.weight.detach() != 0 if hold else None

    @torch.no_grad()
    def zero_held(self) -> None:
        """Zero the held weights, which an optimizer's older momentum may have moved."""
        if self.mask is not None:
            self.weight.masked_fill_(~self.mask, 0)

    def _save_to_state_dict(self, *args, **kwargs):
        self.zero_held()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self.zero_held()
        super()._load_from_state_dict(*args, **kwargs)
        if self.mask is not None:
            self.mask = self.weight.detach() != 0

    def _held(self) -> Tensor:
        return self.weight if self.mask is None else self.weight * self.mask


class DenseLinear(_Prunable, nn.Linear):
    """``nn.Linear`` that can hold pruned weights at zero."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self._held(), self.bias)

    def to_sparse(self) -> "SparseLinear":
        return SparseLinear.from_dense(self)


class DenseConv2d(_Prunable, nn.Conv2d):
    """``nn.Conv2d`` that can hold pruned weights at zero."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self._held(), self.bias)

    def to_sparse(self) -> SparseConv2d:
        return SparseConv2d.from_dense(self)


class SparseLinear(StoredWeight):
    """``nn.Linear`` that stores and trains only the nonzero weights.

    In evaluation without gradients the layout of :mod:`.layouts` that is fastest for
    the number of rows is used, chosen by a short measurement at the first use (or
    :meth:`optimize`). In training the stored weights alone are multiplied where they
    are few, and only they get gradients. Values that are written to through ``.data``
    in evaluation are not noticed: write to them under ``torch.no_grad()``, or call
    ``eval()`` afterwards.

    Args:
        in_features, out_features, bias, device, dtype: as of ``nn.Linear``. No weight
            is stored to begin with: load a state dict, or use :meth:`from_dense`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__((out_features, in_features), bias, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self._candidates: Sequence[str] = LAYOUTS
        self._dense: Optional[DenseFactory] = None

    @classmethod
    def from_dense(cls, linear: nn.Linear) -> "SparseLinear":
        """Store the nonzero weights of ``linear``, which is left unchanged."""
        zero_held(linear)
        weight = linear.weight
        sizes = linear.in_features, linear.out_features, linear.bias is not None
        new = cls(*sizes, weight.device, weight.dtype)
        new.store(weight, linear.bias)
        return new.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """An ``nn.Linear`` with exactly these weights."""
        sizes = self.in_features, self.out_features, self.bias is not None
        given = {"device": self.values.device, "dtype": self.values.dtype}
        return self.give(nn.utils.skip_init(nn.Linear, *sizes, **given))  # draws nothing

    def force(self, layout: Optional[str]) -> None:
        """Use this layout in evaluation without timing; None: time them again.

        Raises:
            SparsityError: none of :data:`LAYOUTS`. One that cannot hold the weight is
                found out at the first use.
        """
        if layout is not None and layout not in LAYOUTS:
            raise SparsityError(f"layout {layout}: is none of {', '.join(LAYOUTS)}")
        self._candidates = LAYOUTS if layout is None else (layout,)
        self._names, self._product = {}, None

    def optimize(
        self,
        rows: Union[int, Sequence[int]] = 32,
        dense: Optional[DenseFactory] = None,
    ) -> Dict[int, str]:
        """Choose the layout for inputs with this many rows ahead of time.

        Args:
            rows: one number or several.
            dense: makes the dense products, see :func:`.layouts.prepare`; also for the
                choices to come.

        Returns:
            Layouts, by the number of rows that they were timed with.

        Raises:
            SparsityError: no rows, or fewer than one.
        """
        numbers = _numbers(rows)
        if dense is not None and dense is not self._dense:
            self._dense, self._product, self._names = dense, None, {}
        product = self.constant_product(self._make)
        for number in numbers:
            product.choose(number)
        self._names = product.names
        return dict(product.names)

    def _make(self) -> ByRows:
        with torch.no_grad():
            given = self.weight, self.bias, self._dense, self._candidates
            product = ByRows(*given, self._names)
        # chosen again only where zeros changed
        self._names = product.names
        return product

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        if recording():
            return F.linear(input, self.weight, self.bias)
        if torch.compiler.is_compiling():  # no graph holds layouts and what chooses them
            return torch.compiler.disable(self.forward)(input)
        if torch.is_autocast_enabled(input.device.type):
            return F.linear(input, self.weight, self.bias)
        constant = self.is_constant(input)
        if constant and input.dim() == 2:
            return self.constant_product(self._make)(input)
        rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
        check_width(rows, self.in_features)
        if constant:
            y = self.constant_product(self._make)(rows)
        else:
            given = self.values, self.bias, self.pattern, self.transposed_for_training()
            y = SparseProduct.apply(rows, *given)
        return y.view(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return nn.Linear.extra_repr(self)  # type: ignore[arg-type]  # it has what that asks for


# What replaces a layer of which class. A subclass may compute anything: name it.
_SPARSE: Dict[type, Type[StoredWeight]] = {
    nn.Linear: SparseLinear,
    nn.Conv2d: SparseConv2d,
}


def to_sparse(
    model: nn.Module,
    rows: Union[int, Sequence[int]] = 32,
    trainable: bool = True,
    layers: Sequence[type] = (nn.Linear, nn.Conv2d),
    inplace: bool = False,
    dense: Optional[DenseFactory] = None,
    images: Optional[Mapping[str, Tensor]] = None,
) -> nn.Module:
    """Convert a model's linear and convolution layers to ones that store only nonzero weights.

    Layers whose weight is shared with another module stay dense (they would no longer
    be shared), so do layers with hooks, parametrizations or tensors besides weight and
    bias, and classes derived from those in ``layers``. The log names them. Parameters of
    the others are new ones: make optimizers afterwards.

    In evaluation, values that are written to through ``.data`` (as of a moving average)
    are not noticed: write to them under ``torch.no_grad()``, or call ``eval()`` after it.

    Args:
        model: any model, or one such layer.
        rows: for inference: numbers of rows, one or several, with which layouts of
            linear layers are timed ahead; other numbers are timed at their first use.
        trainable: False: the model is for inference. It is put into evaluation mode,
            its sparse weights need no gradients, and a linear layer that is not faster
            sparse with any of ``rows`` stays dense, as it is.
        layers: exact classes of the layers to replace, derived from ``nn.Linear`` or
            ``nn.Conv2d``, with their forward function; :class:`DenseLinear` and
            :class:`DenseConv2d` go with these.
        inplace: change ``model`` itself; else a copy.
        dense: for inference: makes dense products, see :func:`.layouts.prepare`.
        images: for inference: by name of a convolution an input, ``[B, C, H, W]``,
            with which its layout is timed ahead; a convolution that is dense with it
            stays dense. Without it is timed at the first use.

    Returns:
        The model, or the new layer where the model is a layer itself.

    Raises:
        SparsityError: a class in ``layers`` that is neither, no ``rows``, a name in
            ``images`` that no convolution of the model has, a weight on the meta
            device, or one that ``torch.nn.utils.prune`` masks in every pass.
    """
    check_model(model)
    classes, rows = _classes(layers), _numbers(rows)
    _check_images(images or {}, model)
    for name, module in model.named_modules():
        if "weight_orig" in module._parameters:
            raise SparsityError(
                f"layer {name or type(module).__name__}: its weight is made anew in every pass "
                "(torch.nn.utils.prune); make its zeros permanent first, with "
                'torch.nn.utils.prune.remove(layer, "weight")'
            )
    model = model if inplace else copy.deepcopy(model)
    owners: Dict[int, Set[str]] = defaultdict(set)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)].add(name)
    replaced: Dict[int, nn.Module] = {}
    kept = []
    if not trainable:
        model.eval()
    for name, module in model.named_modules():
        if not issubclass(type(module), tuple(classes)):
            continue
        reason = _reason_to_keep(module, classes, owners)
        if reason is not None:
            kept.append(f"{name or 'the model'} ({reason})")
            continue
        if module.get_parameter("weight").is_meta:
            raise SparsityError(
                f"layer {name or type(module).__name__}: its weight has no values yet; load "
                "them first"
            )
        new = classes[type(module)].from_dense(module)
        if not trainable:
            new.requires_grad_(False)
            image = (images or {}).get(name)
            if _stays_dense(module, new, rows, dense, image):
                continue
        replaced[id(module)] = new
    if kept:
        logger.warning("left dense: %s", ", ".join(kept))
    return _replace(model, replaced)


def to_dense(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Convert layers that store values back to ``nn.Linear`` and ``nn.Conv2d``.

    Args:
        model: any model, or one such layer.
        inplace: change ``model`` itself; else a copy.
    """
    model = model if inplace else copy.deepcopy(model)
    stored = (m for m in model.modules() if isinstance(m, StoredWeight))
    return _replace(model, {id(module): module.to_dense() for module in stored})


def _classes(layers: Sequence[type]) -> Dict[type, Type[StoredWeight]]:
    classes = {}
    for given in layers if isinstance(layers, (list, tuple)) else (layers,):
        bases = [b for b in _SPARSE if isinstance(given, type) and issubclass(given, b)]
        if not bases:
            raise SparsityError(
                f"layers: {given!r} is not derived from nn.Linear or nn.Conv2d, which can be sparse"
            )
        classes[given] = _SPARSE[bases[0]]
    if nn.Linear in classes:
        classes[DenseLinear] = SparseLinear
    if nn.Conv2d in classes:
        classes[DenseConv2d] = SparseConv2d
    return classes


def _numbers(rows: Union[int, Sequence[int]]) -> Sequence[int]:
    """Check the numbers of rows."""
    numbers = list(rows) if isinstance(rows, Iterable) else [rows]
    if not numbers or any(not isinstance(n, Integral) or n < 1 for n in numbers):
        raise SparsityError(
            f"rows: {rows!r} is not valid; give an int above 0, or several, how many rows "
            "inputs will have"
        )
    return numbers


def _check_images(images: Mapping[str, Tensor], model: nn.Module) -> None:
    known = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for name in images:
        if name not in known:
            raise SparsityError(
                f"images: {name!r} is no convolution of the model; it has "
                f"{', '.join(map(repr, known)) or 'none'}"
            )


def _reason_to_keep(module: nn.Module, classes, owners) -> Optional[str]:
    if type(module) not in classes:
        return f"is a {type(module).__name__}"
    if set(module._parameters) != {"weight", "bias"} or module._modules:
        return "has more than weight and bias"
    if any(b is not None for k, b in module._buffers.items() if k != "mask"):
        return "has more than weight and bias"
    for parameter in module._parameters.values():
        if parameter is not None and len(owners[id(parameter)]) > 1:
            return "shares its weight or bias with another module"
    ways = ("forward", "forward_pre", "backward", "backward_pre")
    hooked = any(getattr(module, f"_{way}_hooks", None) for way in ways)
    if hooked or "forward" in vars(module):
        return "has hooks"
    return None


@torch.no_grad()
def _stays_dense(old: nn.Module, new: StoredWeight, rows, dense, image: Optional[Tensor]) -> bool:
    """Whether the dense layer is at least as fast for all inputs to be timed."""
    if isinstance(new, SparseConv2d):
        return image is not None and new.optimize(image) == "dense"
    assert isinstance(new, SparseLinear)
    generator = torch.Generator().manual_seed(1)
    for number in rows:
        if set(new.optimize(number, dense).values()) <= {"dense"}:
            continue
        x = torch.randn(number, new.in_features, generator=generator).to(new.values)
        # small products lose more by the layer's own time than they gain
        if choose_among({"dense": old, "sparse": new}, x, 0.01).name == "sparse":
            return False
    return True


def _replace(model: nn.Module, replaced: Mapping[int, nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in replaced:
                parent._modules[name] = replaced[id(child)]
                if name == "_orig_mod":  # torch.compile's wrapper calls what it wrapped
                    parent.__setstate__(parent.__getstate__())
    return replaced.get(id(model), model)
