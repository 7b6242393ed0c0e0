"""A grid of models to train and compare, read from a YAML file.

    data: data-bin/demo.de-en            # paths are relative to the repository
    reference: data-bin/demo.de-en/raw.test.en
    work: checkpoints/study/demo         # everything that is made lies here
    results: docs/results/demo.json      # rows that stay after it; default WORK/results.json
    seeds: [1]
    options: {arch: srp_demo_de_en}      # of every training, without the dashes
    translate: {beam: 5}                 # of every translation
    models:
      base:
        tool: train                      # src/train.py, pruning.py or finetuning.py
        options: {lr: 3e-3, max-epoch: 12}
      "one shot, {importance}":
        each: {importance: [fisher, random]}   # one model for every combination; an
                                         # item may be a mapping, of several at once
        tool: pruning
        from: base                       # becomes --pretrained-model
        options: {importance: "{importance}", compression-rate: 0.5}
      "4x1":
        tool: finetuning
        from: base
        sparsity: {pattern: 4x1, target_sparsity: 0.8}   # becomes --sparsity-config
      translated:
        tool: distill_data               # the training data, translated by base;
        from: base                       # the grid's options are not for it
        options: {beam: 5}
      distilled:
        tool: finetuning
        from: "one shot, fisher"
        data: translated                 # instead of the grid's

An option that is ``true`` is given without a value, ``false`` and ``null`` leave it
out. ``extends: multi30k.yaml`` at the top takes over what stands in another grid beside this
one: ``options``, ``translate`` and ``models`` of both are merged, where both have a key this
file's value holds, all else is replaced. Of a model, ``checkpoint: last`` takes the last
checkpoint of a run instead of the best one, ``test: false`` does not translate, ``seeds``
override the grid's, ``teacher: NAME`` becomes --teacher-model, ``speed: true`` has run.py
--speed measure it, and ``beside: NAME`` names the model that tables.py compares it with, too.
"""

import hashlib
import itertools
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import yaml

DISTILL = "distill_data"
TOOLS = ("train", "pruning", "finetuning", DISTILL)
_GRID_KEYS = (
    *("data", "reference", "work", "results", "seeds", "options", "translate", "models"),
    "extends",
)
_MODEL_KEYS = (
    *("each", "tool", "from", "teacher", "options", "sparsity", "checkpoint", "test"),
    *("seeds", "speed", "beside", "data"),
)
# What a grid adds to, of the one that it extends; all else it replaces.
_MERGED = ("options", "translate", "models")
# What a key of the grid or of a model must be, where it is given.
_TYPES = {
    **dict.fromkeys(("options", "each", "translate"), (dict, "a mapping")),
    **dict.fromkeys(("data", "reference", "work", "results"), (str, "a name")),
    **dict.fromkeys(("beside", "extends"), (str, "a name")),
    **dict.fromkeys(("from", "teacher"), (str, "a name")),
    **dict.fromkeys(("test", "speed"), (bool, "true or false")),
    "seeds": (list, "a list of numbers"),
}
_CHECKPOINTS = ("best", "last")


class GridError(SystemExit):
    """A mistake in a grid, said in one line; exit status 2."""

    def __init__(self, message: str):
        super().__init__(2)
        self.message = message

    def __str__(self):
        return self.message


@dataclass
class Model:
    """One model of a grid, with everything resolved.

    Attributes:
        group: its name in the file, with the braces.
        values: what stands for the braces.
        key: digest of everything that decides what the model is, its parents' and
            the data's too.
    """

    name: str
    group: str
    values: Dict[str, Any]
    tool: str
    seed: int
    options: Dict[str, Any]
    sparsity: Optional[Dict[str, Any]]
    parent: Optional["Model"]
    teacher: Optional["Model"]
    data: Optional["Model"]
    checkpoint: str
    test: bool
    speed: bool
    beside: Optional[str]
    work: Path
    key: str = field(default="")

    @property
    def folder(self) -> Path:
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-").lower()
        return self.work / f"{slug}-{self.key[:10]}"

    @property
    def path(self) -> Path:
        """What is made: the checkpoint that others start from, or a folder of data."""
        if self.tool == DISTILL:
            return self.folder / "data"
        return self.folder / f"checkpoint_{self.checkpoint}.pt"

    @property
    def parents(self) -> List["Model"]:
        """Models that have to be there before this one can be made."""
        return [m for m in (self.parent, self.teacher, self.data) if m is not None]

    @property
    def title(self) -> str:
        """The name, with the seed where it is not the first."""
        return self.name if self.seed == 1 else f"{self.name} (seed {self.seed})"

    def arguments(self, data: Path) -> List[str]:
        """The tool's command line."""
        if self.tool == DISTILL:
            made = {"path": self.parent.path, "output": self.path}
            return [str(data), *flags({**self.options, **made})]
        if self.data is not None:
            data = self.data.path
        given = {**self.options, "seed": self.seed, "save-dir": self.folder}
        if self.parent is not None:
            given["pretrained-model"] = self.parent.path
        if self.teacher is not None:
            given["teacher-model"] = self.teacher.path
        if self.sparsity is not None:
            given["sparsity-config"] = self.folder / "sparsity.yaml"
        return [str(data), *flags(given)]

    def sparsity_text(self) -> str:
        """The configuration of weight-level pruning, as a file holds it."""
        pruner = {"pruners": [self.sparsity]}
        return yaml.safe_dump({"pruning": {"approach": {"weight_compression_pytorch": pruner}}})


@dataclass
class Grid:
    path: Path
    data: Path
    reference: Optional[Path]
    work: Path
    results: Path
    translate: Dict[str, Any]
    models: List[Model]


def flags(options: Dict[str, Any]) -> List[str]:
    """Command-line arguments of options by name."""
    arguments = []
    for name, value in options.items():
        if value is True:
            arguments.append(f"--{name}")
        elif value is not None and value is not False:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            # a value that begins with a dash would be taken for an option
            one = [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
            arguments += one
    return arguments


def command(tool: str, arguments: List[str]) -> str:
    return shlex.join(["python", f"src/{tool}.py", *arguments])


def _filled(value: Any, values: Dict[str, Any]) -> Any:
    """``value`` with every ``{name}`` replaced; a lone one keeps its type."""
    if isinstance(value, str):
        for name, replacement in values.items():
            if value == f"{{{name}}}":
                return replacement
            value = value.replace(f"{{{name}}}", str(replacement))
    elif isinstance(value, dict):
        return {_filled(k, values): _filled(v, values) for k, v in value.items()}
    elif isinstance(value, list):
        return [_filled(v, values) for v in value]
    return value


def _check_keys(mapping: Any, known, where: str) -> Dict[str, Any]:
    if not isinstance(mapping, dict):
        raise GridError(f"{where}: must be a mapping, not {mapping!r}")
    for key in mapping:
        if key not in known:
            raise GridError(f"{where}: {key} is unknown; valid are {', '.join(known)}")
    for key, value in mapping.items():
        kind, name = _TYPES.get(key, (object, ""))
        if value is not None and not isinstance(value, kind):
            raise GridError(f"{where}: {key} must be {name}, not {value!r}")
    seeds = mapping.get("seeds") or []
    if not all(type(seed) is int for seed in seeds):
        raise GridError(f"{where}: seeds must be a list of numbers, not {seeds!r}")
    for name, values in (mapping.get("each") or {}).items():
        if not isinstance(values, list) or not values:
            raise GridError(f"{where}: each: {name} must be a list, not {values!r}")
    return mapping


def fingerprint(data: Path) -> str:
    """Digest of a folder of binarized data: its dictionaries and its files' sizes."""
    digest = hashlib.sha256()
    for path in sorted(data.glob("*.*")):
        if path.suffix in (".bin", ".idx"):
            digest.update(f"{path.name} {path.stat().st_size}".encode())
        elif path.name.startswith("dict."):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _key(model: Model, data: str) -> str:
    parents = [p.key if p is not None else None for p in (model.parent, model.teacher)]
    if model.data is not None:
        data = model.data.key
    what = [model.tool, model.seed, model.options, model.sparsity, parents, data]
    checkpoint = [p.checkpoint for p in (model.parent, model.teacher) if p is not None]
    return hashlib.sha256(json.dumps([what, checkpoint]).encode()).hexdigest()


def _content(path: Path, extending: Tuple[Path, ...] = ()) -> Dict[str, Any]:
    """What stands in a grid's file, with what it takes over from the one it extends."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise GridError(f"{path}: can't be read ({reason})") from None
    content = _check_keys(content, _GRID_KEYS, str(path))
    if not content.get("extends"):
        return content
    extending += (path.resolve(),)
    other = path.parent / content["extends"]
    if other.resolve() in extending:
        raise GridError(f"{path}: extends {content['extends']}, which extends this file")
    base = _content(other, extending)
    merged = {**base, **content}
    for key in _MERGED:
        parts = (base.get(key) or {}, content.get(key) or {})
        if all(isinstance(part, dict) for part in parts):
            merged[key] = {**parts[0], **parts[1]}
    return merged


def read_grid(path: Path) -> Grid:
    """The grid of a YAML file; its paths are relative to the current folder.

    Raises:
        GridError: names the file, the model and the key.
    """
    content = _content(path)
    for key in ("data", "work", "models"):
        if not content.get(key):
            raise GridError(f"{path}: {key} is missing")
    if not isinstance(content["models"], dict):
        raise GridError(f"{path}: models must be a mapping of their names to what they are")
    data, work = Path(content["data"]), Path(content["work"])
    if not data.is_dir():
        raise GridError(f"{path}: data {data}: no such folder; preprocess it first")
    reference = Path(content["reference"]) if content.get("reference") else None
    if reference is not None and not reference.is_file():
        raise GridError(f"{path}: reference {reference}: no such file")
    digest = fingerprint(data)
    made: Dict[tuple, Model] = {}
    models = []
    for group, entry in content["models"].items():
        where = f"{path}: model {group!r}"
        entry = _check_keys(entry, _MODEL_KEYS, where)
        if entry.get("tool") not in TOOLS:
            raise GridError(f"{where}: tool must be one of {', '.join(TOOLS)}")
        if entry.get("checkpoint", "best") not in _CHECKPOINTS:
            raise GridError(
                f"{where}: checkpoint must be {' or '.join(_CHECKPOINTS)}, not "
                f"{entry['checkpoint']!r}"
            )
        each = entry.get("each") or {}
        for combination in itertools.product(*each.values()):
            values = {}
            for name, value in zip(each, combination):
                values.update(value if isinstance(value, dict) else {name: value})
            for seed in entry.get("seeds") or content.get("seeds") or [1]:
                model = _model(group, entry, values, seed, content, made, work, where)
                model.key = _key(model, digest)
                if (model.name, model.seed) in made:
                    raise GridError(
                        f"{where}: {model.title!r} is there twice; every name must be of one "
                        "model: let it hold what each of its values changes, in braces"
                    )
                made[model.name, seed] = model
                models.append(model)
    names = {model.name for model in models}
    for model in models:
        if model.beside is not None and model.beside not in names:
            raise GridError(f"{path}: model {model.group!r}: beside {model.beside!r} is no model")
    results = Path(content.get("results") or work / "results.json")
    return Grid(path, data, reference, work, results, content.get("translate") or {}, models)


def _model(group, entry, values, seed, content, made, work, where) -> Model:
    def find(key: str) -> Optional[Model]:
        name = _filled(entry.get(key), values)
        if name is None:
            return None
        found = made.get((name, seed))
        if found is None:  # made with one seed for all
            found = next((m for (n, _), m in made.items() if n == name), None)
        if found is None:
            raise GridError(f"{where}: {key} {name!r} is no model above it")
        return found

    distills = entry["tool"] == DISTILL
    options = {} if distills else content.get("options") or {}
    options = {**options, **(entry.get("options") or {})}
    parent, data = find("from"), find("data")
    if (parent is None) != (entry["tool"] == "train"):
        raise GridError(f"{where}: from is for all tools but train, and missing there")
    if data is not None and data.tool != DISTILL:
        raise GridError(f"{where}: data {data.name!r} is no model of tool {DISTILL}")
    if any(m is not None and m.tool == DISTILL for m in (parent, find("teacher"))):
        raise GridError(f"{where}: from and teacher name models, not data")
    options = _filled(options, values)
    sparsity = _filled(entry.get("sparsity"), values)
    if sparsity is not None and not isinstance(sparsity, dict):
        raise GridError(f"{where}: sparsity must be a mapping, not {sparsity!r}")
    left = re.search(r"\{[A-Za-z_]\w*\}", f"{_filled(group, values)} {options} {sparsity}")
    if left:
        raise GridError(f"{where}: {left[0]} stands for nothing; give its values with each")
    return Model(
        name=str(_filled(group, values)),
        group=group,
        values=values,
        tool=entry["tool"],
        seed=seed,
        options=options,
        sparsity=sparsity,
        parent=parent,
        teacher=find("teacher"),
        data=data,
        checkpoint=entry.get("checkpoint", "best"),
        test=entry.get("test", True) and not distills,
        speed=entry.get("speed", False),
        beside=_filled(entry.get("beside"), values),
        work=work,
    )
