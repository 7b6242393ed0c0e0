"""The SRP decoder."""

from fairseq.models.transformer import TransformerDecoderBase

from ..modules.dropout import EmbeddingDropout
from ..modules.layer_norm import WeightedLayerNorm
from ..modules.positions import positional_embedding
from ..modules.srp_layer import SRPDecoderLayer


class SRPDecoder(TransformerDecoderBase):
    """fairseq's decoder with an ``embedding`` channel group.

    Args:
        cfg: model configuration (SRPConfig).
        dictionary: target dictionary.
        embed_tokens: target embedding, with the group of its channels (the
            encoder's own, when all embeddings are shared).
    """

    def __init__(self, cfg, dictionary, embed_tokens):
        (embedding,) = self._embedding = embed_tokens.channel_group
        super().__init__(cfg, dictionary, embed_tokens)
        self.embedding = embedding
        embedding.tie(self.embed_tokens, weight=1)
        embedding.tie(self.output_projection, weight=1)
        self.dropout_module = EmbeddingDropout(
            cfg.dropout, embedding, module_name="TransformerDecoder"
        )
        if self.embed_positions is not None:
            self.embed_positions = positional_embedding(
                embedding,
                cfg.max_target_positions,
                self.padding_idx,
                cfg.decoder.learned_pos,
            )
        if self.layernorm_embedding is not None:
            self.layernorm_embedding = WeightedLayerNorm(
                embedding, cfg.weighted_layernorm
            )
        if self.layer_norm is not None:
            self.layer_norm = WeightedLayerNorm(
                embedding, cfg.weighted_layernorm, stream=True
            )

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        return SRPDecoderLayer(cfg, self._embedding[0])
