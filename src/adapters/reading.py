"""What ``parameters()`` and ``state_dict()`` show: all, or what was learned."""

from functools import partial
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from .errors import AdapterError
from .layer import AdaptedLayer, adapted_layers, attribute, join, parts, reset_parameter_read
from .update import WeightUpdate

Masks = Mapping[str, Mapping[str, Tensor]]


def configure_parameter_read(
    network: nn.Module,
    adapter_weights_only: bool = True,
    masks: Optional[Masks] = None,
) -> None:
    """Let ``parameters()``, ``named_parameters()`` and ``state_dict()`` show less.

    They show the adapters and biases for the kept inputs, outputs and blocks;
    ``state_dict()`` then is :func:`adapter_state_dict`. Nothing else changes:
    forward passes, casting, ``zero_grad()`` and ``load_state_dict()`` go on using
    everything.
    A network's ``parameters()`` obey the network's own configuration, not its
    layers'.

    Args:
        network: an adapted network or layer.
        adapter_weights_only: leave out everything that isn't an adapter or a bias
            of an adapted layer; otherwise masks apply to the base weights as well.
        masks: by name of the layer (of an attention's projection:
            ``self_attn.q_adapter``), ``in_features_mask [m]`` and
            ``out_features_mask [n]`` (SPLoRA), or ``mask [R, C]`` (SPLoPA), True
            for what is kept. SPLoPA's default is the layer's ``block_mask``.

    Raises:
        AdapterError: no adapter, an unknown layer, or a mask that doesn't fit.
    """
    masks = {} if masks is None else masks
    check_masks(network, masks)
    masks = dict(masks)
    reset_parameter_read(network)
    if not adapter_weights_only:
        list(_readers(network, masks, True).values())
    settings = (network, adapter_weights_only, masks)
    # Instance attributes, so that the class and everything else stays as it is;
    # parameters() calls named_parameters(), and zero_grad() parameters().
    network.__dict__.update(
        named_parameters=partial(_named_parameters, *settings),
        state_dict=partial(_state_dict, *settings),
        zero_grad=partial(_zero_grad, network),
    )


def check_masks(network: nn.Module, masks: Masks) -> None:
    """Raises AdapterError if ``masks`` don't fit the network's adapters."""
    layers = adapted_layers(network) if isinstance(network, nn.Module) else {}
    if not layers:
        raise AdapterError(f"{type(network).__name__} has no adapter")
    given = masks.values() if isinstance(masks, Mapping) else [masks]
    if not all(mask is None or isinstance(mask, Mapping) for mask in given):
        raise AdapterError(
            "masks: expected dicts of masks by name of the layer, as "
            "{'0': {'in_features_mask': mask}}"
        )
    updates = {
        join(name, part): update
        for name, layer in layers.items()
        for part, update in layer.updates().items()
    }
    for name, mask in masks.items():
        if name not in updates and mask:
            raise AdapterError(
                f"masks: no adapter {name!r}; there are {', '.join(map(repr, updates))}"
            )
        if mask:
            updates[name].check_masks(mask, name)


def _readers(network: nn.Module, masks: Masks, weights: bool) -> Dict[str, Tensor]:
    """Everything of the adapted layers that is shown otherwise than it is stored."""
    shown: Dict[str, Tensor] = {}
    for name, layer in adapted_layers(network).items():
        shown.update(learned(name, layer, masks))
        if weights:
            shown.update(_base_weights(name, layer, masks))
    return shown


def learned(name: str, layer: AdaptedLayer, masks: Masks) -> Dict[str, Tensor]:
    """The learned parameters of one layer, masked, by their names in the network."""
    tensors: Dict[str, Tensor] = {}
    out_masks: Dict[str, list] = {}
    for part in parts(layer):
        path = join(name, part.update)
        mask = masks.get(path) or {}
        update = part.update_of(layer)
        tensors.update({join(path, n): t for n, t in update.read(mask).items()})
        bias = part.bias_of(layer)
        if bias is not None:
            kept = update.out_mask(mask)
            out_masks.setdefault(part.bias, []).append((bias, kept))
        extra = attribute(layer, part.extra) if part.extra else None
        if extra is not None:
            out_masks[part.extra] = [(extra, update.out_mask(mask))]
    for path, pieces in out_masks.items():
        bias = attribute(layer, path)
        if any(kept is not None for _, kept in pieces):
            bias = torch.cat(
                [b if kept is None else b[..., kept.to(b.device)] for b, kept in pieces], -1
            )
        tensors[join(name, path)] = bias
    return tensors


def _base_weights(name: str, layer: AdaptedLayer, masks: Masks) -> Dict[str, Tensor]:
    pieces: Dict[str, list] = {}
    for part in parts(layer):
        mask = masks.get(join(name, part.update)) or {}
        weight = part.weight_of(layer)
        if mask:
            weight = part.update_of(layer).read_weight(weight, mask)
        pieces.setdefault(part.weight, []).append(weight)
    shown = {}
    for path, weights in pieces.items():
        if len({w.shape[1] for w in weights}) > 1:
            raise AdapterError(
                f"masks: {join(name, path)} is one weight, so its adapters must have the "
                "same in_features_mask"
            )
        whole = attribute(layer, path)
        if any(masks.get(join(name, part.update)) for part in parts(layer)):
            whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        shown[join(name, path)] = whole
    return shown


def shared_names(network: nn.Module) -> set:
    """Names of prototypes and position weights that are registered in the network."""
    used = {
        id(p)
        for layer in adapted_layers(network).values()
        for update in layer.updates().values()
        for module in update.shared_modules()
        for p in module.parameters()
    }
    named = type(network).named_parameters(network, remove_duplicate=False)
    return {name for name, p in named if id(p) in used}


def adapter_state_dict(
    network: nn.Module, masks: Optional[Masks] = None, keep_vars: bool = False
) -> Dict[str, Tensor]:
    """What was learned: adapters, biases of adapted layers and bit-packed masks.

    Also the running statistics of batch normalization, which change while its weights are
    frozen. What else was trained (``train_others``), and other buffers, are not in it.
    Plain tensors only; ``torch.load(weights_only=True)`` reads them back.

    Args:
        network: an adapted network or layer.
        masks: the kept inputs, outputs and blocks per adapter, see
            :func:`configure_parameter_read`. Only what is kept is stored.
        keep_vars: the tensors themselves, with their graph, instead of copies.

    Raises:
        AdapterError: no adapter, or a mask that doesn't fit.
    """
    masks = masks or {}
    check_masks(network, masks)
    state: Dict[str, Tensor] = {}
    for name, layer in adapted_layers(network).items():
        state.update(learned(name, layer, masks))
        for part in parts(layer):
            path = join(name, part.update)
            packed = part.update_of(layer).packed_masks(masks.get(path) or {})
            state.update({join(path, n): t for n, t in packed.items()})
    named = dict(type(network).named_parameters(network))
    shared = shared_names(network)
    state.update({name: p for name, p in named.items() if name in shared})
    state.update(statistics(network))
    held = {id(tensor) for tensor in named.values()}
    for name, layer in adapted_layers(network).items():
        for update in layer.updates().values():
            if not all(id(p) in held for p in _shared_parameters(update)):
                raise AdapterError(
                    f"{name or 'the layer'} uses prototypes that belong to a larger "
                    "network; take the state of that network"
                )
    if keep_vars:
        return state
    copies: Dict[int, Tensor] = {}  # tied adapters stay one tensor
    for tensor in state.values():
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone()
    return {name: copies[id(tensor)] for name, tensor in state.items()}


def statistics(network: nn.Module) -> Dict[str, Tensor]:
    """What batch normalization keeps of the inputs that it saw, by name."""
    return {
        join(name, key): value
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for key, value in module._buffers.items()
        if value is not None and not nn.parameter.is_lazy(value)
    }


def _shared_parameters(update: WeightUpdate) -> List[nn.Parameter]:
    return [p for module in update.shared_modules() for p in module.parameters()]


def _named_parameters(
    network: nn.Module,
    adapter_weights_only: bool,
    masks: Masks,
    prefix: str = "",
    recurse: bool = True,
    remove_duplicate: bool = True,
) -> Iterator[Tuple[str, Tensor]]:
    shown = _readers(network, masks, not adapter_weights_only)
    shared = shared_names(network)
    for name, parameter in type(network).named_parameters(network, "", recurse, remove_duplicate):
        if name in shown:
            yield join(prefix, name), shown[name]
        elif not adapter_weights_only or name in shared:
            yield join(prefix, name), parameter


def _state_dict(
    network: nn.Module,
    adapter_weights_only: bool,
    masks: Masks,
    *args,
    destination=None,
    prefix: str = "",
    keep_vars: bool = False,
):
    if args:  # torch's old positional form
        destination, prefix, keep_vars = (*args, destination, prefix, keep_vars)[:3]
    if adapter_weights_only:
        state = adapter_state_dict(network, masks, keep_vars)
        if destination is None:
            return state
        destination.update({prefix + name: value for name, value in state.items()})
        return destination
    state = type(network).state_dict(
        network, destination=destination, prefix=prefix, keep_vars=keep_vars
    )
    for name, value in _readers(network, masks, True).items():
        state[prefix + name] = value if keep_vars else value.detach()
    return state


def _zero_grad(network: nn.Module, set_to_none: bool = True) -> None:
    """``zero_grad()`` of all parameters: what masks show has no gradient of its own."""
    for _, parameter in type(network).named_parameters(network):
        if set_to_none:
            parameter.grad = None
        elif parameter.grad is not None:
            parameter.grad.detach_().zero_()


class ConfigurableRead(nn.Module):
    """What an adapted layer adds to a plain one: it configures its own reading."""

    def configure_parameter_read(self, adapter_weights_only: bool = True, **masks):
        """What ``parameters()`` and ``state_dict()`` of this layer show.

        Args:
            adapter_weights_only: leave out the base weight.
            in_features_mask: bool ``[m]``, the inputs that are kept (SPLoRA).
            out_features_mask: bool ``[n]``, the outputs that are kept (SPLoRA).
            mask: bool ``[R, C]``, the blocks that are kept (SPLoPA).
            masks: for attention, the above per ``q_adapter``, ``k_adapter``,
                ``v_adapter``, ``out_adapter``.

        Raises:
            AdapterError: a mask of the wrong name, type or shape.
        """
        configure_parameter_read(
            self, adapter_weights_only, masks.pop("masks", None) or {"": masks}
        )

    def reset_parameter_read(self) -> None:
        """Show all parameters again."""
        reset_parameter_read(self)
