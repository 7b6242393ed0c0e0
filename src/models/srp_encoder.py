"""The SRP encoder."""

from fairseq.models.transformer import TransformerEncoderBase

from ..modules.srp_layer import SRPEncoderLayer
from .stream import Stack, tie_stream


class SRPEncoder(Stack, TransformerEncoderBase):
    """fairseq's encoder with an ``embedding`` and a ``depth`` channel group.

    Args:
        cfg: model configuration (SRPConfig).
        dictionary: source dictionary.
        embed_tokens: source embedding, with the group of its channels.
    """

    script_class = TransformerEncoderBase

    def __init__(self, cfg, dictionary, embed_tokens):
        (embedding,) = self._embedding = embed_tokens.channel_group
        super().__init__(cfg, dictionary, embed_tokens)
        embedding.tie(self.embed_tokens, weight=1)
        tie_stream(self, "encoder", embedding, cfg, cfg.max_source_positions)

    def build_encoder_layer(self, cfg):
        return SRPEncoderLayer(cfg, self._embedding[0])
