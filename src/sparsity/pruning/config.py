"""The file of weight-level pruning: the Pytorch Pruner's YAML, and neural-compressor 2's."""

import numbers
import os
import re
from typing import Any, Mapping, Optional, Union

import yaml

from ..errors import SparsityError
from .settings import PrunerSettings, PruningConfig, canonical

# of each level, its names: of the Pytorch Pruner, of neural-compressor 2
SECTION = (("pruning",), ("approach",), ("weight_compression_pytorch", "weight_compression"))
LISTS = ("pruners", "pruning_configs")
FRAMEWORKS = ("pytorch", "pytorch_fx")


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
    """The mapping behind ``!Pruner``."""


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
    # two that clash may yet be set apart locally
    globals_ = canonical({k: v for k, v in content.items() if k not in LISTS})
    if all(key in content for key in LISTS):
        raise SparsityError(f"{LISTS[1]}: given twice, as {LISTS[0]} too; leave one out")
    pruners = next((content[key] for key in LISTS if key in content), None)
    if not isinstance(pruners, (list, tuple)) or not pruners:
        raise SparsityError("pruners: missing or empty; give a list of at least one !Pruner")
    checked = []
    for number, local in enumerate(pruners, start=1):
        if not isinstance(local, Mapping):
            raise SparsityError(f"pruners: {local!r} is no pruner; write !Pruner and its keys")
        where = f"pruner {number}: " if len(pruners) > 1 else ""
        try:
            checked.append(PrunerSettings(**{**globals_, **canonical(local)}))
        except SparsityError as error:
            raise SparsityError(f"{where}{error}") from None
    return PruningConfig(tuple(checked), source)


def _unwrap(content: Mapping) -> Mapping:
    """The section of pruning in a whole file, whose other sections are checked too."""
    _known(content, "", ("version", "model", *SECTION[0]))
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
    path = ""
    for names in SECTION:
        if path:
            _known(content, path, names)
        present = [name for name in names if name in content]
        if len(present) != 1:
            wrong = "given twice, leave one out" if present else "missing"
            raise SparsityError(f"{path}: {' or '.join(names)} is {wrong}")
        content = content[present[0]]
        path = f"{path}.{present[0]}" if path else present[0]
    if not isinstance(content, Mapping):
        raise SparsityError(f"{path}: holds no settings")
    return content


def _known(section: Any, path: str, keys) -> None:
    if not isinstance(section, Mapping):
        raise SparsityError(f"{path}: {section!r} is not valid; give {', '.join(keys)}")
    for key in section:
        if key not in keys:
            name = f"{path}.{key}" if path else key
            raise SparsityError(f"{name}: unknown key; choose from {', '.join(keys)}")
