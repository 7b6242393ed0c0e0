"""The SRP encoder."""

from fairseq.models.transformer import TransformerEncoderBase

from ..modules.dropout import EmbeddingDropout
from ..modules.layer_norm import WeightedLayerNorm
from ..modules.positions import positional_embedding
from ..modules.srp_layer import SRPEncoderLayer


class SRPEncoder(TransformerEncoderBase):
    """fairseq's encoder with an ``embedding`` channel group.

    Args:
        cfg: model configuration (SRPConfig).
        dictionary: source dictionary.
        embed_tokens: source embedding, with the group of its channels.
    """

    def __init__(self, cfg, dictionary, embed_tokens):
        (embedding,) = self._embedding = embed_tokens.channel_group
        super().__init__(cfg, dictionary, embed_tokens)
        self.embedding = embedding
        embedding.tie(self.embed_tokens, weight=1)
        self.dropout_module = EmbeddingDropout(
            cfg.dropout, embedding, module_name="TransformerEncoder"
        )
        if self.embed_positions is not None:
            self.embed_positions = positional_embedding(
                embedding,
                cfg.max_source_positions,
                self.padding_idx,
                cfg.encoder.learned_pos,
            )
        if self.layernorm_embedding is not None:
            self.layernorm_embedding = WeightedLayerNorm(
                embedding, cfg.weighted_layernorm
            )
        if self.layer_norm is not None:
            self.layer_norm = WeightedLayerNorm(
                embedding, cfg.weighted_layernorm, stream=True
            )

    def build_encoder_layer(self, cfg):
        return SRPEncoderLayer(cfg, self._embedding[0])
