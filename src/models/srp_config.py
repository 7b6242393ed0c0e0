"""Options of the SRP model."""

from dataclasses import dataclass, field

from fairseq.models.transformer import TransformerConfig

from ..errors import UserError


@dataclass
class SRPConfig(TransformerConfig):
    """fairseq's Transformer options and SRP's own."""

    weighted_layernorm: bool = field(
        default=False,
        metadata={
            "help": "let every channel count by its connectivity in layer normalization "
            "(SRP's weighted layer normalization) instead of counting removed channels "
            "as zeros; belongs to the model: a cut model keeps what it was cut with"
        },
    )


# option -> the only value with which every channel can be declared
_UNSUPPORTED = {
    "adaptive_input": False,
    "adaptive_softmax_cutoff": None,
    "no_cross_attention": False,
    "cross_self_attention": False,
    "base_layers": 0,
    "merge_src_tgt_embed": False,
    "offload_activations": False,
    "encoder_layers_to_keep": None,
    "decoder_layers_to_keep": None,
    "quant_noise_pq": 0,
    "quant_noise_scalar": 0,
    "encoder_xformers_att_config": None,
    "decoder_xformers_att_config": None,
}


def check_config(cfg: SRPConfig) -> None:
    """Refuse what the SRP model can't do, before any work.

    Raises:
        UserError: an option of fairseq's Transformer that has no channel groups.
    """
    for name, valid in _UNSUPPORTED.items():
        value = getattr(cfg, name)
        if value and value != valid:
            raise UserError(
                f"--{name.replace('_', '-')} {value}: not supported by the SRP model; "
                f"leave it at {valid}"
            )
    for side in ("encoder", "decoder"):
        layers = getattr(cfg, f"{side}_layers")
        if layers < 1:
            raise UserError(f"--{side}-layers {layers}: must be at least 1")
        width = getattr(cfg, f"{side}_embed_dim")
        heads = getattr(cfg, f"{side}_attention_heads")
        if heads < 1:
            raise UserError(f"--{side}-attention-heads {heads}: must be at least 1")
        if width % heads:
            raise UserError(
                f"--{side}-embed-dim {width}: must be a multiple of "
                f"--{side}-attention-heads {heads}"
            )
        if width < 4 or width % 2:
            raise UserError(f"--{side}-embed-dim {width}: must be even and at least 4")
    for name in ("decoder_input_dim", "decoder_output_dim"):
        value = int(getattr(cfg, name))
        if value != cfg.decoder_embed_dim:
            raise UserError(
                f"--{name.replace('_', '-')} {value}: must equal --decoder-embed-dim "
                f"{cfg.decoder_embed_dim} in the SRP model"
            )
    if cfg.share_all_embeddings and cfg.encoder_embed_dim != cfg.decoder_embed_dim:
        raise UserError(
            f"--share-all-embeddings: --encoder-embed-dim {cfg.encoder_embed_dim} and "
            f"--decoder-embed-dim {cfg.decoder_embed_dim} must be equal"
        )
    file = cfg.decoder_embed_path
    if cfg.share_all_embeddings and file and file != cfg.encoder_embed_path:
        raise UserError(
            f"--decoder-embed-path {file}: --share-all-embeddings has one table; give the "
            "file as --encoder-embed-path"
        )


def check_sharing(cfg: SRPConfig, source, target) -> None:
    """Refuse one table of embeddings for two dictionaries.

    Raises:
        UserError: names the option and what to do.
    """
    if cfg.share_all_embeddings and source != target:
        raise UserError(
            f"--share-all-embeddings: the source dictionary ({len(source)} types) and the "
            f"target's ({len(target)}) are not the same; preprocess the data with "
            "--joined-dictionary, or use --share-decoder-input-output-embed"
        )
