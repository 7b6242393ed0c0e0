"""Which weights of a model can be pruned, and which of them remain.

Prunable are the weights of ``nn.Linear`` and ``nn.Conv2d`` and of classes made from
them, in the order of ``model.named_modules()``. A parameter that two layers share
(or a layer shares with an embedding) counts once, under the first layer that has it.
Biases are never pruned.

Pruned is what is zero, also what is zero by chance: there are no masks beside the
weights, so a checkpoint or a copy is the same model.
"""

import math
from typing import Dict, Mapping, Sequence, Tuple

import torch
from torch import Tensor, nn

from .errors import SparsityError
from .execution.stored import StoredWeight, check_model, zero_held

PRUNABLE = ("Linear", "Conv2d")

Layers = Dict[str, nn.Module]


def prunable_layers(model: nn.Module, types: Sequence[str] = PRUNABLE) -> Layers:
    """The layers whose weights can be pruned, by name, in module order.

    Args:
        model: any model.
        types: names of classes, as in a configuration's ``prune_layer_type``; those
            derived from them are taken too.

    Raises:
        SparsityError: there are none, or a weight isn't held by its layer as a
            parameter with values (parametrized, lazy or on the meta device).
    """
    check_model(model)
    layers = _prunable_layers(model, types)
    if not layers:
        raise SparsityError(
            f"model {type(model).__name__}: has no layer of {', '.join(types)}; layers "
            "that store their values only are made dense again with to_dense"
        )
    return layers


def _prunable_layers(model: nn.Module, types: Sequence[str]) -> Layers:
    layers: Layers = {}
    seen = set()
    for name, module in model.named_modules():
        if not {above.__name__ for above in type(module).__mro__}.intersection(types):
            continue
        weight = module._parameters.get("weight")
        where = f"layer {name or type(module).__name__}"
        if weight is None:
            raise SparsityError(
                f"{where}: its weight is computed from other tensors; remove the "
                "parametrization (or torch's own pruning) first"
            )
        if weight.is_meta or isinstance(weight, nn.UninitializedParameter):
            raise SparsityError(f"{where}: its weight has no values yet; load them first")
        zero_held(module)
        if id(weight) not in seen:
            seen.add(id(weight))
            layers[name] = module
    return layers


def calc_num_prunable_params(
    model: nn.Module, count_bias: bool = True, display: bool = False
) -> Tuple[int, int]:
    """Parameters of the prunable layers that remain, and all of them.

    Layers that store their values only count as the dense ones that they stand for.

    Args:
        model: any model with prunable layers.
        count_bias: count their biases too. They are never pruned, so all of them
            remain, whatever their values.
        display: print one line for each layer and one for the total.

    Returns:
        Remaining and all.
    """
    check_model(model)
    stored = {n: m for n, m in model.named_modules() if isinstance(m, StoredWeight)}
    dense = _prunable_layers(model, PRUNABLE) if stored else prunable_layers(model)
    counts = []
    seen = set()
    for name, layer in model.named_modules():
        if name in stored:
            remaining = int(layer.values.count_nonzero())
            number = math.prod(layer.weight_shape)
        elif name in dense:
            remaining, number = int(layer.weight.count_nonzero()), layer.weight.numel()
        else:
            continue
        bias = getattr(layer, "bias", None)
        if count_bias and bias is not None and id(bias) not in seen:
            seen.add(id(bias))
            remaining, number = remaining + bias.numel(), number + bias.numel()
        counts.append((f"Layer name: {name}.", remaining, number))
    total = sum(c[1] for c in counts), sum(c[2] for c in counts)
    if display:
        for title, remaining, number in (*counts, ("Total:", *total)):
            share = remaining / number if number else 1.0
            print(f"{title} remaining/all: {remaining}/{number} = {share}")
    return total


def masks(model: nn.Module) -> Dict[str, Tensor]:
    """Which prunable weights remain now.

    Returns:
        For each prunable weight, under its parameter's name, a boolean tensor of its
        shape: True where it is not zero.
    """
    return {
        parameter_name(name): layer.get_parameter("weight").detach() != 0
        for name, layer in prunable_layers(model).items()
    }


def apply_masks(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Zero the pruned weights again, for example after an optimizer's step.

    Args:
        model: changed in place.
        kept: what :func:`masks` returned, for this model or a copy of it.

    Raises:
        SparsityError: a name or a shape that the model doesn't have.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in kept.items():
        if name not in parameters:
            raise SparsityError(
                f"mask {name}: the model has no such parameter; take masks of this model"
            )
        if not isinstance(mask, Tensor):
            raise SparsityError(
                f"mask {name}: a {type(mask).__name__} is none; take masks of this model"
            )
        shapes = tuple(mask.shape), tuple(parameters[name].shape)
        if shapes[0] != shapes[1] or mask.dtype != torch.bool:
            raise SparsityError(
                f"mask {name}: is {mask.dtype} {shapes[0]}, the parameter is {shapes[1]}; "
                "take masks of this model"
            )
    with torch.no_grad():
        for name, mask in kept.items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)


def parameter_name(layer: str) -> str:
    """Name of the weight of a layer with this name; the whole model's is empty."""
    return f"{layer}.weight" if layer else "weight"
