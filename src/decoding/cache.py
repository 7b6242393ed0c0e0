"""What a batch's hypotheses have written and read so far: keys, values, and masks.

Nothing that is written is moved when hypotheses are reordered. With several hypotheses
a sentence, each attends to everything that any of them has written, under a mask that
says whose ancestors wrote what. With one, no mask is needed, and positions are the
first dimension: a step's keys and values are written in one piece, and attention to
few positions is faster as vectorized sums than as many tiny matrix products.
"""

import math
from typing import List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SLOTS = 64  # positions with room to begin with, at least; doubled when they are full
# Tokens of a hypothesis for each of the source with room to begin with: more slots take no
# time before they are written, but everything is copied when they are doubled.
_EXPECTED = 1.2
# PyTorch's softmax over fewer numbers is not vectorized, ten times as slow
_VECTOR = 16
# Numbers in an intermediate result of SingleCache on CPUs. Of larger ones the memory is
# asked of the system anew each time, which takes longer than the computation.
_LARGEST = 1 << 19


class Heads(NamedTuple):
    """Heads of one layer's self-attention and cross-attention."""

    own: int
    cross: int


def _padding_mask(padding: Optional[Tensor], like: Tensor) -> Optional[Tensor]:
    """``[B, S]`` in the type of ``like``, -inf where ``padding`` is True, or None."""
    if padding is None or not padding.any():
        return None
    mask = like.new_zeros(padding.shape)
    return mask.masked_fill_(padding.to(torch.bool), float("-inf"))


def _heads(x: Tensor, heads: int) -> Tensor:
    """``[..., H*K]`` to ``[..., H, K]``."""
    return x.view(*x.shape[:-1], heads, x.shape[-1] // heads)


class BeamCache:
    """Keys and values of several hypotheses a sentence.

    Args:
        memory: per layer the encoder's keys and values, ``[S, B, H*K]`` and
            ``[S, B, H*V]``; beams of a sentence share them.
        padding: ``[B, S]``, True at the source's padding, or None.
        heads: of each layer.
        beam: hypotheses that are expected.
    """

    def __init__(
        self,
        memory: List[Tuple[Tensor, Tensor]],
        padding: Optional[Tensor],
        heads: List[Heads],
        beam: int,
    ):
        self.heads, self.used = heads, 0
        length, sentences, _ = memory[0][0].shape
        slots = max(_SLOTS, math.ceil(_EXPECTED * length) * beam)
        missing = max(0, _VECTOR - length)
        if missing:
            if padding is None:
                padding = torch.zeros(
                    sentences, length, dtype=torch.bool, device=memory[0][0].device
                )
            padding = F.pad(padding.to(torch.bool), (0, missing), value=True)
        mask = _padding_mask(padding, memory[0][0])
        self.memory_mask = None if mask is None else mask[:, None, None]  # [B, 1, 1, S]
        self.memory = []  # [B, H, S, K] and [B, H, S, V]
        for pair, number in zip(memory, heads):
            split = (_heads(x, number.cross).permute(1, 2, 0, 3) for x in pair)
            self.memory.append(tuple(F.pad(x, (0, 0, 0, missing)).contiguous() for x in split))
        self.written: List[Optional[Tuple[Tensor, Tensor]]] = [None] * len(heads)
        # [B, n, slots], 0 where slot was written by an ancestor, else -inf
        self.mask = memory[0][0].new_full((sentences, 1, slots), float("-inf"))

    def open(self, hypotheses: int) -> None:
        """Make room for one position of each hypothesis, seen by itself alone."""
        slots = self.mask.shape[-1]
        if self.used + hypotheses > slots:
            more = max(slots, hypotheses)
            self.mask = F.pad(self.mask, (0, more), value=float("-inf"))
            self.written = [
                tuple(_with_room(x, self.used, more) for x in pair) for pair in self.written
            ]
        self.used += hypotheses
        self.mask[:, :, self.used - hypotheses : self.used].diagonal(dim1=1, dim2=2).zero_()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write keys and values, attend to the ancestors'.

        Shapes:
            q, k ``[B*n, H*K]``, v ``[B*n, H*V]``, result ``[B*n, H*V]``; q is scaled.
        """
        sentences, hypotheses, slots = self.mask.shape
        heads = self.heads[layer].own
        if self.written[layer] is None:
            self.written[layer] = tuple(
                x.new_empty(sentences, heads, slots, x.shape[1] // heads) for x in (k, v)
            )
        for old, new in zip(self.written[layer], (k, v)):
            old[:, :, self.used - hypotheses : self.used] = _split(new, sentences, heads)
        k, v = (old[:, :, : self.used] for old in self.written[layer])
        mask = self.mask[:, None, :, : self.used]
        return _attend(_split(q, sentences, heads), k, v, mask)

    def attend_memory(self, layer: int, q: Tensor) -> Tensor:
        """Attend to the source: scaled q ``[B*n, H*K]`` to ``[B*n, H*V]``."""
        q = _split(q, len(self.mask), self.heads[layer].cross)
        return _attend(q, *self.memory[layer], self.memory_mask)

    def reorder(self, parents: Tensor) -> None:
        """Hypothesis j goes on from ``parents[:, j]``, ``[B, beam]``."""
        index = parents.unsqueeze(-1).expand(-1, -1, self.mask.shape[-1])
        self.mask = self.mask.gather(1, index)

    def keep(self, sentences: Tensor) -> None:
        """Forget all but these sentences."""

        def select(x):
            return x.index_select(0, sentences)

        self.memory = [(select(k), select(v)) for k, v in self.memory]
        if self.memory_mask is not None:
            self.memory_mask = select(self.memory_mask)
        self.mask = select(self.mask)
        used = self.used
        for number, pair in enumerate(self.written):
            smaller = tuple(x.new_empty(len(sentences), *x.shape[1:]) for x in pair)
            for old, new in zip(pair, smaller):
                new[:, :, :used] = old[:, :, :used].index_select(0, sentences)
            self.written[number] = smaller


def _with_room(x: Tensor, used: int, more: int) -> Tensor:
    """``x [B, H, slots, K]`` with more slots, of which the used ones are copied alone."""
    sentences, heads, slots, width = x.shape
    larger = x.new_empty(sentences, heads, slots + more, width)
    larger[:, :, :used] = x[:, :, :used]
    return larger


def _split(x: Tensor, sentences: int, heads: int) -> Tensor:
    """``[B*n, H*K]`` to ``[B, H, n, K]``."""
    return _heads(x.unflatten(0, (sentences, -1)), heads).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Attention of scaled queries ``[B, H, n, K]``; ``[B*n, H*V]``.

    Plain products: with n of a few rows they are a tenth faster than the fused
    operator, whose blocks are made for long queries.
    """
    scores = torch.matmul(q, k.transpose(-2, -1))
    if mask is not None:
        scores += mask
    heads = torch.matmul(F.softmax(scores, dim=-1), v)
    return heads.transpose(1, 2).reshape(-1, heads.shape[1] * heads.shape[3])


class SingleCache:
    """Keys and values of one hypothesis a sentence; see :class:`BeamCache`."""

    def __init__(
        self,
        memory: List[Tuple[Tensor, Tensor]],
        padding: Optional[Tensor],
        heads: List[Heads],
    ):
        self.heads, self.used = heads, 0
        self.memory = [  # [S, B, H, K] and [S, B, H, V]
            tuple(_heads(x.contiguous(), number.cross) for x in pair)
            for pair, number in zip(memory, heads)
        ]
        mask = _padding_mask(padding, memory[0][0])
        self.memory_mask = None if mask is None else mask.t().unsqueeze(2)  # [S, B, 1]
        self.slots = _SLOTS
        self.written: List[Optional[Tuple[Tensor, Tensor]]] = [None] * len(heads)

    def open(self, hypotheses: int) -> None:
        """Make room for one position."""
        if self.used == self.slots:
            self.written = [
                tuple(torch.cat([x, torch.empty_like(x)]) for x in pair) for pair in self.written
            ]
            self.slots *= 2
        self.used += 1

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As :meth:`BeamCache.attend`, n = 1."""
        q, k, v = (_heads(x, self.heads[layer].own) for x in (q, k, v))
        if self.written[layer] is None:
            self.written[layer] = tuple(x.new_empty(self.slots, *x.shape) for x in (k, v))
        keys, values = self.written[layer]
        keys[self.used - 1], values[self.used - 1] = k, v
        return _attend_once(q, keys[: self.used], values[: self.used])

    def attend_memory(self, layer: int, q: Tensor) -> Tensor:
        """As :meth:`BeamCache.attend_memory`, n = 1."""
        q = _heads(q, self.heads[layer].cross)
        return _attend_once(q, *self.memory[layer], self.memory_mask)

    def reorder(self, parents: Optional[Tensor]) -> None:
        """Every hypothesis goes on from itself."""

    def keep(self, sentences: Tensor) -> None:
        """Forget all but these sentences."""

        def select(x):
            return x.index_select(1, sentences)

        self.memory = [(select(k), select(v)) for k, v in self.memory]
        if self.memory_mask is not None:
            self.memory_mask = select(self.memory_mask)
        for number, pair in enumerate(self.written):
            smaller = tuple(x.new_empty(len(x), len(sentences), *x.shape[2:]) for x in pair)
            for old, new in zip(pair, smaller):
                used = slice(self.used)
                torch.index_select(old[used], 1, sentences, out=new[used])
            self.written[number] = smaller


def _attend_once(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """Attention of one scaled query a sentence.

    Shapes:
        q ``[B, H, K]``, k ``[S, B, H, K]``, v ``[S, B, H, V]``, mask ``[S, B, 1]``,
        result ``[B, H*V]``.
    """
    if k.device.type != "cpu" or max(k.numel(), v.numel()) <= _LARGEST:
        scores = (k * q).sum(dim=-1)
        return (v * _weights(scores, mask)).sum(dim=0).flatten(1)
    size = max(1, _LARGEST // max(q.numel(), v[0].numel()))
    scores = torch.cat([(part * q).sum(dim=-1) for part in k.split(size)])
    parts = zip(v.split(size), _weights(scores, mask).split(size))
    return sum((part * weights).sum(dim=0) for part, weights in parts).flatten(1)


def _weights(scores: Tensor, mask: Optional[Tensor]) -> Tensor:
    """``[S, B, H]`` to ``[S, B, H, 1]``."""
    if mask is not None:
        scores += mask
    return F.softmax(scores, dim=0).unsqueeze(-1)
