"""Channel groups: the one declaration of what can be pruned.

A layer that owns weights creates a :class:`ChannelGroup` for each set of
channels that it can lose and ties to it every slice of a parameter that lives
and dies with such a channel. Scoring, budgets, freezing, cutting, counting
parameters and FLOPs, and optimizer surgery read these declarations and nothing
else.
"""

from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from .errors import PruningError

# The kinds of a Transformer's channels; a user may declare groups of others.
KINDS = ("layer", "embedding", "qk", "vo", "ffn")


@dataclass(frozen=True)
class Slice:
    """One dimension of one parameter that is indexed by a group's channels."""

    module: nn.Module
    name: str
    dim: int

    @property
    def parameter(self) -> nn.Parameter:
        return getattr(self.module, self.name)

    @property
    def value(self) -> Tensor:
        """The parameter as its module uses it.

        A module that adds updates to its parameters says what they are then with a method
        ``adapted_weights``: tensors by name.
        """
        adapted = getattr(self.module, "adapted_weights", None) if self.name == "weight" else None
        return self.parameter if adapted is None else adapted()[self.name]

    def adapter_slices(self) -> Iterator["Slice"]:
        """What an adapter on the module ties to the same channels.

        A module with an update of its ``weight`` says in ``adapter_slices`` which of its
        tensors has which of the weight's dimensions.
        """
        slices = getattr(self.module, "adapter_slices", {})
        if self.name == "weight" and self.dim in slices:
            yield Slice(self.module, *slices[self.dim])


class ChannelGroup(nn.Module):
    """Channels that are scored, shrunk and cut together.

    Args:
        kind: ``layer`` (see ``layers.LayerGroup``), ``embedding``, ``qk``, ``vo`` or
            ``ffn`` of a Transformer, or a name of your own for other channels. Groups of one
            such kind, and those of kind ``ffn``, are ranked together: their least important
            channels go, whichever group has them.
        channels: number of channels in the uncut model.
        heads: number of attention heads that the channels are spread over,
            head by head; every head that stays keeps the same number.
        same_heads: the group of the other channels of the same heads; a head goes
            from both or from none.

    Buffers (saved with the model):
        connectivity: ``[width]``, 1 for a channel that is fully connected, 0
            for one that can be cut without changing any output.
        channel_ids: ``[width]`` int32, the positions of the present channels in
            the uncut model, ascending. They tell a loader how wide a cut model
            is, which heads it has, and which columns of a position table it keeps.
    """

    connectivity: Tensor
    channel_ids: Tensor
    __jit_unused_properties__ = ["width", "head_width", "ranked_across", "same_heads"]

    def __init__(
        self,
        kind: str,
        channels: int,
        heads: int = 1,
        same_heads: Optional["ChannelGroup"] = None,
    ):
        super().__init__()
        if not kind or not isinstance(kind, str):
            raise PruningError(f"kind {kind!r}: must be a name, as {', '.join(KINDS)}")
        if channels % heads:
            raise PruningError(f"{channels} channels can't be spread over {heads} heads")
        self.kind = kind
        self.heads = self.original_heads = heads
        self.original_width = channels
        self._same_heads = (same_heads,)  # in a tuple: it is registered elsewhere
        self.name = kind  # replaced by the path in the model, see channel_groups()
        self.slices: List[Slice] = []
        self.register_buffer("connectivity", torch.ones(channels))
        self.register_buffer("channel_ids", torch.arange(channels, dtype=torch.int32))
        self.gated = False
        # called at every site while scoring measures activations, see measure()
        self.listener: Optional[Callable[[Tensor, int], Tensor]] = None

    @property
    def width(self) -> int:
        return self.connectivity.numel()

    @property
    def head_width(self) -> int:
        """Channels of each present head."""
        return self.width // self.heads

    @property
    def ranked_across(self) -> bool:
        """Whether its channels are ranked with those of all other groups of its kind."""
        return self.original_heads == 1 and self.kind not in ("layer", "embedding", "qk", "vo")

    @property
    def same_heads(self) -> Optional["ChannelGroup"]:
        return self._same_heads[0]

    def heads_of(self, channel_ids: Tensor) -> Tensor:
        """The uncut model's heads that channels are of, ascending.

        Raises:
            RuntimeError: the heads have different numbers of channels.
        """
        if self.original_heads == 1 or not len(channel_ids):
            return torch.arange(self.original_heads)
        per_head = self.original_width // self.original_heads
        heads, channels = torch.unique(channel_ids.cpu() // per_head, return_counts=True)
        if len(channels.unique()) > 1:
            raise RuntimeError(f"{self.name}: its heads have different widths, {channels.tolist()}")
        return heads

    def tie(self, module: nn.Module, **dims: int) -> None:
        """Declare that ``module.<name>``'s dimension ``dim`` belongs to this group.

        ``group.tie(linear, weight=0, bias=0)`` ties the outputs of a Linear.
        Absent parameters (``bias=None``) are passed over.
        """
        for name, dim in dims.items():
            if getattr(module, name) is not None:
                self.slices.append(Slice(module, name, dim))

    def gate(self, x: Tensor) -> Tensor:
        """Multiply the channels of ``x [..., width]`` by their connectivity."""
        return x * self.connectivity.to(x.dtype) if self.gated else x

    def measure(self, x: Tensor, sentences: int = 1) -> Tensor:
        """Pass ``x [..., width]`` on from a site, where importance measures activations.

        Args:
            sentences: the dimension of ``x`` that counts sentences.
        """
        return x if self.listener is None else self.listener(x, sentences)

    def set_connectivity(self, connectivity: Tensor) -> None:
        """Set the gate, ``[width]``; all ones switch it off."""
        self.connectivity.copy_(connectivity)
        self.refresh()

    def shrink(self, positions: Tensor, connectivity: float) -> None:
        """Set the gate of some channels, those of the others being 1.

        The same as :meth:`set_connectivity`, without a look at the buffer, for which a
        GPU would have to be waited for in every update.

        Args:
            positions: at least one, on the buffer's device.
        """
        self.connectivity.index_fill_(0, positions, connectivity)
        rounded = torch.tensor(connectivity, dtype=self.connectivity.dtype)
        self.gated = bool(rounded != 1)

    def refresh(self) -> None:
        """Bring ``gated`` in line with the buffer, after it was changed or loaded."""
        self.gated = bool((self.connectivity != 1).any())

    def resize(self, channel_ids: Tensor) -> None:
        """Take over the channels of a cut model, all fully connected."""
        self.channel_ids = channel_ids.to(self.channel_ids.device, torch.int32)
        self.connectivity = self.connectivity.new_ones(channel_ids.numel())
        self.heads = len(self.heads_of(channel_ids))
        self.gated = False

    def script_form(self) -> None:
        """What TorchScript compiles in its place: nothing, as no channel is gated.

        Raises:
            PruningError: some are.
        """
        if self.gated:
            raise PruningError(
                "torch.jit.script: a pruning stage is under way; give the model when the stage "
                "is finished"
            )

    def extra_repr(self) -> str:
        heads = f", heads={self.heads}" if self.heads > 1 else ""
        return f"{self.kind}, {self.width}/{self.original_width}{heads}"


def channel_groups(model: nn.Module) -> Dict[str, ChannelGroup]:
    """All groups of a model by name, in module order; a shared group once."""
    groups = {}
    for name, module in model.named_modules():
        if isinstance(module, ChannelGroup):
            module.name = name
            groups[name] = module
    return groups


def shrinking_groups(model: nn.Module) -> List[str]:
    """Names of the groups that a pruning stage under way shrinks, in module order."""
    return [name for name, group in channel_groups(model).items() if group.gated]


def shrinking_in(weights: Mapping[str, Tensor]) -> Optional[str]:
    """Name of a group that shrinks, of those whose state a model's weights hold; or None."""
    for name, value in weights.items():
        group, _, part = name.rpartition(".")
        if part == "connectivity" and bool((value != 1).any()):
            return group
    return None


def attention_groups(groups: Mapping[str, ChannelGroup]) -> List[Tuple[ChannelGroup, ChannelGroup]]:
    """The query/key and the value/output group of each attention module."""
    return [(g.same_heads, g) for g in groups.values() if g.same_heads is not None]


def tied_dimensions(
    groups: Dict[str, ChannelGroup],
) -> Iterator[Tuple[nn.Parameter, Dict[int, ChannelGroup]]]:
    """Each tied parameter once, with the group of each of its tied dimensions.

    Tied weights (one parameter under two names) come once, so that nothing is
    counted, frozen or cut twice. What adapters hold is among them.
    """
    tied: Dict[int, Tuple[nn.Parameter, Dict[int, ChannelGroup]]] = {}
    for group in groups.values():
        for declared in group.slices:
            for piece in (declared, *declared.adapter_slices()):
                parameter = piece.parameter
                tied.setdefault(id(parameter), (parameter, {}))[1][piece.dim] = group
    return iter(tied.values())


def base_parameters(model: nn.Module) -> List[nn.Parameter]:
    """The parameters of a model without those of its adapters, which can be fused."""
    adapters = {
        id(getattr(module, name))
        for module in model.modules()
        for name in getattr(module, "adapter_names", ())
    }
    return [p for p in model.parameters() if id(p) not in adapters]
