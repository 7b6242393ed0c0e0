"""compress.py's options, and what is refused of them alone."""

import argparse
import os
from typing import List, Optional

from fairseq import utils

from ..checks.speed import ENGINES, check_engine, check_speed_up
from ..checks.speed import QUANTIZATIONS as TIMED
from ..commandline.parsing import ArgumentParser, add_trust
from ..deployment import text
from ..deployment.model import QUANTIZATIONS
from ..errors import UserError
from ..files import check_output_folder
from ..planning.options import add_baseline

RAW = ("train", "valid", "test")
LAYERS = ("--keep-encoder-layers", "--keep-decoder-layers")


def get_parser(description: Optional[str] = None) -> ArgumentParser:
    """The options of compress.py."""
    parser = ArgumentParser(
        description=description,
        usage="%(prog)s DATA --path CHECKPOINT --output DIR --speed-up S | --compression-rate R | "
        "--megabytes M [options] [-- options of fairseq's training]",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="folder of binarized data; with raw text (--train, --valid, --test) of the model's "
        "dictionaries, dict.LANG.txt",
    )
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="the trained model")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder of all that is made, a step each"
    )
    for side in ("source", "target"):
        parser.add_argument(
            f"-{side[0]}", f"--{side}-lang", help=f"{side} language (default: as in DATA)"
        )
    group = parser.add_argument_group("how fast or small, one of these")
    group.add_argument(
        "--speed-up",
        type=float,
        metavar="S",
        help="times as fast as the uncut model in the same engine, measured on this machine: "
        "layers and widths that keep most parameters are chosen, see plan.py",
    )
    add_baseline(group)
    group.add_argument(
        "--compression-rate",
        type=float,
        metavar="R",
        help="share of the uncut model's parameters to keep, as 0.2",
    )
    group.add_argument(
        "--megabytes",
        type=float,
        metavar="M",
        help="size of the exported model's folder (of the weights in float32 without an export)",
    )
    group = parser.add_argument_group("and how")
    for side in ("encoder", "decoder"):
        group.add_argument(
            f"--keep-{side}-layers",
            type=int,
            metavar="N",
            help=f"layers of the {side} to keep, with --compression-rate or alone (default: all)",
        )
    group.add_argument(
        "--speed-engine",
        choices=ENGINES,
        metavar="ENGINE",
        help=f"the engine that speed and size are of: {', '.join(ENGINES)} (default: "
        "CTranslate2 with float32 or int8 of --quantization, where it is installed)",
    )
    group = parser.add_argument_group("vocabulary and text")
    group.add_argument(
        "--max-types",
        type=int,
        metavar="N",
        help="trim the vocabulary to so many types, see trim_vocabulary.py; text is split anew "
        "with --bpe-codes or --sentencepiece-model",
    )
    for split in RAW:
        group.add_argument(
            f"--{split}",
            metavar="PREFIX",
            help=f"raw {split} data in place of binarized ones: PREFIX.LANG[.gz] of both "
            "languages; text is split as the next options say",
        )
    text.add_options(group)
    group = parser.add_argument_group("training")
    group.add_argument(
        "--source-text",
        nargs="+",
        default=[],
        metavar="FILE",
        help="further source sentences for the model to translate, plain or gzipped: raw text with "
        "the options of text above, else tokens; see distill_data.py",
    )
    group.add_argument(
        "--teacher",
        metavar="FILE[:FILE...]",
        help="what translates the training data in place of the model, several as an ensemble",
    )
    group.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="passes over the training data in all, a third of them while pruning (default: 30)",
    )
    group.add_argument(
        "--quick", action="store_true", help="a smoke run: every step, hardly any training"
    )
    group = parser.add_argument_group("test and deployment")
    group.add_argument(
        "--gen-subset", default="test", metavar="SUBSET", help="set to test with (default: test)"
    )
    group.add_argument(
        "--reference",
        metavar="FILE",
        help="its raw references, one a line (default: raw.SUBSET.LANG in DATA, else its target "
        "side, detokenized)",
    )
    group.add_argument("--beam", type=int, default=5, metavar="N", help="beam size (default: 5)")
    group.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="int8",
        help="of the exported model (default: int8)",
    )
    group.add_argument(
        "--no-vocabulary-map", action="store_true", help="export without a vocabulary map"
    )
    group = parser.add_argument_group("running")
    group.add_argument(
        "--dry-run", action="store_true", help="measure, and print what would be done"
    )
    add_trust(group, "--path")
    return parser


def parse(arguments: List[str], description: Optional[str] = None) -> argparse.Namespace:
    """Options of compress.py, those of trainings after ``--`` as ``training``."""
    own, training = list(arguments), []
    if "--" in own:
        place = own.index("--")
        own, training = own[:place], own[place + 1 :]
    args = get_parser(description).parse_args(own)
    args.training = training
    return args


def teachers(args: argparse.Namespace) -> List[str]:
    """Checkpoints of ``--teacher``."""
    return utils.split_paths(args.teacher) if args.teacher else []


def check(args: argparse.Namespace) -> None:
    """Refuse what the command line alone rules out.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    targets = {
        "--speed-up": args.speed_up,
        "--compression-rate": args.compression_rate,
        "--megabytes": args.megabytes,
    }
    given = [option for option, value in targets.items() if value is not None]
    kept = args.keep_encoder_layers, args.keep_decoder_layers
    layers = [o for o, n in zip(LAYERS, kept) if n is not None]
    if len(given) > 1:
        raise UserError(f"{' '.join(given)}: exclude each other; give one of them")
    if not given and not layers:
        raise UserError(f"no target; give one of {', '.join(targets)}: how fast or how small")
    if layers and given and given != ["--compression-rate"]:
        raise UserError(
            f"{layers[0]}: {given[0]} chooses layers by itself; leave it out, or give "
            "--compression-rate instead"
        )
    check_speed_up(args)
    if args.megabytes is not None and not 0 < args.megabytes < 1e6:
        raise UserError(f"--megabytes {args.megabytes:g}: must be above 0")
    if args.speed_engine is not None:
        check_engine(args.speed_engine, "--speed-engine")
    measured = args.speed_up is not None or args.megabytes is not None
    if measured and args.max_types is not None:
        raise UserError(
            f"--max-types {args.max_types}: {given[0]} is measured before the vocabulary is "
            "trimmed; give --compression-rate instead"
        )
    if measured and not args.speed_engine and args.quantization not in TIMED.values():
        raise UserError(
            f"--quantization {args.quantization}: speed and size are measured with "
            f"{' or '.join(TIMED.values())}; add --speed-engine, one of {', '.join(ENGINES)}"
        )
    for option, value, least in (
        *((option, n, 1) for option, n in zip(LAYERS, kept)),
        ("--max-types", args.max_types, 1),
        ("--epochs", args.epochs, 2),
        ("--beam", args.beam, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{option} {value}: must be at least {least}")
    if args.quick and args.epochs:
        raise UserError(f"--epochs {args.epochs}: has no part in --quick; leave one of them out")
    rate = args.compression_rate
    if rate is not None and not 0 < rate < 1:
        raise UserError(f"--compression-rate {rate:g}: must be in (0, 1), the share to keep")
    text.check(args)
    check_raw(args)
    files = [("--source-text", path) for path in args.source_text]
    files += [("--reference", args.reference)] if args.reference is not None else []
    files += [("--teacher", path) for path in teachers(args)]
    for option, path in files:
        if not os.path.isfile(path):
            raise UserError(f"{option} {path}: no such file")
    check_output_folder(args.output, "--output")


def check_raw(args: argparse.Namespace) -> None:
    """Refuse raw text that is incomplete, or without what splits it.

    Raises:
        UserError: names the option and what it needs.
    """
    given = [f"--{split}" for split in RAW if getattr(args, split)]
    if not given:
        return
    missing = [f"--{split}" for split in RAW if f"--{split}" not in given]
    if missing:
        raise UserError(f"{given[0]}: raw text needs {' and '.join(missing)} too")
    if not (args.bpe_codes or args.sentencepiece_model):
        raise UserError(
            f"{given[0]} {getattr(args, given[0][2:])}: add --bpe-codes or --sentencepiece-model, "
            "which split the text that the model was trained with"
        )
    if args.sentencepiece_model and args.tokenizer:
        raise UserError(
            f"--tokenizer {args.tokenizer}: raw text is split by --sentencepiece-model without "
            "one; leave it out, or give binarized data"
        )
    if args.gen_subset != "test":
        raise UserError(f"--gen-subset {args.gen_subset}: --test is the set; leave it out")
