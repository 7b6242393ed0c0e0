"""The SRP decoder."""

from fairseq.models.transformer import TransformerDecoderBase

from ..modules.srp_layer import SRPDecoderLayer
from .stream import Stack, tie_stream


class SRPDecoder(Stack, TransformerDecoderBase):
    """fairseq's decoder with an ``embedding`` and a ``depth`` channel group.

    Args:
        cfg: model configuration (SRPConfig).
        dictionary: target dictionary.
        embed_tokens: target embedding, with the group of its channels (the
            encoder's own, when all embeddings are shared).
    """

    script_class = TransformerDecoderBase

    def __init__(self, cfg, dictionary, embed_tokens):
        (embedding,) = self._embedding = embed_tokens.channel_group
        super().__init__(cfg, dictionary, embed_tokens)
        embedding.tie(self.embed_tokens, weight=1)
        embedding.tie(self.output_projection, weight=1)
        tie_stream(self, "decoder", embedding, cfg, cfg.max_target_positions)

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        return SRPDecoderLayer(cfg, self._embedding[0])
