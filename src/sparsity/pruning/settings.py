"""The settings of weight-level pruning: names, defaults and what is valid."""

import dataclasses
import numbers
import re
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Tuple

from ..errors import SparsityError
from .allocation import DOMAINS
from .patterns import REDUCTIONS, parse_pattern
from .schedules import DECAYS, Schedule
from .scores import criterion_name

# other names of the same settings
ALIASES = {
    # neural-compressor 1.14
    "excluded_names": "exclude_names",
    "extra_excluded_names": "not_to_prune_names",
    "update_frequency": "update_frequency_on_step",
    # neural-compressor 2
    "pruning_type": "prune_type",
    "pruning_scope": "prune_domain",
    "pruning_op_types": "prune_layer_type",
    "pruning_frequency": "update_frequency_on_step",
    "op_names": "names",
    "excluded_op_names": "exclude_names",
    "min_sparsity_ratio_per_op": "min_sparsity_ratio_per_layer",
    "max_sparsity_ratio_per_op": "max_sparsity_ratio_per_layer",
    "reduce_type": "reduce",
}
# neural-compressor 2 names classes by a part of their names
CLASSES = {"Conv": ("Conv1d", "Conv2d", "Conv3d")}


def _integer(least: int):
    def check(value):
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        # 100.0 is a whole number too; inf and nan are none
        if not real or not value >= least or value != value // 1:
            raise SparsityError(f"give an int of {least} or more")
        return int(value)

    return check


def _fraction(value):
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 <= value < 1:
        raise SparsityError("give a number in [0, 1)")
    return float(value)


def _choice(names):
    def check(value):
        if not isinstance(value, str) or value not in names:
            raise SparsityError(f"choose from {', '.join(names)}")
        return value

    return check


def _strings(value) -> Tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(text, str) and text for text in values
    ):
        raise SparsityError("give a list of non-empty strings")
    return tuple(values)


def _expressions(value) -> Tuple[str, ...]:
    values = _strings(value)
    for text in values:
        try:
            re.compile(text)
        except re.error as error:
            raise SparsityError(
                f"{text!r} is no regular expression ({error}); escape special characters"
            ) from None
    return values


def _types(value) -> Tuple[str, ...]:
    values = _strings(value)
    if not values:
        raise SparsityError("give at least one class name, as Linear")
    return tuple(name for value in values for name in CLASSES.get(value, (value,)))


def _pattern(value) -> str:
    return parse_pattern(value).text


def _prune_type(value) -> str:
    if not isinstance(value, str):
        raise SparsityError("give a string")
    return criterion_name(value)


def _setting(default, check, help: str):
    return field(default=default, metadata={"check": check, "help": help})


@dataclass(frozen=True)
class PrunerSettings:
    """One pruner's settings, checked; a key left out takes its default.

    Raises:
        SparsityError: a value is not valid, or two do not fit each other.
    """

    start_step: int = _setting(0, _integer(0), "optimizer steps before the first prune")
    end_step: int = _setting(0, _integer(0), "of the last prune; start_step: one shot")
    target_sparsity: float = _setting(0.0, _fraction, "fraction removed in the end")
    max_sparsity_ratio_per_layer: float = _setting(
        0.98, _fraction, "no layer gives more; N:M: no more than N/M either"
    )
    update_frequency_on_step: int = _setting(1, _integer(1), "steps between two prunes")
    prune_domain: str = _setting(
        "global", _choice(DOMAINS), "the target holds for all layers together, or for each"
    )
    prune_type: str = _setting("snip_momentum", _prune_type, "which weights matter")
    sparsity_decay_type: str = _setting("exp", _choice(tuple(DECAYS)), "curve to the target")
    pattern: str = _setting("4x1", _pattern, "weights that are removed together")
    reduce: str = _setting("mean", _choice(REDUCTIONS), "score of a block from its weights' scores")
    prune_layer_type: Tuple[str, ...] = _setting(
        ("Linear", "Conv2d"), _types, "class names of layers, or of a class above"
    )
    names: Tuple[str, ...] = _setting((), _expressions, "layers to prune; empty: all")
    exclude_names: Tuple[str, ...] = _setting((), _expressions, "layers not to prune")
    not_to_prune_names: Tuple[str, ...] = _setting((), _expressions, "more of these")
    initial_sparsity: float = _setting(0.0, _fraction, "where the curve to the target begins")
    min_sparsity_ratio_per_layer: float = _setting(
        0.0, _fraction, "every layer gives as much in the end, to one block"
    )

    def __post_init__(self):
        for key in KEYS:
            object.__setattr__(self, key, _checked(key, getattr(self, key)))
        cap = min(self.max_sparsity_ratio_per_layer, parse_pattern(self.pattern).limit)
        if self.target_sparsity > cap + 1e-9:
            raise SparsityError(
                f"target_sparsity: {self.target_sparsity} is more than {cap:.6g}, the "
                f"largest that max_sparsity_ratio_per_layer "
                f"{self.max_sparsity_ratio_per_layer} and pattern {self.pattern} allow"
            )
        for key in ("initial_sparsity", "min_sparsity_ratio_per_layer"):
            if getattr(self, key) > self.target_sparsity:
                raise SparsityError(
                    f"{key}: {getattr(self, key)} is more than target_sparsity "
                    f"{self.target_sparsity}; lower it"
                )
        self.schedule  # refuses an end before the start

    @property
    def schedule(self) -> Schedule:
        """When this pruner prunes how much."""
        return Schedule(
            self.start_step,
            self.end_step,
            self.update_frequency_on_step,
            self.target_sparsity,
            self.sparsity_decay_type,
            self.initial_sparsity,
        )

    def replace(self, **settings) -> "PrunerSettings":
        """The same with some values changed, checked again."""
        return dataclasses.replace(self, **canonical(settings))


CHECKS = {key.name: key.metadata["check"] for key in dataclasses.fields(PrunerSettings)}
KEYS = tuple(CHECKS)


def _checked(key: str, value: Any, written: Optional[str] = None) -> Any:
    """``value`` in the form that settings keep it; ``written``: its key, for messages."""
    written = written or key
    try:
        return CHECKS[key](value)
    except SparsityError as error:
        text = str(error)
        if text.startswith(f"{key}: "):
            text = written + text[len(key) :]
        else:
            text = f"{written}: {value!r} is not valid; {text}"
        raise SparsityError(text) from None


@dataclass(frozen=True)
class PruningConfig:
    """All pruners of a configuration.

    Attributes:
        pruners: settings of each, global ones filled in.
        source: file that it came from, for messages.
    """

    pruners: Tuple[PrunerSettings, ...]
    source: Optional[str] = None

    def label(self, number: int) -> str:
        """The beginning of messages about the ``number``-th pruner, from 1."""
        source = f"{self.source}: " if self.source else ""
        return source + (f"pruner {number}: " if len(self.pruners) > 1 else "")

    def replace(self, **settings) -> "PruningConfig":
        """The same with values of every pruner changed, checked again."""
        return PruningConfig(
            tuple(pruner.replace(**settings) for pruner in self.pruners), self.source
        )


def canonical(settings: Mapping[str, Any]) -> Dict[str, Any]:
    """``settings`` under our names and checked one by one, without those that say nothing.

    Raises:
        SparsityError: a key is unknown or given twice, or a value is not valid.
    """
    named: Dict[str, Any] = {}
    for key, value in settings.items():
        name = ALIASES.get(key, key)
        if name not in KEYS:
            raise SparsityError(f"{key}: unknown key; choose from {', '.join([*KEYS, *ALIASES])}")
        if value is None:  # "names:" with nothing behind it
            continue
        if name in named:
            raise SparsityError(f"{key}: given twice, as {name} too; leave one out")
        named[name] = _checked(name, value, key)
    return named
