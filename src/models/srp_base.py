"""The SRP model: fairseq's Transformer with channel groups."""

from typing import Callable, Dict, Optional

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture
from torch import Tensor

from ..adapters import insert_like
from ..connectivity.cut import resize_to
from ..connectivity.groups import ChannelGroup, channel_groups
from ..connectivity.layers import layer_groups, resize_depth
from ..errors import UserError
from ..files import reason
from ..modules.linear import accelerate
from ..modules.scriptable import ScriptForm
from .srp_config import SRPConfig, check_config, check_sharing
from .srp_decoder import SRPDecoder
from .srp_encoder import SRPEncoder


@register_model("srp")
class SRPModel(ScriptForm, TransformerModel):
    """An encoder-decoder Transformer whose channels can be gated and cut.

    Without gates it computes the same function as fairseq's ``transformer``
    with the same weights, and it loads such checkpoints. When it loads the
    weights of a cut model, it takes over that model's widths, which stand in
    the ``channel_ids`` buffers: any fairseq tool rebuilds a cut model. Adapters
    among the weights are inserted likewise.
    """

    script_class = TransformerModel
    # called with the model when weights have been loaded, see --adapter-path
    after_loading: Optional[Callable] = None
    # between training and evaluation; what was computed from the weights is stale then
    mode_changes = 0

    def train(self, mode: bool = True):
        self.mode_changes += 1
        return super().train(mode)

    @classmethod
    def hub_models(cls):
        return {}

    @classmethod
    def add_args(cls, parser):
        gen_parser_from_dataclass(parser, SRPConfig(), delete_default=True, with_prefix="")

    def __init__(self, cfg, encoder, decoder):
        super().__init__(cfg, encoder, decoder)
        for layer in decoder.depth.layers:
            layer.encoder_attn.tie_memory(encoder.embedding)
        accelerate(self)

    @classmethod
    def build_model(cls, args, task):
        base_architecture(args)
        cfg = SRPConfig.from_namespace(args)
        check_config(cfg)
        check_sharing(cfg, task.source_dictionary, task.target_dictionary)
        return super().build_model(cfg, task)

    @classmethod
    def build_embedding(cls, cfg, dictionary, embed_dim, path=None):
        try:
            table = super().build_embedding(cfg, dictionary, embed_dim, path)
        except (OSError, ValueError, StopIteration, RuntimeError) as error:
            if path is None:
                raise
            side = "encoder" if path == cfg.encoder.embed_path else "decoder"
            raise UserError(
                f"--{side}-embed-path {path}: must be text with a word and its {embed_dim} "
                f"numbers a line, after a first line of two numbers ({reason(error)})"
            ) from None
        # in a tuple: a shared table has one group, which the encoder registers
        table.channel_group = (ChannelGroup("embedding", embed_dim),)
        return table

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):
        return SRPEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):
        return SRPDecoder(cfg, tgt_dict, embed_tokens)

    def forward(self, *args, loss: Optional[Callable] = None, **kwargs):
        """As in fairseq, or with ``loss``: what that returns.

        Args:
            loss: function of the decoder's features ``[B, T, D]`` and its output
                projection, for losses that need no logits. It is called in here, where
                a distributed wrapper knows which parameters take part.
        """
        if loss is None:
            return super().forward(*args, **kwargs)
        features, _ = super().forward(*args, features_only=True, **kwargs)
        return loss(features, self.decoder.output_projection)

    def upgrade_state_dict_named(self, state_dict: Dict[str, Tensor], name: str):
        """Complete a plain Transformer's weights, and take over a cut model's widths."""
        prefix = f"{name}." if name else ""
        depths = {
            group: state_dict.get(f"{prefix}{group}.channel_ids")
            for group in layer_groups(channel_groups(self))
        }
        resize_depth(self, {group: ids for group, ids in depths.items() if ids is not None})
        super().upgrade_state_dict_named(state_dict, name)
        channel_ids = {}
        for group_name, group in channel_groups(self).items():
            fresh = ChannelGroup(group.kind, group.original_width, group.original_heads)
            for buffer, value in fresh.named_buffers():
                state_dict.setdefault(f"{prefix}{group_name}.{buffer}", value)
            channel_ids[group_name] = state_dict[f"{prefix}{group_name}.channel_ids"]
        if self.decoder.embedding is self.encoder.embedding:
            for buffer in ("connectivity", "channel_ids"):
                state_dict.setdefault(
                    f"{prefix}decoder.embedding.{buffer}",
                    state_dict[f"{prefix}encoder.embedding.{buffer}"],
                )
        resize_to(self, channel_ids)
        insert_like(self, state_dict, prefix)

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        result = super().load_state_dict(state_dict, strict, model_cfg, args)
        for group in channel_groups(self).values():
            group.refresh()
        if self.after_loading is not None:
            self.after_loading(self)
        return result
