"""The entry points that train: what is refused before fairseq reads the options, and it."""

import argparse
import sys
from importlib.util import find_spec
from typing import Callable, Collection, Optional

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq_cli import train as fairseq_train

from ..checks.values import SEED, AtLeast, Needs, Options, Refused, Unused, check
from ..commandline.help import show_help
from ..commandline.parsing import ending_quietly, fairseq_parser, parse, set_up_logging
from ..errors import UserError
from ..files import check_output_file, make_output_folder
from .inherited_options import with_inherited


def _positive(text: Optional[str]) -> bool:
    """Whether an option's text is a number above 0.

    It is text as fairseq would have it from --max-update where that is given in a file.
    """
    try:
        return float(text or 0) > 0
    except ValueError:
        return False


# What no training can do without, and what fairseq takes in vain; it ends in a traceback.
# ``typed`` are the options on the command line.
TRAINING = (
    Refused("max_tokens", lambda o: o.max_tokens is None and o.batch_size is None, bare=True)
    | "missing; give the tokens of a batch, as 4096, or its sentences as --batch-size",
    Refused("optimizer", lambda o: o.optimizer is None, bare=True)
    | "missing; give srp_adam, or another one of fairseq's",
    Refused("lr", lambda o: o.optimizer == "srp_adam" and "--lr" not in o.typed, bare=True)
    | "missing, and fairseq's default of {o.lr[0]:g} is for plain SGD; give one for --optimizer "
    "srp_adam, as 5e-4",
    Refused(
        "total_num_update",
        lambda o: o.lr_scheduler == "polynomial_decay" and not _positive(o.total_num_update),
    )
    | "--lr-scheduler polynomial_decay needs the updates after which the rate is zero, those of "
    "all epochs",
    Refused("warmup_updates", lambda o: o.lr_scheduler == "inverse_sqrt" and o.warmup_updates < 1)
    | "must be at least 1 for --lr-scheduler inverse_sqrt, whose rate falls from there on",
    # fairseq ends without training then, with status 0
    Needs("write_checkpoints_asynchronously", lambda o: find_spec("iopath"))
    | "needs package iopath; leave it out",
    SEED,
    AtLeast(1, "distributed_world_size") | "must be at least 1, the number of processes",
    Unused("pipeline_model_parallel") | "no model of translation is divided; leave it out",
)


def check_training(args, typed: Collection[str]) -> None:
    """Refuse a training that can't begin with a UserError, and make its folder.

    Args:
        args: the parsed options.
        typed: names of the options on the command line.
    """
    check(TRAINING, Options(args, typed=typed))
    make_output_folder(args.save_dir, "--save-dir")
    if args.log_file is not None:  # may lie in that folder
        check_output_file(args.log_file, option="--log-file")


def train(description: str, check_entry: Callable = lambda args: None) -> None:
    """Run fairseq's training with this plug-in.

    Args:
        description: of the entry point, for its help.
        check_entry: completes and checks the parsed options of one entry point.
    """
    set_up_logging()
    parser = fairseq_parser(options.get_training_parser)
    parser.description = description
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "%(prog)s DATA --save-dir DIR [options]"
    if {"-h", "--help"} & set(sys.argv[1:]):
        show_help(parser, training=True)
        return
    arguments = with_inherited(sys.argv[1:])
    given = {argument.partition("=")[0] for argument in arguments}
    if not given & {"-a", "--arch"}:
        raise UserError(
            "--arch: missing; give the model's, as srp_multi30k_de_en, or --pretrained-model, "
            "a checkpoint that knows it"
        )
    half = {option.replace("memory-efficient-", "") for option in given}
    half &= {"--fp16", "--bf16", "--amp"}
    if len(half) > 1:
        raise UserError(f"{' '.join(sorted(half))}: exclude each other; give one of them")
    args = parse(parser, arguments)
    check_entry(args)
    check_training(args, given)
    if args.bf16:
        args.tpu = False  # fairseq takes --bf16 for a TPU
    cfg = convert_namespace_to_omegaconf(args)
    left = f"the same command goes on from the last checkpoint in {cfg.checkpoint.save_dir}"
    with ending_quietly(left):
        distributed_utils.call_main(cfg, fairseq_train.main)
