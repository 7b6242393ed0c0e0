"""Position embeddings whose columns follow the embedding channels."""

from typing import Any, Optional

from fairseq.modules import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding
from torch import Tensor, nn

from ..connectivity.groups import ChannelGroup
from .scriptable import ScriptForm, copy_as


class CutTable(nn.Module):
    """Some columns of a sinusoidal table, as TorchScript compiles them."""

    def __init__(self, table: SinusoidalPositionalEmbedding, columns: Tensor):
        super().__init__()
        self.table = table
        self.register_buffer("columns", columns)
        self.max_positions = table.max_positions

    def forward(
        self,
        input: Tensor,
        incremental_state: Optional[Any] = None,
        timestep: Optional[Tensor] = None,
        positions: Optional[Any] = None,
    ) -> Tensor:
        whole = self.table(input, incremental_state, timestep, positions)
        return whole.index_select(-1, self.columns)


class CutSinusoidalPositionalEmbedding(ScriptForm, SinusoidalPositionalEmbedding):
    """fairseq's sinusoidal table of the uncut width, read at the group's channels."""

    def __init__(self, group: ChannelGroup, padding_idx: int, init_size: int):
        super().__init__(group.original_width, padding_idx, init_size)
        self._group = (group,)

    def script_form(self) -> nn.Module:
        table = copy_as(self, SinusoidalPositionalEmbedding)
        return CutTable(table, self._group[0].channel_ids)

    def forward(self, input, incremental_state=None, timestep=None, positions=None):
        table = super().forward(input, incremental_state, timestep, positions)
        group = self._group[0]
        if group.width == group.original_width:
            return table
        return table.index_select(-1, group.channel_ids)


def positional_embedding(
    group: ChannelGroup, max_positions: int, padding_idx: int, learned: bool
) -> nn.Module:
    """As ``fairseq.modules.PositionalEmbedding``, tied to a group."""
    size = max_positions + padding_idx + 1
    if not learned:
        return CutSinusoidalPositionalEmbedding(group, padding_idx, size)
    table = LearnedPositionalEmbedding(size, group.width, padding_idx)
    nn.init.normal_(table.weight, mean=0, std=group.width**-0.5)
    nn.init.constant_(table.weight[padding_idx], 0)
    group.tie(table, weight=1)
    return table
