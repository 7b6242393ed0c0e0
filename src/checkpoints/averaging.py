"""The mean of several checkpoints of a run, as a checkpoint."""

import os
import re
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ..checkpoint_utils import load_checkpoint
from ..connectivity.groups import shrinking_in
from ..errors import UserError
from ..sparsity import parameter_name
from . import dictionary_record
from .pretrained import STRUCTURE, read_model_config

EPOCH_NAME = re.compile(r"checkpoint(\d+)\.pt")
UPDATE_NAME = re.compile(r"checkpoint_\d+_(\d+)\.pt")
ONE_RUN = "average checkpoints of one run"
# Of the state of training, what a run restored from an average needs: where it is in
# the data, and whether its pruning stage is done. Losses are not the average's.
KEPT_EXTRA_STATE = ("train_iterator", "SRPTranslationTask", dictionary_record.RECORD)

State = Dict[str, Any]


def number_of(number: int) -> str:
    """A number of checkpoints in words, for messages."""
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
            f"--num-{unit}-checkpoints {number}: {folder} has {number_of(len(found))} "
            f"{form}{limit} ({', '.join(names) or 'none'}); ask for at most that many, "
            "or train "
            + ("with --save-interval-updates" if by_updates else "without --no-epoch-checkpoints")
        )
    return [os.path.join(folder, name) for _, name in sorted(found)[: -number - 1 : -1]]


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
    group = shrinking_in(state["model"])
    if group is not None:
        raise UserError(
            f"--inputs {path}: a pruning stage is under way, channels of {group} are shrinking; "
            "take checkpoints from after the cut"
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
            if not dictionary_record.equal(self.head, state):
                raise UserError(
                    f"--inputs {path}: was trained with other dictionaries or languages than "
                    f"{self.paths[0]}; {ONE_RUN}"
                )
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
    return {parameter_name(layer): ~kept for layer, kept in masks}


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
