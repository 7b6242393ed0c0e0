"""What an encoder and a decoder do alike with the stream of their layers' outputs."""

from torch import nn

from ..connectivity.groups import ChannelGroup
from ..connectivity.layers import LayerGroup
from ..modules.dropout import EmbeddingDropout
from ..modules.layer_norm import WeightedLayerNorm
from ..modules.positions import positional_embedding
from ..modules.scriptable import ScriptForm, copy_as


def tie_stream(
    side: nn.Module, name: str, embedding: ChannelGroup, cfg, max_positions: int
) -> None:
    """Let layers, dropout, positions and normalizations of the stream have their channels.

    Args:
        side: fairseq's encoder or decoder, as it was built.
        name: ``encoder`` or ``decoder``.
        cfg: model configuration (SRPConfig).
    """
    side.embedding = embedding
    side.depth = LayerGroup(side.layers)
    for layer in side.depth.layers:
        layer.depth = (side.depth,)  # in a tuple: it belongs to the side
    side.dropout_module = EmbeddingDropout(
        cfg.dropout, embedding, module_name=f"Transformer{name.capitalize()}"
    )
    if side.embed_positions is not None:
        side.embed_positions = positional_embedding(
            embedding, max_positions, side.padding_idx, getattr(cfg, name).learned_pos
        )
    if side.layernorm_embedding is not None:
        side.layernorm_embedding = WeightedLayerNorm(embedding, cfg.weighted_layernorm)
    if side.layer_norm is not None:
        side.layer_norm = WeightedLayerNorm(embedding, cfg.weighted_layernorm, stream=True)


class Stack(ScriptForm):
    """Mixin of an encoder and a decoder: whole layers may be cut."""

    __jit_unused_properties__ = ["num_layers"]

    def script_form(self) -> nn.Module:
        return copy_as(self, self.script_class, num_layers=self.num_layers)

    @property
    def num_layers(self) -> int:
        """Layers that are present."""
        return len(self.layers)

    @num_layers.setter
    def num_layers(self, layers: int) -> None:
        pass  # fairseq's constructor sets it
