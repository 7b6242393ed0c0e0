"""Groups of a weight's outputs that use (nearly) the same inputs.

The inputs that a group of outputs uses are the union of what each uses; the group is
multiplied densely with these. Groups pay where outputs share inputs: with patterns of
many outputs by one input, with removed channels, with rows that are alike.
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_SIZES = (64, 128, 256)
# Time of fetching one input, in multiplications; and of one more product.
_FETCH, _CALL = 13, 6000


class Plan(NamedTuple):
    """How outputs are grouped.

    Attributes:
        order: outputs in the order in which they are grouped, those that use no input
            left out; None: all in the order they have.
        size: outputs in a group; the last may have fewer.
        unions: the inputs that each group uses, bool ``[groups, in]``.
        cost: of a product with one row, in multiplications.
    """

    order: Optional[Tensor]
    size: int
    unions: Tensor
    cost: float

    @property
    def columns(self) -> List[Tensor]:
        """The inputs that each group uses, ascending."""
        return [union.nonzero().squeeze(1) for union in self.unions]


def _unions(used: Tensor, size: int) -> Tensor:
    """Inputs that each group of ``size`` consecutive outputs uses, ``[groups, in]``."""
    padded = F.pad(used, (0, 0, 0, -len(used) % size))
    return padded.unflatten(0, (-1, size)).any(1)


def _cost(unions: Tensor, size: int, padded: bool) -> float:
    widths = unions.sum(1)
    if padded:
        return len(widths) * float(widths.max()) * (size + _FETCH)
    return float(widths.sum()) * (size + _FETCH) + len(widths) * _CALL


def order_by_support(used: Tensor) -> Tensor:
    """An order of the outputs in which those with equal inputs are adjacent.

    Args:
        used: bool ``[out, in]``.

    Returns:
        Indices of the outputs that use any input.
    """
    rows = np.packbits(used.cpu().numpy(), axis=1)
    keys = np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel()
    order = torch.from_numpy(np.argsort(keys, kind="stable")).to(used.device)
    return order[used.any(1).index_select(0, order)]


def plan_groups(weight: Tensor) -> Tuple[Plan, Plan]:
    """The cheapest grouping of a weight's outputs among a few.

    Tried are consecutive outputs and outputs ordered by the inputs that they use,
    in groups of several sizes.

    Args:
        weight: ``[out, in]`` with at least one weight that is not zero.

    Returns:
        The plan for one product of all groups, padded to the one that uses the most
        inputs, and the plan for one product per group.
    """
    used = weight != 0
    best: Dict[bool, Plan] = {}
    for order in (None, order_by_support(used)):
        unions = used if order is None else used.index_select(0, order)
        # reordering the outputs must buy something
        penalty = 0.0 if order is None else float(len(used) * _FETCH)
        kept, last = len(unions), 1
        for size in _SIZES:
            if size > _SIZES[0] and size >= 2 * kept:
                break
            unions, last = _unions(unions, size // last), size
            for padded in (True, False):
                cost = _cost(unions, size, padded) + penalty
                if padded not in best or cost < best[padded].cost:
                    best[padded] = Plan(order, size, unions, cost)
    return best[True], best[False]
