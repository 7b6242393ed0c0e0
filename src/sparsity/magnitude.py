"""Prune single weights of any model with one call, as ModelPruningLibrary does.

    prune_by_pct(model, 0.5)                  # half of every layer's weights
    prune_by_pct(model, [0.1, 0, None, 0.9])  # one share for each prunable layer
    kept = masks(model)
    ...                                       # a training step
    apply_masks(model, kept)                  # what was pruned is zero again

What is prunable, and what counts as pruned, stands in ``prunable.py``. Every call
prunes among the weights that remain and leaves zeros zero; training needs
:func:`masks` and :func:`apply_masks`, ``DenseLinear.hold_zeros``, or layers that store
the others only. All arguments and layers are checked before the first weight changes.
"""

import math
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, Callable, List, Optional, Sequence, Union

import torch
from torch import Tensor, nn

from .errors import SparsityError
from .prunable import Layers, apply_masks, calc_num_prunable_params, masks, prunable_layers

PerLayer = Union[float, Sequence[Optional[float]]]  # one for all, or one for each layer


def prune_by_pct(model: nn.Module, pct: PerLayer) -> nn.Module:
    """Prune a share of the weights that remain, the smallest by magnitude, per layer.

    Exactly ``floor(share * remaining)`` weights go, with the share as it is written
    (0.29 of 100 are 29). Among equal magnitudes the first ones go. 0.5 twice leaves
    a quarter; 1.0 leaves nothing.

    Args:
        model: changed in place.
        pct: a share from 0 to 1 for all prunable layers, or a list with one for each
            of them, where None leaves its layer as it is.

    Returns:
        The model.

    Raises:
        SparsityError: a list of another length, no share, or a weight that is NaN.
    """
    return _prune(model, pct, "pct", _share, _part, _smallest)


def prune_by_rank(model: nn.Module, rank: PerLayer) -> nn.Module:
    """Prune that many of the weights that remain, the smallest by magnitude, per layer.

    The weight at position ``rank`` (from 0) among the remaining ones, ordered by
    magnitude, becomes the smallest that is kept.

    Args:
        model: changed in place.
        rank: how many weights go from every prunable layer, or a list with one number
            for each of them, where None leaves its layer as it is.

    Returns:
        The model.

    Raises:
        SparsityError: a list of another length, no whole number, more than a layer has
            left, or a weight that is NaN.
    """

    def count(number: int, remaining: int, where: str) -> int:
        if number > remaining:
            raise SparsityError(
                f"{where}: only {remaining} of its weights remain; give at most that many"
            )
        return number

    return _prune(model, rank, "rank", _whole_number, count, _smallest)


def prune_by_threshold(model: nn.Module, threshold: PerLayer) -> nn.Module:
    """Prune the weights with ``|w| < threshold``; those equal to it stay.

    So a threshold of 0 prunes nothing. It is rounded to the weight's dtype first.

    Args:
        model: changed in place.
        threshold: a number of at least 0 for all prunable layers, or a list with one
            for each of them, where None leaves its layer as it is.

    Returns:
        The model.

    Raises:
        SparsityError: a list of another length, no number of at least 0, or a weight
            that is NaN.
    """

    def below(weight: Tensor, bound: float) -> Tensor:
        magnitudes = weight.abs()
        return magnitudes < torch.tensor(bound, dtype=magnitudes.dtype)

    def unchanged(bound: float, remaining: int, where: str) -> float:
        return bound

    return _prune(model, threshold, "threshold", _bound, unchanged, below)


def random_prune_by_pct(
    model: nn.Module, pct: PerLayer, seed: Union[None, int, torch.Generator] = None
) -> nn.Module:
    """Prune a share of the weights that remain, chosen at random, per layer.

    As many go as with :func:`prune_by_pct`; every choice of them is equally likely.
    The same seed chooses the same weights on every device.

    Args:
        model: changed in place.
        pct: as for :func:`prune_by_pct`.
        seed: a number, a generator of the CPU, or None for torch's global generator.

    Returns:
        The model.

    Raises:
        SparsityError: as for :func:`prune_by_pct`, or a seed that is none of these.
    """
    generator = _generator(seed)

    def chosen(weight: Tensor, count: int) -> Tensor:
        gone = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        remaining = weight.flatten().nonzero().squeeze(1)
        order = torch.randperm(len(remaining), generator=generator)[:count]
        gone[remaining[order.to(weight.device)]] = True
        return gone.view(weight.shape)

    return _prune(model, pct, "pct", _share, _part, chosen)


class Prunable:
    """Mixin that gives a model these calls as methods: ``class Net(Prunable, nn.Module)``."""

    prune_by_pct = prune_by_pct
    prune_by_threshold = prune_by_threshold
    prune_by_rank = prune_by_rank
    random_prune_by_pct = random_prune_by_pct
    calc_num_prunable_params = calc_num_prunable_params
    pruning_masks = masks
    apply_pruning_masks = apply_masks

    def to_sparse(self: Any, **options) -> nn.Module:
        """The model with layers that compute with the stored weights only.

        Args:
            options: those of :func:`.layers.to_sparse`.
        """
        from .execution.layers import to_sparse

        return to_sparse(self, **options)


def _share(value: Any) -> Fraction:
    """A share as it is written: 0.29 is 29/100, not the float just below it."""
    if _is_number(value) and 0 <= value <= 1:
        return Fraction(str(value))
    raise ValueError("must be a number from 0 to 1, the share of the remaining weights")


def _whole_number(value: Any) -> int:
    if _is_number(value) and value >= 0 and value == int(value):
        return int(value)
    raise ValueError("must be a whole number of at least 0, how many weights go")


def _bound(value: Any) -> float:
    if _is_number(value) and value >= 0:
        return float(value)
    raise ValueError("must be a number of at least 0, the smallest magnitude that stays")


def _is_number(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return isinstance(value, Integral) or math.isfinite(value)


def _generator(seed: Union[None, int, torch.Generator]) -> Optional[torch.Generator]:
    if isinstance(seed, torch.Generator) and seed.device.type != "cpu":
        raise SparsityError(
            f"seed: is a generator of {seed.device}; give one of the CPU, so that the "
            "same weights go on every device"
        )
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**64:
        raise SparsityError(
            f"seed = {seed!r}: must be a whole number from 0 to 2^64 - 1, a torch.Generator or None"
        )
    return torch.Generator().manual_seed(int(seed))


def _per_layer(values: PerLayer, layers: Layers, option: str, read: Callable) -> List[Any]:
    """The checked value for each layer; None where a layer is left as it is."""
    several = values if isinstance(values, (list, tuple)) else None
    if several is not None and len(several) != len(layers):
        names = list(layers)
        if len(names) > 8:
            names[5:-2] = ["..."]
        raise SparsityError(
            f"{option}: {len(several)} values for {len(layers)} prunable layers "
            f"({', '.join(names)}); give one number for all of them, or a list with one "
            "for each in this order, None to leave a layer as it is"
        )
    checked: List[Any] = []
    for position, name in enumerate(layers):
        value = values if several is None else several[position]
        if several is not None and value is None:
            checked.append(None)
            continue
        try:
            checked.append(read(value))
        except ValueError as error:
            where = option if several is None else f"{option}[{position}] for layer {name}"
            raise SparsityError(f"{where} = {value!r}: {error}") from None
    return checked


def _prune(
    model: nn.Module,
    values: PerLayer,
    option: str,
    read: Callable[[Any], Any],
    amount: Callable[[Any, int, str], Any],
    select: Callable[[Tensor, Any], Tensor],
) -> nn.Module:
    """Check everything, then set the selected weights of each layer to zero.

    Args:
        read: checks one value of ``values``.
        amount: what to hand to ``select``, from that value and the number of weights
            that remain in the layer.
        select: which weights go, a boolean tensor of the weight's shape.
    """
    layers = prunable_layers(model)
    plan = []
    for (name, layer), value in zip(layers.items(), _per_layer(values, layers, option, read)):
        if value is None:
            continue
        weight = layer.get_parameter("weight").detach()
        where = f"layer {name or type(layer).__name__}"
        if weight.isnan().any():
            raise SparsityError(
                f"{where}: its weight has NaN, which has no magnitude; its training "
                "diverged, prune another state of the model"
            )
        remaining = int(weight.count_nonzero())
        plan.append((weight, amount(value, remaining, f"{option} = {value}, {where}")))
    for weight, number in plan:
        if number:
            weight.masked_fill_(select(weight, number), 0)
    return model


def _part(share: Fraction, remaining: int, where: str) -> int:
    return int(share * remaining)


def _smallest(weight: Tensor, count: int) -> Tensor:
    """Zeros, and the ``count`` smallest others; of equal ones the first."""
    magnitudes = weight.abs().flatten()
    if magnitudes.dtype in (torch.float16, torch.bfloat16):
        magnitudes = magnitudes.float()  # exact, and every device can order it
    count += int((magnitudes == 0).sum())
    last = magnitudes.kthvalue(count).values
    gone = magnitudes < last
    equal = (magnitudes == last).nonzero().squeeze(1)
    gone[equal[: count - int(gone.sum())]] = True
    return gone.view(weight.shape)
