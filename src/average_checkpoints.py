"""Average the weights of several checkpoints of a run into one checkpoint.

    python src/average_checkpoints.py --inputs checkpoints/multi30k/base \\
        --num-epoch-checkpoints 5 --output checkpoints/multi30k/base/average.pt

The options are those of fairseq's script of the same name. --inputs names
checkpoints, or with --num-epoch-checkpoints (checkpoint<epoch>.pt) and
--num-update-checkpoints (checkpoint_<epoch>_<update>.pt) the one folder whose last
N are taken. All must be of one model: the same options, shapes and, after a cut,
the same channels; where weights were pruned, with the same ones removed.

The output has the weights and the options of the model, and no optimizer state. It
loads wherever a checkpoint does: generate.py, --pretrained-model, fairseq's tools.
As --restore-file it is a start with a new optimizer (add fairseq's
--reset-dataloader to begin with epoch 1). Its number of updates is that of the
input that was trained longest; "averaged" in it lists the inputs.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.average_checkpoints").main())

import argparse  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
from typing import Any, Dict, List, Mapping, Optional, Tuple  # noqa: E402

import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from torch import Tensor  # noqa: E402

from .checkpoint_utils import load_checkpoint  # noqa: E402
from .checkpoints.pretrained import STRUCTURE, read_model_config  # noqa: E402
from .commandline.parsing import ArgumentParser, add_trust, run_writer  # noqa: E402
from .errors import UserError  # noqa: E402
from .files import (
    atomic_write,  # noqa: E402
    check_output_file,  # noqa: E402
)

EPOCH_NAME = re.compile(r"checkpoint(\d+)\.pt")
UPDATE_NAME = re.compile(r"checkpoint_\d+_(\d+)\.pt")
ONE_RUN = "average checkpoints of one run"
# Of the state of training, what a run restored from an average needs: where it is in
# the data, and whether its pruning stage is done. Losses are not the average's.
KEPT_EXTRA_STATE = ("train_iterator", "SRPTranslationTask")

State = Dict[str, Any]


def checkpoints(number: int) -> str:
    """The number in words for messages."""
    return f"{number} checkpoint{'' if number == 1 else 's'}"


def last_checkpoints(
    folder: str, number: int, by_updates: bool, upper_bound: Optional[int] = None
) -> List[str]:
    """The last ``number`` checkpoints in a folder, the latest first.

    Args:
        by_updates: those saved between epochs, ordered by updates, instead of
            those saved after epochs.
        upper_bound: the last epoch (or number of updates) to take.

    Raises:
        UserError: there are fewer.
    """
    pattern = UPDATE_NAME if by_updates else EPOCH_NAME
    found = [(int(m[1]), m[0]) for m in map(pattern.fullmatch, os.listdir(folder)) if m]
    found = [f for f in found if upper_bound is None or f[0] <= upper_bound]
    if len(found) < number:
        unit, form = (
            ("update", "checkpoint_<epoch>_<update>.pt")
            if by_updates
            else ("epoch", "checkpoint<epoch>.pt")
        )
        limit = "" if upper_bound is None else f" up to {unit} {upper_bound}"
        names = [name for _, name in sorted(found)]
        if len(names) > 6:
            names[3:-2] = ["..."]
        raise UserError(
            f"--num-{unit}-checkpoints {number}: {folder} has {checkpoints(len(found))} "
            f"{form}{limit} ({', '.join(names) or 'none'}); ask for at most that many, "
            "or train "
            + ("with --save-interval-updates" if by_updates else "without --no-epoch-checkpoints")
        )
    return [os.path.join(folder, name) for _, name in sorted(found)[: -number - 1 : -1]]


def chosen_inputs(args) -> List[str]:
    """The files that the command line asks for.

    Raises:
        UserError: options that don't go together, too few or missing files, or an
            output that can't be written or is one of the inputs.
    """
    by_updates = args.num_update_checkpoints is not None
    number = args.num_update_checkpoints if by_updates else args.num_epoch_checkpoints
    option = f"--num-{'update' if by_updates else 'epoch'}-checkpoints"
    paths = args.inputs
    if number is None:
        if args.checkpoint_upper_bound is not None:
            raise UserError(
                f"--checkpoint-upper-bound {args.checkpoint_upper_bound}: needs "
                "--num-epoch-checkpoints or --num-update-checkpoints"
            )
        for path in paths:
            if os.path.isdir(path):
                raise UserError(
                    f"--inputs {path}: is a folder; say how many of its checkpoints with "
                    "--num-epoch-checkpoints or --num-update-checkpoints, or name files"
                )
    else:
        if number < 1:
            raise UserError(f"{option} {number}: must be at least 1")
        if len(paths) != 1 or not os.path.isdir(paths[0]):
            raise UserError(
                f"{option} {number}: needs one folder as --inputs, not {' '.join(paths)}"
            )
        paths = last_checkpoints(paths[0], number, by_updates, args.checkpoint_upper_bound)
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"--inputs {path}: no such file; give checkpoints (.pt)")
    check_output_file(args.output, *paths, named="one of the inputs")
    return paths


def ties(weights: Mapping[str, Tensor]) -> Dict[str, str]:
    """Every name with the first name of the same tensor (itself where it is not tied)."""
    first: Dict[Any, str] = {}
    found = {}
    for name, value in weights.items():
        place = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
        found[name] = first.setdefault(place, name)
    return found


def check_usable(path: str, state: State) -> None:
    """Refuse weights of which no average makes sense.

    Raises:
        UserError: NaN or infinite numbers, or channels that are shrinking.
    """
    for name, value in state["model"].items():
        if not torch.is_tensor(value):
            kind = type(value).__name__
            raise UserError(f"--inputs {path}: {name} is a {kind} and no tensor")
        if not torch.isfinite(value).all():
            raise UserError(
                f"--inputs {path}: {name} holds NaN or infinite numbers; its training "
                "diverged, leave it out"
            )
        if name.endswith(".connectivity") and (value != 1).any():
            raise UserError(
                f"--inputs {path}: a pruning stage is under way, channels of "
                f"{name[: -len('.connectivity')]} are shrinking; take checkpoints from "
                "after the cut"
            )


class RunningSum:
    """Sum of the weights of checkpoints, in float64.

    It holds one float64 number per weight, and the latest training state without
    weights. A float64 sum of float32 numbers is exact but for the rarest of cases,
    so the average is the true mean, rounded once.
    """

    def __init__(self):
        self.paths: List[str] = []
        self.updates: List[int] = []
        self.head: State = {}  # of the input with most updates, without weights
        self._config: Dict[str, str] = {}
        self._dtypes: Dict[str, torch.dtype] = {}
        self._ties: Dict[str, str] = {}
        self._sums: Dict[str, Tensor] = {}
        self._removed: Dict[str, Tuple[str, Tensor]] = {}  # the input with most, all lost ones

    def add(self, path: str, state: State) -> None:
        """Add a checkpoint's weights.

        Raises:
            UserError: it is not the model that the others are, or can't be averaged.
        """
        check_usable(path, state)
        weights, config = state["model"], _config(state)
        if not self.paths:
            self._config, self._ties = config, ties(weights)
            self._dtypes = {name: value.dtype for name, value in weights.items()}
        else:
            self._check_same(path, weights, config)
        for name, value in weights.items():
            if self._ties[name] != name:
                continue
            if not value.is_floating_point():
                self._sums[name] = value.clone()
            elif name in self._sums:
                self._sums[name] += value
            else:
                self._sums[name] = value.to(torch.float64, copy=True)
        for name, lost in removed_weights(state).items():
            where, before = self._removed.get(name, (path, lost))
            most = path if lost.sum() >= before.sum() else where
            self._removed[name] = most, lost | before
        updates = int(state["optimizer_history"][-1]["num_updates"])
        if not self.paths or updates > max(self.updates):
            self.head = without_weights(state)
        self.paths.append(path)
        self.updates.append(updates)

    def _check_same(self, path: str, weights, config) -> None:
        first = self.paths[0]

        def refuse(difference: str, advice: str = ONE_RUN):
            raise UserError(f"--inputs {path}: {difference}; {advice}")

        def compare(option: str):
            if option in config and config[option] != self._config.get(option):
                flag = f"--{option.replace('_', '-')}"
                its = self._config.get(option)
                refuse(f"has {flag} {config[option]}, {first} has {its}")

        for option in STRUCTURE:
            compare(option)
        for name, value in weights.items():
            if not name.endswith(".channel_ids") or name not in self._ties:
                continue
            expected = self._sums[self._ties[name]]
            if not torch.equal(value, expected):
                refuse(
                    f"was cut to other channels than {first}: "
                    f"{name[: -len('.channel_ids')]} (here {len(value)} of them, there "
                    f"{len(expected)})",
                    "average checkpoints from after the same cut",
                )
        for name in (*weights, *self._dtypes):
            if name not in self._dtypes or name not in weights:
                refuse(f"{'has' if name in weights else 'lacks'} {name}, unlike {first}")
        compare("weighted_layernorm")  # after a cut it matters
        for name, value in weights.items():
            expected, dtype = self._sums[self._ties[name]], self._dtypes[name]
            if value.shape != expected.shape:
                shapes = list(value.shape), list(expected.shape)
                refuse(f"{name} is {shapes[0]}, {shapes[1]} in {first}")
            if value.dtype != dtype:
                refuse(f"{name} is {value.dtype}, {dtype} in {first}")
            if not value.is_floating_point() and not torch.equal(value, expected):
                refuse(f"{name} has other numbers than in {first}, and is no weight")
            tied_to = weights[self._ties[name]]
            if tied_to is not value and not torch.equal(tied_to, value):
                refuse(f"{name} is not {self._ties[name]}, as it is in {first}")

    def average(self) -> State:
        """The mean as a checkpoint: weights in their own dtype, ties kept.

        Raises:
            UserError: an input lost weights (--sparsity-config) that another still has.
        """
        for name, (path, lost) in self._removed.items():
            if self._sums[self._ties[name]][lost].any():
                raise UserError(
                    f"--inputs {path}: weights of {name} were removed there that other inputs "
                    "have; average checkpoints from after the last pruning"
                )
        means = {}
        for name, total in self._sums.items():
            if total.is_floating_point():
                total = (total / len(self.paths)).to(self._dtypes[name])
            means[name] = total
        return {
            **self.head,
            "model": {name: means[tied_to] for name, tied_to in self._ties.items()},
            "averaged": {"inputs": self.paths, "num_updates": self.updates},
        }


def removed_weights(state: State) -> Dict[str, Tensor]:
    """Where --sparsity-config has removed weights of the checkpoint's model, by their name."""
    parts = state.get("extra_state") or {}
    task = parts.get("SRPTranslationTask") or {}
    pruners = task.get("weight_pruning", {}).get("pruners", ())
    masks = [mask for pruner in pruners for mask in pruner["masks"].items()]
    return {f"{layer}.weight": ~kept for layer, kept in masks}


def without_weights(state: State) -> State:
    """What an average takes from a checkpoint beside the weights."""
    left_out = ("model", "last_optimizer_state")
    head = {name: value for name, value in state.items() if name not in left_out}
    # a plain container, as fairseq saves it: omegaconf's own classes would be a pickle
    head["cfg"] = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
    extra = state.get("extra_state") or {}
    head["extra_state"] = {k: extra[k] for k in KEPT_EXTRA_STATE if k in extra}
    return head


def _config(state: State) -> Dict[str, str]:
    """The options of an encoder-decoder Transformer that decide what it computes."""
    if "encoder.embed_tokens.weight" not in state["model"]:
        return {}
    config = read_model_config(state)
    names = (*STRUCTURE, "weighted_layernorm")
    return {name: str(getattr(config, name)) for name in names}


def average_checkpoints(paths: List[str], trust: bool = False) -> State:
    """The checkpoint whose weights are the mean of those of ``paths``.

    One of them is in memory at a time, beside the sum.

    Args:
        trust: unpickle arbitrary objects in them (``--trust-checkpoint``).

    Raises:
        UserError: a file that can't be read, or files that are not one model.
    """
    total = RunningSum()
    for path in paths:
        total.add(path, load_checkpoint(path, "--inputs", trust))
    return total.average()


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--inputs",
        required=True,
        nargs="+",
        metavar="PATH",
        help="checkpoints, or a folder",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the average")
    numbers = parser.add_mutually_exclusive_group()
    for unit in ("epoch", "update"):
        numbers.add_argument(
            f"--num-{unit}-checkpoints",
            type=int,
            metavar="N",
            help=f"take the last N checkpoints by {unit} of the folder",
        )
    parser.add_argument(
        "--checkpoint-upper-bound",
        type=int,
        metavar="N",
        help="the last epoch (or number of updates) to take",
    )
    add_trust(parser, "--inputs")
    return parser


def run(args: argparse.Namespace) -> None:
    """Average, write, report.

    Raises:
        UserError: a mistake in an option or file; nothing is written.
    """
    paths = chosen_inputs(args)
    state = average_checkpoints(paths, args.trust_checkpoint)
    with atomic_write(args.output, "wb") as stream:
        torch.save(state, stream)
    updates = sorted(state["averaged"]["num_updates"])
    print(
        f"averaged {checkpoints(len(paths))}, {updates[0]} to {updates[-1]} updates "
        f"({', '.join(paths)}) into {args.output}"
    )


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    run_writer(get_parser(), run, arguments)
