"""Named architectures. Their dimensions can be overridden by fairseq's flags."""

from fairseq.models import register_model_architecture
from fairseq.models.transformer.transformer_legacy import (
    base_architecture,
    transformer_iwslt_de_en,
)

from . import srp_base  # noqa: F401  registers the model first


def _dimensions(args, embed: int, ffn: int, heads: int, layers: int) -> None:
    for side in ("encoder", "decoder"):
        for name, value in (
            ("embed_dim", embed),
            ("ffn_embed_dim", ffn),
            ("attention_heads", heads),
            ("layers", layers),
        ):
            name = f"{side}_{name}"
            setattr(args, name, getattr(args, name, value))
    base_architecture(args)


@register_model_architecture("srp", "srp")
def srp(args):
    base_architecture(args)


@register_model_architecture("srp", "srp_iwslt_de_en")
def srp_iwslt_de_en(args):
    transformer_iwslt_de_en(args)


@register_model_architecture("srp", "srp_multi30k_de_en")
def srp_multi30k_de_en(args):
    _dimensions(args, embed=256, ffn=512, heads=4, layers=3)


@register_model_architecture("srp", "srp_demo_de_en")
def srp_demo_de_en(args):
    _dimensions(args, embed=128, ffn=256, heads=4, layers=2)
