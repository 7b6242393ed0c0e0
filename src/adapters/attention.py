"""``nn.MultiheadAttention`` with adapters on q, k, v and the output projection."""

from types import SimpleNamespace
from typing import Any, Dict, Optional, Tuple, cast

from torch import Tensor, nn

from .block import Block
from .layer import AdaptedLayer
from .low_rank import LowRank
from .reading import ConfigurableRead


class LowRankHolder(LowRank):
    """The parameters of one projection's low-rank update."""


class BlockHolder(Block):
    """The parameters of one projection's block update."""


class _WithWeights:
    """An attention module seen with other weights than its own."""

    def __init__(self, module: nn.MultiheadAttention, weights: Dict[str, Tensor]):
        seen: Dict[str, Any] = dict(weights)
        out_proj = SimpleNamespace(weight=seen.pop("out_proj.weight"), bias=module.out_proj.bias)
        self.__dict__.update(seen, out_proj=out_proj, _module=module)

    def __getattr__(self, name):
        return getattr(self._module, name)


class _AdaptedAttention(ConfigurableRead, AdaptedLayer, nn.MultiheadAttention):
    """Runs torch's own attention, fast paths and all, on the adapted weights."""

    plain_class = nn.MultiheadAttention

    def forward(self, *args, **kwargs) -> Tuple[Tensor, Optional[Tensor]]:
        seen = _WithWeights(self, self.current_weights())
        return nn.MultiheadAttention.forward(cast(nn.MultiheadAttention, seen), *args, **kwargs)


class SPLoRAMultiheadAttention(_AdaptedAttention):
    """Attention with low-rank updates (:class:`LowRank`) of its projections."""

    holder = LowRankHolder


class SPLoPAMultiheadAttention(_AdaptedAttention):
    """Attention with block updates (:class:`Block`) of its projections."""

    holder = BlockHolder
