"""Options of the commands that translate a set: fairseq-generate's and this plug-in's."""

import argparse

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY
from hydra.errors import MissingConfigException

from ..commandline import parsing as cli
from ..deployment import engine as ctranslate2_engine
from ..errors import UserError


def _known_arch(name: str) -> str:
    if name not in ARCH_MODEL_REGISTRY:
        known = ", ".join(n for n in ARCH_MODEL_REGISTRY if n.startswith("srp"))
        raise argparse.ArgumentTypeError(f"{name} is unknown; SRP's are {known}")
    return name


def get_parser(description: str) -> argparse.ArgumentParser:
    """fairseq-generate's options and what this plug-in adds to them.

    Args:
        description: of the command, shown as it is written.
    """
    parser = cli.fairseq_parser(options.get_generation_parser)
    # a worker process costs seconds when it ends, and batches are made in no time
    parser.set_defaults(required_batch_size_multiple=1, num_workers=0)
    parser.description = description
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    group = parser.add_argument_group("checks against the checkpoint")
    group.add_argument(
        "--arch",
        "-a",
        metavar="ARCH",
        type=_known_arch,
        default=argparse.SUPPRESS,
        help="architecture that the checkpoint is expected to have",
    )
    group.add_argument(
        "--weighted-layernorm",
        action="store_true",
        help="expect weighted layer normalization; a cut model keeps its own kind",
    )
    cli.add_trust(group, "--path and --lm-path")
    ctranslate2_engine.add_options(parser)
    group = parser.add_argument_group("BLEU and report")
    group.add_argument(
        "--detok",
        choices=("moses", "none"),
        help="how the output becomes text for BLEU (default: moses; none with --tokenizer, "
        "which does it already)",
    )
    group.add_argument(
        "--reference",
        metavar="FILE",
        help="raw references, one a line in the order of the test set (default: the "
        "data's target side, detokenized)",
    )
    group.add_argument(
        "--sacrebleu-lowercase", action="store_true", help="BLEU of lower-cased text"
    )
    group.add_argument(
        "--tokenized-bleu",
        action="store_true",
        help="also BLEU of the tokens against the data's target side",
    )
    group.add_argument(
        "--report",
        metavar="FILE.json",
        help="write BLEU, parameters, FLOPs, bytes and speed to this file",
    )
    for side in ("source", "target"):
        group.add_argument(
            f"--flops-{side}-length",
            type=int,
            metavar="N",
            help=f"{side} tokens of a sentence for FLOPs (default: the mean of those translated)",
        )
    return parser


def configure(args):
    """fairseq's configuration of the parsed options.

    Raises:
        UserError: the tokenizer's languages are missing, which it can't be made without,
            or fairseq has no configuration of --bpe.
    """
    if args.tokenizer == "moses" and None in (args.source_lang, args.target_lang):
        raise UserError("--tokenizer moses: needs --source-lang and --target-lang")
    try:
        cfg = convert_namespace_to_omegaconf(args)
    except MissingConfigException:  # a --bpe or --tokenizer that fairseq can't configure
        raise UserError(
            f"--bpe {args.bpe}: is not among those that fairseq-generate can set up; give "
            "another, or leave it out"
        ) from None
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        cfg.dataset.max_tokens = 12000  # as fairseq-generate does later
    return cfg
