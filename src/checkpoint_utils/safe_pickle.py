"""Pickles of checkpoints, read without running their code, whichever release wrote them."""

import argparse
import os
import pickle
import re
import warnings
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Tuple

import numpy as np
import torch

_NUMPY = (np._core.multiarray._reconstruct, np._core.multiarray.scalar)
# What fairseq's checkpoints hold beside tensors and plain containers: the
# command line, and (with --eval-bleu) numpy counts in the metrics.
SAFE_GLOBALS = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *_NUMPY,
    *((function, f"numpy.core.multiarray.{function.__name__}") for function in _NUMPY),
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i4", "i8", "?")),
]
# Names of classes that some releases of fairseq have pickled with their options and meters.
# None of them is imported: an object without code stands for each.
_OPTIONS = re.compile(
    r"(omegaconf|fairseq|enum|typing)\.[\w.]+|_?operator\.getitem|collections\.defaultdict"
    r"|builtins\.(bool|bytes|dict|float|int|list|object|str|tuple)|pathlib\.\w+"
)
TRUST = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch's own name for it


@contextmanager
def trusted_pickle(trust: bool) -> Iterator[None]:
    """Let ``torch.load`` unpickle anything while inside, if the user opted in."""
    if not trust:
        yield
        return
    before = os.environ.get(TRUST)
    os.environ[TRUST] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRUST]
        else:
            os.environ[TRUST] = before


def refused(error: pickle.UnpicklingError) -> str:
    """The name of what torch's restricted unpickler refused; empty if there is none."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if not found:
        return ""
    return found[1] if "." in found[1] else f"builtins.{found[1]}"


class _Inert:
    """Stands for an object of fairseq's or omegaconf's in a pickle; it has no code.

    Attributes:
        args: what the object was to be made of.
    """

    def __new__(cls, *args, **kwargs):
        instance = super().__new__(cls)
        instance.args = args
        return instance

    def __init__(self, *args, **kwargs):
        pass


def load(path: str, **options) -> Any:
    """``torch.load`` on the CPU, with options of other releases as plain containers.

    Raises:
        pickle.UnpicklingError: the file holds anything that could run code.
    """
    stand_ins: Dict[str, Tuple[type, str]] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f"Environment variable {TRUST}")
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        while True:
            try:
                with torch.serialization.safe_globals(list(stand_ins.values())):
                    state = torch.load(path, map_location="cpu", **options)
                return _plain(state) if stand_ins else state
            except pickle.UnpicklingError as error:
                name = refused(error)
                if name in stand_ins or not _OPTIONS.fullmatch(name):
                    raise
                # one class each: torch looks them up by their values as well
                stand_ins[name] = type(name, (_Inert,), {}), name


def _plain(state: Any) -> Any:
    """A state without stand-ins: omegaconf's containers and nodes as what they hold."""
    done: Dict[int, Tuple[Any, Any]] = {}  # with the object itself, whose number stays its own

    def plain(value: Any) -> Any:
        if id(value) not in done:
            done[id(value)] = value, made(value)
        return done[id(value)][1]

    def made(value: Any) -> Any:
        if isinstance(value, _Inert):
            held = vars(value)
            for name in ("_content", "_val"):
                if name in held:
                    return plain(held[name])
            return plain(value.args[0]) if value.args else None  # an entry of an enumeration
        if isinstance(value, type) and issubclass(value, _Inert):
            return value.__name__
        if isinstance(value, argparse.Namespace):
            return argparse.Namespace(**plain(vars(value)))
        if isinstance(value, dict):
            for key in list(value):
                value[key] = plain(value[key])
            return value
        if type(value) in (list, tuple):
            return type(value)(map(plain, value))
        return value

    return plain(state)
