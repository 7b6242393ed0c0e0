"""Cut models of every architecture variant."""

import torch

from src.connectivity.groups import channel_groups
from tests.support.training import batch

VARIANTS = {
    "post-norm": {},
    "pre-norm": dict(encoder_normalize_before=True, decoder_normalize_before=True),
    "mixed norm": dict(encoder_normalize_before=True),
    "no final norm": dict(decoder_normalize_before=True, no_decoder_final_norm=True),
    "tied output": dict(share_decoder_input_output_embed=True),
    "all embeddings shared": dict(share_all_embeddings=True),
    "learned positions": dict(encoder_learned_pos=True, decoder_learned_pos=True),
    "no positions": dict(no_token_positional_embeddings=True),
    "embedding norm": dict(layernorm_embedding=True, no_scale_embedding=True),
    "narrow decoder": dict(decoder_embed_dim=12, decoder_ffn_embed_dim=20),
    "wide decoder": dict(decoder_embed_dim=24, decoder_layers=1, decoder_attention_heads=3),
    "gelu": dict(activation_fn="gelu_accurate"),  # its "gelu" rounds to float32
}


def random_keep(model, kinds, seed=3):
    """About half of the channels of the groups of ``kinds``, the same per head."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for name, group in channel_groups(model).items():
        if group.kind in kinds:
            per_head = group.width // group.heads
            rows = torch.rand(group.heads, per_head, generator=generator)
            kept = rows.argsort(1)[:, : max(1, per_head // 2 - 1)].sort(1).values
            keep[name] = (kept + torch.arange(group.heads)[:, None] * per_head).flatten()
    return keep


def close_gates(model, keep):
    for name, kept in keep.items():
        group = channel_groups(model)[name]
        connectivity = torch.zeros(group.width, dtype=torch.float64)
        connectivity[kept] = 1
        group.set_connectivity(connectivity)


@torch.no_grad()
def logits(model):
    return model(*batch())[0]


def random_scores(model, seed=1, levels=None):
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, group in channel_groups(model).items():
        score = torch.rand(group.width, generator=generator)
        scores[name] = (score * levels).floor() if levels else score
    return scores
