"""Reaching what an optimizer remembers of each weight, in any precision.

fairseq's half-precision optimizers keep float32 copies of the weights, one per
parameter or one flat vector for all; Adam's moments then belong to the copies.
"""

from typing import Dict, Iterator, List, Tuple

import torch
from fairseq.optim import FairseqOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer
from torch import Tensor, nn

from ..connectivity.cut import Cuts, cut_optimizer_state, select_positions
from ..connectivity.freeze import Freezer

MASTER = "float32 copy"


def _segments(
    optimizer: FP16Optimizer, shapes: List[torch.Size]
) -> Iterator[Tuple[nn.Parameter, nn.Parameter, int, torch.Size]]:
    """(parameter, its float32 copy, offset in the copy, shape) for every parameter."""
    copies = optimizer.fp32_params
    offsets: Dict[int, int] = {}
    for number, (parameter, shape) in enumerate(zip(optimizer.fp16_params, shapes)):
        if isinstance(copies, dict):
            only = next(iter(copies.values()))
            copy = only if len(copies) == 1 else copies[parameter.device.index]
        else:
            copy = copies[number]
        offset = offsets.get(id(copy), 0)
        offsets[id(copy)] = offset + shape.numel()
        yield parameter, copy, offset, shape


def _memory(
    optimizer: FP16Optimizer, shapes: List[torch.Size]
) -> Iterator[Tuple[nn.Parameter, str, Tensor]]:
    """(parameter, name, view shaped like the parameter) of copies and moments."""
    for parameter, copy, offset, shape in _segments(optimizer, shapes):
        tensors = {MASTER: copy.data, **optimizer.optimizer.state.get(copy, {})}
        for name, tensor in tensors.items():
            if torch.is_tensor(tensor) and tensor.shape == copy.shape:
                flat = tensor.view(-1)[offset : offset + shape.numel()]
                yield parameter, name, flat.view(shape)


def memory(optimizer: FP16Optimizer) -> Iterator[Tuple[nn.Parameter, str, Tensor]]:
    """What a half-precision optimizer keeps of each parameter, as views of its shape.

    Yields:
        (parameter, name, view): its float32 copy and Adam's moments.
    """
    return _memory(optimizer, [p.shape for p in optimizer.fp16_params])


@torch.no_grad()
def clear_moments(optimizer: FairseqOptimizer, freezer: Freezer) -> None:
    """Zero the moments of frozen weights."""
    if not isinstance(optimizer, FP16Optimizer):
        freezer.clear_moments(optimizer.optimizer)
        return
    frozen = set(freezer.parameters)
    for parameter, name, view in memory(optimizer):
        if name != MASTER and parameter in frozen:
            view.masked_fill_(freezer.mask(parameter), 0)


@torch.no_grad()
def cut_optimizer(optimizer: FairseqOptimizer, cuts: Cuts, rebuild) -> None:
    """Make an optimizer fit parameters that were cut, keeping what it remembers.

    Args:
        optimizer: the optimizer of the uncut parameters.
        cuts: what :func:`..connectivity.cut.cut` returned.
        rebuild: makes and returns a new optimizer; called for half precision,
            whose float32 copies have the old sizes.
    """
    if not isinstance(optimizer, FP16Optimizer):
        cut_optimizer_state(optimizer.optimizer, cuts)
        return
    before = {id(parameter): (shape, kept) for parameter, shape, kept in cuts}
    shapes = [before.get(id(p), (p.shape, {}))[0] for p in optimizer.fp16_params]
    taken: Dict[Tuple[int, str], Tensor] = {}
    for parameter, name, view in _memory(optimizer, shapes):
        kept = before.get(id(parameter), (None, {}))[1]
        if kept is None:
            continue  # gone with its layer
        taken[id(parameter), name] = select_positions(view, kept).clone()
    scalars = [
        {k: v for k, v in state.items() if not torch.is_tensor(v) or v.dim() == 0}
        for state in optimizer.optimizer.state.values()
    ]
    scaler = optimizer.scaler

    new = rebuild()
    new.scaler = scaler
    names = {name for _, name in taken if name != MASTER}
    copies = new.fp32_params
    for copy in copies.values() if isinstance(copies, dict) else copies:
        if scalars:
            moments = {name: torch.zeros_like(copy.data) for name in names}
            # a count of steps for each, since a step of the optimizer adds to every one
            counts = {k: v.clone() if torch.is_tensor(v) else v for k, v in scalars[0].items()}
            new.optimizer.state[copy] = {**counts, **moments}
    for parameter, name, view in memory(new):
        if (id(parameter), name) in taken:
            view.copy_(taken[id(parameter), name])
