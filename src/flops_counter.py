"""Floating-point operations of a translation, from the shapes of the weights.

    python src/flops_counter.py checkpoints/multi30k/stage2/checkpoint_last.pt \\
        --source-length 50 --target-length 50

Convention: FLOPs of matrix products only, 2·m·n·k for ``[m, k] @ [k, n]`` (two
per multiply-add), as torch's ``FlopCounterMode`` counts. Embedding look-ups,
biases, softmax, layer normalization and activations are not counted. Lengths
are tokens of one sentence with its end-of-sentence token. By this convention
``transformer_iwslt_de_en`` with dictionaries of 8848 and 6632 types takes 3.56
GFLOPs (1.78 G multiply-adds) for 50 source and 50 target tokens, generated one
by one with cached keys and values.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.flops_counter").main())

from typing import Any, Dict, List, Optional  # noqa: E402

from fairseq import models  # noqa: E402
from fairseq.data import Dictionary  # noqa: E402
from torch import nn  # noqa: E402

from .checkpoint_utils import load_checkpoint  # noqa: E402
from .checkpoints.pretrained import srp_arguments  # noqa: E402
from .commandline.parsing import ArgumentParser, add_trust, ending_quietly, set_up_logging  # noqa: E402
from .errors import UserError  # noqa: E402

PARTS = (
    "encoder_projections",
    "encoder_scores",
    "encoder_ffn",
    "decoder_self_projections",
    "decoder_self_scores",
    "decoder_cross_projections",
    "decoder_cross_scores",
    "decoder_ffn",
    "output_projection",
)


def _linear(*layers: Optional[nn.Module]) -> int:
    """FLOPs of linear layers for one position."""
    return sum(2 * layer.weight.numel() for layer in layers if layer is not None)


def _scores(attention: nn.Module) -> int:
    """FLOPs of one query with one key: their product, and the weighted value.

    The widths are those of all heads together, ``H*K`` and ``H*V``.
    """
    return 2 * (len(attention.q_proj.weight) + len(attention.v_proj.weight))


def count_flops(
    model: nn.Module,
    source_length: int,
    target_length: int,
    incremental: bool = True,
    beam: int = 1,
) -> Dict[str, int]:
    """FLOPs to translate one sentence; see above for what is counted.

    Args:
        model: an SRP model, cut or not, or fairseq's Transformer.
        source_length: tokens of the source, S.
        target_length: tokens of the target, T.
        incremental: generate the target token by token: each step computes its
            own position, cross-attention's keys and values are computed once,
            self-attention reads the positions so far. Otherwise the whole target
            goes through at once (teacher forcing, a training step's forward
            pass), where the causal mask saves nothing.
        beam: hypotheses that are extended side by side. They share the encoder
            and cross-attention's keys and values, as after the decoder's
            ``set_beam_size(beam)``. Only with ``incremental``.

    Returns:
        FLOPs for each name in ``PARTS``, and their ``total``.

    Raises:
        ValueError: a length or beam below 1, a beam without ``incremental``, or
            a model without a plain output projection (adaptive softmax).
    """
    if min(source_length, target_length, beam) < 1:
        raise ValueError("lengths and beam must be at least 1")
    if beam > 1 and not incremental:
        raise ValueError("a beam needs incremental generation")
    encoder, decoder = model.encoder, model.decoder
    if getattr(decoder, "output_projection", None) is None:
        raise ValueError("the model has no output projection (adaptive softmax)")
    source, target = source_length, target_length
    # how many pairs of query and key self-attention computes
    pairs = target * (target + 1) // 2 if incremental else target * target

    flops = dict.fromkeys(PARTS, 0)
    for layer in encoder.layers:
        attention = layer.self_attn
        flops["encoder_projections"] += source * _linear(
            attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj
        )
        flops["encoder_scores"] += source * source * _scores(attention)
        flops["encoder_ffn"] += source * _linear(layer.fc1, layer.fc2)
    for layer in decoder.layers:
        attention = layer.self_attn
        flops["decoder_self_projections"] += (beam * target) * _linear(
            attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj
        )
        flops["decoder_self_scores"] += beam * pairs * _scores(attention)
        attention = layer.encoder_attn
        flops["decoder_cross_projections"] += (beam * target) * _linear(
            attention.q_proj, attention.out_proj
        ) + source * _linear(attention.k_proj, attention.v_proj)
        flops["decoder_cross_scores"] += beam * target * source * _scores(attention)
        flops["decoder_ffn"] += beam * target * _linear(layer.fc1, layer.fc2)
    # fairseq's Transformer may change the width before and after its layers
    flops["output_projection"] = (beam * target) * _linear(
        decoder.project_in_dim, decoder.project_out_dim, decoder.output_projection
    )
    flops["total"] = sum(flops.values())
    return flops


class _Dictionaries:
    """What building a model needs of a task: dictionaries of the right lengths."""

    def __init__(self, state: Dict[str, Any]):
        self.source_dictionary = self._of_size(state, "encoder")
        self.target_dictionary = self._of_size(state, "decoder")
        arguments = srp_arguments(state)
        if arguments.share_all_embeddings:
            self.target_dictionary = self.source_dictionary

    @staticmethod
    def _of_size(state, side: str) -> Dictionary:
        dictionary = Dictionary()
        types = len(state["model"][f"{side}.embed_tokens.weight"])
        for number in range(types - len(dictionary)):
            dictionary.add_symbol(f"type{number}")
        return dictionary


def load_model(path: str, trust: bool = False) -> nn.Module:
    """The model of a checkpoint, without the data it was trained on.

    Args:
        path: checkpoint of an SRP model or of fairseq's Transformer.
        trust: unpickle arbitrary objects.

    Raises:
        UserError: missing, damaged, unsafe, or of another kind of model.
    """
    return model_of(load_checkpoint(path, "CHECKPOINT", trust), f"CHECKPOINT {path}")


def model_of(state: Dict[str, Any], what: str) -> nn.Module:
    """The model of a checkpoint's state, in evaluation mode.

    Args:
        what: option and file of the checkpoint, for messages.

    Raises:
        UserError: it is another kind of model.
    """
    try:
        model = models.build_model(srp_arguments(state), _Dictionaries(state))
        model.load_state_dict(state["model"], strict=True)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{what}: its weights are not those of an SRP model or fairseq "
            f"Transformer ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    return model.eval()


def main(arguments: Optional[List[str]] = None) -> None:
    set_up_logging(sys.stderr)
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="of an SRP model or fairseq Transformer")
    for option, default, what in (
        ("--source-length", 50, "source tokens"),
        ("--target-length", 50, "target tokens"),
        ("--beam", 1, "beam size"),
    ):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    parser.add_argument(
        "--teacher-forced",
        action="store_true",
        help="the whole target at once instead of token by token",
    )
    add_trust(parser, "CHECKPOINT")
    args = parser.parse_args(arguments)
    for name in ("source_length", "target_length", "beam"):
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(args, name)}: must be at least 1")
    if args.teacher_forced and args.beam > 1:
        raise UserError(f"--beam {args.beam}: --teacher-forced has no beam")
    with ending_quietly("nothing was counted"):
        model = load_model(args.checkpoint, args.trust_checkpoint)
        flops = count_flops(
            model, args.source_length, args.target_length, not args.teacher_forced, args.beam
        )
        how = "teacher-forced" if args.teacher_forced else f"generated, beam {args.beam}"
        print(f"source {args.source_length} tokens, target {args.target_length}, {how}")
        for part, value in flops.items():
            name = part.replace("_", " ")
            print(f"{name:<26} {value / 1e6:>12.3f} MFLOPs {value / flops['total']:>7.1%}")
