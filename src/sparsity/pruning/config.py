"""Configuration of weight-level pruning: the Pytorch Pruner's YAML, fully checked."""

import dataclasses
import numbers
import os
import re
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import yaml

from ..errors import SparsityError
from .allocation import DOMAINS
from .patterns import REDUCTIONS, parse_pattern
from .schedules import DECAYS, Schedule
from .scores import criterion_name

SECTION = ("pruning", "approach", "weight_compression_pytorch")
FRAMEWORKS = ("pytorch", "pytorch_fx")
# names of neural-compressor 1.14.1
ALIASES = {
    "excluded_names": "exclude_names",
    "extra_excluded_names": "not_to_prune_names",
}


def _integer(least: int):
    def check(value):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise SparsityError(f"give an int of {least} or more")
        if value < least:
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
    return values


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
        )

    def replace(self, **settings) -> "PrunerSettings":
        """The same with some values changed, checked again."""
        return dataclasses.replace(self, **_canonical(settings))


CHECKS = {key.name: key.metadata["check"] for key in dataclasses.fields(PrunerSettings)}
KEYS = tuple(CHECKS)


def _checked(key: str, value: Any) -> Any:
    """``value`` in the form that settings keep it."""
    try:
        return CHECKS[key](value)
    except SparsityError as error:
        text = str(error)
        if not text.startswith(f"{key}: "):
            text = f"{key}: {value!r} is not valid; {text}"
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
        """How messages begin that are about the ``number``-th pruner, from 1."""
        source = f"{self.source}: " if self.source else ""
        return source + (f"pruner {number}: " if len(self.pruners) > 1 else "")

    def replace(self, **settings) -> "PruningConfig":
        """The same with values of every pruner changed, checked again."""
        return PruningConfig(
            tuple(pruner.replace(**settings) for pruner in self.pruners), self.source
        )


def _canonical(settings: Mapping[str, Any]) -> Dict[str, Any]:
    """``settings`` under our names, without those that say nothing."""
    found = {}
    for key, value in settings.items():
        name = ALIASES.get(key, key)
        if name not in KEYS:
            raise SparsityError(f"{key}: unknown key; choose from {', '.join([*KEYS, *ALIASES])}")
        if value is None:  # "names:" with nothing behind it
            continue
        if name in found:
            raise SparsityError(f"{key}: given twice, as {name} too; leave one out")
        found[name] = value
    return found


class _Loader(yaml.SafeLoader):
    """Safe, with ``!Pruner``, no key twice, and 2:4 and 1e-3 as people mean them."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if not pair[0].endswith((":int", ":float"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue  # refused below
                if key.value in seen:
                    raise SparsityError(
                        f"{key.value}: given twice (line {key.start_mark.line + 1}); leave one out"
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _PrunerNode(dict):
    """What stood behind ``!Pruner``."""


def _construct_pruner(loader, node):
    if isinstance(node, yaml.ScalarNode) and not node.value:
        return _PrunerNode()
    if not isinstance(node, yaml.MappingNode):
        raise SparsityError("!Pruner: give keys and values behind it")
    return _PrunerNode(loader.construct_mapping(node, deep=True))


# YAML 1.1 reads 2:4 as the number 124 in base 60, and 1e-3 as text
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)
# nor is 010 eight
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node))
)
_Loader.add_constructor("!Pruner", _construct_pruner)


def load_config(source: Union[str, os.PathLike, Mapping, PruningConfig]) -> PruningConfig:
    """Read a configuration.

    Args:
        source: path of a YAML file in the form of the Pytorch Pruner's README; what
            such a file holds, as a mapping; or its innermost part, a mapping of
            global settings and ``pruners``, a list of mappings. A pruner's own value
            of a key wins over the global one, whatever the key.

    Raises:
        SparsityError: the file cannot be read; a key is unknown or a value is not
            valid. The message names file and key.
    """
    if isinstance(source, PruningConfig):
        return source
    if isinstance(source, Mapping):
        return _read(source, None)
    if not isinstance(source, (str, os.PathLike)):
        raise SparsityError(
            f"configuration: a {type(source).__name__} is none; give the path of a YAML "
            "file, or a mapping with a list of pruners"
        )
    path = os.fspath(source)
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _Loader)
    except (OSError, UnicodeDecodeError, yaml.reader.ReaderError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise SparsityError(f"{path}: cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise SparsityError(f"{path}: is no valid YAML: {text}") from None
    except (ValueError, RecursionError) as error:
        raise SparsityError(f"{path}: {error}") from None
    if not isinstance(content, Mapping):
        raise SparsityError(f"{path}: holds no settings; docs/sparsity.md has an example")
    try:
        return _read(content, path)
    except SparsityError as error:
        raise SparsityError(f"{path}: {error}") from None


def _read(content: Mapping, source: Optional[str]) -> PruningConfig:
    if "pruning" in content:
        content = _unwrap(content)
    globals_ = _canonical({k: v for k, v in content.items() if k != "pruners"})
    for key, value in globals_.items():  # two that clash may yet be set apart locally
        _checked(key, value)
    pruners = content.get("pruners")
    if not isinstance(pruners, (list, tuple)) or not pruners:
        raise SparsityError("pruners: missing or empty; give a list of at least one !Pruner")
    found = []
    for number, local in enumerate(pruners, start=1):
        if not isinstance(local, Mapping):
            raise SparsityError(f"pruners: {local!r} is no pruner; write !Pruner and its keys")
        where = f"pruner {number}: " if len(pruners) > 1 else ""
        try:
            found.append(PrunerSettings(**{**globals_, **_canonical(local)}))
        except SparsityError as error:
            raise SparsityError(f"{where}{error}") from None
    return PruningConfig(tuple(found), source)


def _unwrap(content: Mapping) -> Mapping:
    """The section of pruning in a whole file, whose other sections are checked too."""
    _known(content, "", ("version", "model", SECTION[0]))
    version = content.get("version", 1.0)
    if isinstance(version, bool) or not isinstance(version, numbers.Real):
        raise SparsityError(f"version: {version!r} is not valid; give a number, as 1.0")
    model = content.get("model") or {}
    _known(model, "model", ("name", "framework"))
    if not isinstance(model.get("name", ""), str):
        raise SparsityError(f"model.name: {model['name']!r} is not valid; give a string")
    if model.get("framework", FRAMEWORKS[0]) not in FRAMEWORKS:
        raise SparsityError(
            f"model.framework: {model['framework']!r} is not valid; "
            f"choose from {', '.join(FRAMEWORKS)}"
        )
    for depth, name in enumerate(SECTION):
        path = ".".join(SECTION[:depth])
        if depth:
            _known(content, path, (name,))
        if name not in content:
            raise SparsityError(f"{path}: {name} is missing")
        content = content[name]
    if not isinstance(content, Mapping):
        raise SparsityError(f"{'.'.join(SECTION)}: holds no settings")
    return content


def _known(section: Any, path: str, keys) -> None:
    if not isinstance(section, Mapping):
        raise SparsityError(f"{path}: {section!r} is not valid; give {', '.join(keys)}")
    for key in section:
        if key not in keys:
            name = f"{path}.{key}" if path else key
            raise SparsityError(f"{name}: unknown key; choose from {', '.join(keys)}")
