"""Scores of weights: those with the lowest are removed first.

A criterion sees a weight w and its gradient g before every optimizer step. Those
that accumulate do so since training began, pruned or not. Sums are kept in float32,
or in the weight's float64.
"""

import hashlib
from typing import Any, Callable, Dict, NamedTuple, Optional

import torch
from torch import Tensor

from ..errors import SparsityError

# S ← MOMENTUM·S + |w·g|
MOMENTUM = 0.9


class Criterion(NamedTuple):
    """One way to score weights.

    Attributes:
        accumulate: adds one step to the state, in place: ``accumulate(state, term)``,
            the term (free to overwrite) being what ``needs`` says, both shaped like
            the weight. ``None``: no gradient is needed.
        score: scores from the state, shaped like it; ``None``: the state itself.
        needs: the term: ``product``, w·g, or ``gradient``, g.
        keeps: whether the state outlives the optimizer step.
    """

    accumulate: Optional[Callable[[Tensor, Tensor], Any]] = None
    score: Optional[Callable[[Tensor], Tensor]] = None
    needs: str = "product"
    keeps: bool = True


def _snip(state, product):
    torch.abs(product, out=state)


def _snip_momentum(state, product):
    torch.add(product.abs_(), state, alpha=MOMENTUM, out=state)


SCORES: Dict[str, Criterion] = {
    # |w|
    "magnitude": Criterion(),
    # a number drawn once for each weight
    "random": Criterion(),
    # |w·g| of this step: Lee et al., SNIP (arXiv 1810.02340)
    "snip": Criterion(_snip, keeps=False),
    # S ← 0.9·S + |w·g|: the Pytorch Pruner
    "snip_momentum": Criterion(_snip_momentum),
    # the channel criteria of connectivity/, taken for single weights
    "connectivity": Criterion(lambda state, product: state.add_(product), torch.neg),
    "taylor": Criterion(lambda state, product: state.add_(product), torch.abs),
    "fisher": Criterion(lambda state, product: state.addcmul_(product, product)),
    "grad": Criterion(lambda state, gradient: state.add_(gradient), torch.abs, needs="gradient"),
}
ALIASES = {"weight": "magnitude"}
CHANNELS_ONLY = {"lrp": "lrp ranks channels: use pruning.py --importance lrp"}


def criterion_name(text: str) -> str:
    """The name in :data:`SCORES` that ``text`` or its alias stands for.

    Raises:
        SparsityError: there is none.
    """
    name = ALIASES.get(text, text)
    if name not in SCORES:
        hint = CHANNELS_ONLY.get(text, "it is unknown")
        raise SparsityError(f"prune_type: {text!r}: {hint}; choose from {', '.join(SCORES)}")
    return name


class Scores:
    """Scores of the layers of one pruner.

    Args:
        name: in :data:`SCORES`.
        seed: decides what ``random`` draws.

    Attributes:
        state: sums of each layer so far, shaped like its weight.
    """

    def __init__(self, name: str, seed: int):
        self.name, self.seed = name, seed
        self.criterion = SCORES[name]
        self.state: Dict[str, Tensor] = {}
        self._scratch: Optional[Tensor] = None

    @property
    def uses_gradients(self) -> bool:
        return self.criterion.accumulate is not None

    def update(self, layer: str, weight: Tensor, gradient: Optional[Tensor], scale: float):
        """Count one optimizer step of ``layer``.

        Args:
            layer: its name.
            weight: its weight.
            gradient: of the loss, shaped like ``weight``; ``None`` counts as zero once
                the layer had a gradient.
            scale: what the gradient is to be multiplied with.
        """
        state = self.state.get(layer)
        if gradient is None and state is None:
            return  # a layer that never has a gradient is refused when it is pruned
        if state is None:
            state = torch.zeros_like(
                weight, dtype=_accurate(weight), memory_format=torch.contiguous_format
            )
        self.state[layer] = state = state.to(weight.device)
        term = self._term(state)
        if gradient is None:
            term.zero_()
        elif self.criterion.needs == "gradient":
            term.copy_(gradient)
        else:
            _multiply(weight, gradient, term)
        if scale != 1:
            term.mul_(scale)
        if self.criterion.accumulate is not None:
            self.criterion.accumulate(state, term)

    def _term(self, like: Tensor) -> Tensor:
        """Memory for one step's term: kept, as allocating costs more than computing."""
        kept = self._scratch
        if (
            kept is None
            or kept.numel() < like.numel()
            or ((kept.dtype, kept.device) != (like.dtype, like.device))
        ):
            kept = self._scratch = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
        return kept[: like.numel()].view(like.shape)

    def scores(self, layer: str, weight: Tensor) -> Optional[Tensor]:
        """Scores of ``layer``, shaped like ``weight``; ``None``: no gradient so far.

        Not to be written to.
        """
        if self.name == "magnitude":
            magnitudes = weight.detach().abs()
            return magnitudes.to(_accurate(magnitudes))
        if self.name == "random":
            return _draw(f"{self.seed}/{layer}", weight)
        state = self.state.get(layer)
        if state is None or self.criterion.score is None:
            return state
        return self.criterion.score(state)

    def forget(self, everything: bool = False) -> None:
        """Free what the next optimizer step will not need."""
        if everything or not self.criterion.keeps:
            self.state = {}
        if everything:
            self._scratch = None


def _multiply(weight: Tensor, gradient: Tensor, out: Tensor) -> None:
    """``weight · gradient`` in the accuracy of ``out``."""
    if weight.dtype == gradient.dtype == out.dtype:
        torch.mul(weight.detach(), gradient, out=out)
    else:  # the product of two halves would be rounded to half, or vanish
        out.copy_(weight.detach()).mul_(gradient)


def _accurate(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _draw(key: str, weight: Tensor) -> Tensor:
    """Numbers that depend on nothing but ``key`` and the shape: no state to keep."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    drawn = torch.rand(weight.shape, generator=generator, dtype=_accurate(weight))
    return drawn.to(weight.device)
