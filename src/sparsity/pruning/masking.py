"""Masks that zero removed weights at the speed of memory."""

import torch
from torch import Tensor

# Integers as wide as a float: masking by bits is many times faster than masked_fill_,
# and unlike a product leaves 0 where inf or nan stood.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Mask:
    """Which elements of a weight remain.

    Args:
        kept: bool, shaped like the weight; never written to afterwards.
    """

    def __init__(self, kept: Tensor):
        self.kept = kept
        self._bits = kept.to(torch.int8).neg_()

    @torch.no_grad()
    def apply(self, tensor: Tensor) -> None:
        """Zero the removed elements of ``tensor``, which is shaped like the weight."""
        if self.kept.device != tensor.device:
            self.kept, self._bits = self.kept.to(tensor.device), self._bits.to(tensor.device)
        integers = _INTEGERS.get(tensor.element_size())
        if integers is None or tensor.is_complex():
            tensor.detach().masked_fill_(~self.kept, 0)
        else:
            tensor.detach().view(integers).bitwise_and_(self._bits)
