"""What this plug-in replaces inside fairseq and torch, all of it, and why.

fairseq has no option for these. Whatever an upgrade takes away is missed here, when the
plug-in is imported, and by name.
"""

import sys
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple

import torch


class Patch(NamedTuple):
    """A name in a module of fairseq's, and why it is replaced."""

    module: str
    name: str
    reason: str


PATCHES = (
    Patch(
        "fairseq.checkpoint_utils",
        "load_checkpoint_to_cpu",
        "compares checksums, refuses pickles that could run code, reads sparse files",
    ),
    Patch(
        "fairseq.checkpoint_utils",
        "load_model_ensemble_and_task",
        "compares a model's dictionaries and languages with those of the data",
    ),
    Patch(
        "fairseq.checkpoint_utils",
        "torch_persistent_save",
        "files appear complete or not at all; a full disk is said at once, not tried thrice",
    ),
    Patch(
        "fairseq.checkpoint_utils",
        "PathManager",
        "copies of the last checkpoint, as checkpoint_best.pt, appear complete or not at all",
    ),
    Patch(
        "fairseq_cli.train",
        "Trainer",
        "pruning is part of the training loop, and the command makes this class alone",
    ),
)

# Functions on which fairseq keeps the best validation so far, and for --patience how many
# were worse since; both go on from one run to the next in a process.
MEMORIES = (
    ("fairseq.checkpoint_utils", "save_checkpoint", ("best",)),
    ("fairseq_cli.train", "should_stop_early", ("best", "num_runs")),
)

_originals: Dict[Patch, Any] = {}


# What fairseq's tasks for other purposes import with it, half a second of a command's start:
# scores of classifiers, which bring pandas along.
UNUSED = ("sklearn", "sklearn.metrics")


class _Deferred(ModuleType):
    """Stands for a module or a function of it; the first call imports it."""

    def __getattr__(self, name: str) -> "_Deferred":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Deferred(f"{self.__name__}.{name}")

    def __call__(self, *args, **kwargs):
        module, _, name = self.__name__.rpartition(".")
        return getattr(import_module(module), name)(*args, **kwargs)


@contextmanager
def deferring(*names: str) -> Iterator[None]:
    """Let whoever imports these modules while inside get them when it calls their functions.

    What is imported already stays as it is.
    """
    standing = {name: _Deferred(name) for name in names if name not in sys.modules}
    sys.modules.update(standing)
    try:
        yield
    finally:
        for name, module in standing.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def install(replacements: Mapping[str, Callable[[Any], Any]], safe_globals: List[type]) -> None:
    """Replace what ``PATCHES`` lists, once in a process.

    Args:
        replacements: by name, makes the replacement of the original.
        safe_globals: classes beside torch's own that a checkpoint may hold. fairseq's fork
            lacks the list, and torch 2.6 and later read no checkpoint of its without it.

    Raises:
        ImportError: fairseq no longer has one of them.
    """
    torch.serialization.add_safe_globals(safe_globals)
    for patch in PATCHES:
        if patch not in _originals:
            _originals[patch] = original = _find(patch.module, patch.name, patch.reason)
            # a command that is run by its file has its own names
            for module in (import_module(patch.module), sys.modules.get("__main__")):
                if getattr(module, patch.name, None) is original:
                    setattr(module, patch.name, replacements[patch.name](original))


def _find(module: str, name: str, reason: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        raise ImportError(
            f"{module}.{name}: this fairseq has no such thing, which the plug-in replaces "
            f"({reason}); install the release that requirements.txt pins"
        ) from None


def memories() -> List[Callable]:
    """The functions on which fairseq remembers validations, as attributes.

    Raises:
        ImportError: fairseq no longer has one of them.
    """
    why = "it remembers the best validation"
    return [_find(module, name, why) for module, name, _ in MEMORIES]
