"""Masks of bits, and checks of masks and shapes."""

from typing import Mapping, Sequence

import torch
from torch import Tensor

from .errors import AdapterError


def pack(mask: Tensor) -> Tensor:
    """A bool mask as uint8 ``[ceil(bits / 8)]``, first bit lowest."""
    bits = mask.flatten().to(torch.uint8)
    bits = torch.cat([bits, bits.new_zeros(-bits.numel() % 8)]).view(-1, 8)
    powers = 2 ** torch.arange(8, device=bits.device)
    return (bits * powers).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The bool mask ``[bits]`` of :func:`pack`."""
    powers = 2 ** torch.arange(8, device=packed.device)
    return (packed[:, None].long() & powers).ne(0).flatten()[:bits]


def mask_size(packed: Tensor, bits: int, name: str) -> int:
    """How many bits of a packed mask are set.

    Raises:
        AdapterError: it isn't a packed mask of ``bits`` bits.
    """
    if packed.dtype != torch.uint8:
        raise AdapterError(f"{name}: found type {packed.dtype}, expected torch.uint8")
    expect_shape(packed, ((bits + 7) // 8,), name)
    return int(unpack(packed, bits).sum())


def expect_shape(tensor: Tensor, shape: Sequence[int], name: str) -> None:
    """Raises AdapterError with both shapes if they differ."""
    if tuple(tensor.shape) != tuple(shape):
        raise AdapterError(f"{name}: found shape {tuple(tensor.shape)}, expected {tuple(shape)}")


def check_mask(masks: Mapping[str, Tensor], sizes: Mapping[str, Sequence[int]], where: str) -> None:
    """Raises AdapterError for a mask of an unknown name, a wrong type or shape."""
    for name, mask in masks.items():
        path = f"{where}.{name}" if where else name
        if name not in sizes:
            raise AdapterError(f"{path}: no such mask; valid are {', '.join(sizes)}")
        if mask is None:
            continue
        if not isinstance(mask, Tensor):
            raise AdapterError(f"{path}: found a {type(mask).__name__}, expected a tensor")
        if mask.dtype != torch.bool:
            raise AdapterError(f"{path}: found type {mask.dtype}, expected torch.bool")
        expect_shape(mask, sizes[name], path)
