"""Position embeddings whose columns follow the embedding channels."""

from fairseq.modules import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding
from torch import nn

from ..connectivity.groups import ChannelGroup


class CutSinusoidalPositionalEmbedding(SinusoidalPositionalEmbedding):
    """fairseq's sinusoidal table of the uncut width, read at the group's channels."""

    def __init__(self, group: ChannelGroup, padding_idx: int, init_size: int):
        super().__init__(group.original_width, padding_idx, init_size)
        self._group = (group,)

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
