"""A step of a pipeline: one command in a folder of its own, and what its result depends on."""

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

RECORD = "step.json"  # in a step's folder
OUTPUT = "{output}"  # stands for the pipeline's folder in what a digest is of


@dataclass(frozen=True)
class Step:
    """A command and its result.

    Attributes:
        name: as ``4-prune``; the step's folder in the pipeline's.
        command: the program and its arguments, paths as a person would type them here.
        files: files and folders from outside of the pipeline that it reads.
        after: names of the steps whose results it reads.
        results: what is in its folder when it is done.
        output: file in its folder that standard output goes to, None for the log.
        resumes: run again it goes on where it was; others begin with an empty folder.
        whole: its results appear complete or not at all, so that it is done when they are there.
    """

    name: str
    command: Tuple[str, ...]
    files: Tuple[str, ...] = ()
    after: Tuple[str, ...] = ()
    results: Tuple[str, ...] = ()
    output: Optional[str] = None
    resumes: bool = False
    whole: bool = False


def relative_command(script: str, arguments: Sequence[str]) -> Tuple[str, ...]:
    """A command whose program is named from here, as a person would type it."""
    return (os.path.relpath(script), *arguments)


@dataclass(frozen=True)
class Record:
    """What a step's folder says of the run that made it.

    Attributes:
        digest: of everything that the result depends on, see :func:`depends_on`.
        parts: the same in parts, for saying what is different.
    """

    digest: str
    parts: Dict[str, Any]
    finished: bool = False
    seconds: float = 0.0

    def save(self, stream) -> None:
        json.dump(vars(self), stream, indent=1)
        stream.write("\n")


def read_record(folder: str) -> Optional[Record]:
    """The record of a step's folder; None if it has none that can be read."""
    try:
        with open(os.path.join(folder, RECORD), encoding="utf-8") as stream:
            content = json.load(stream)
        record = Record(**content)
        parts = record.parts
        known = all(isinstance(parts[name], dict) for name in ("files", "after"))
        return record if known and isinstance(parts["command"], list) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def content_digest(path: str) -> str:
    """Digest of a file, or of the files in a folder and their names."""
    digest = hashlib.sha256()
    names = sorted(os.listdir(path)) if os.path.isdir(path) else [""]
    for name in names:
        file = os.path.join(path, name) if name else path
        if os.path.isfile(file) and not name.endswith(".log"):
            digest.update(name.encode())
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def depends_on(
    step: Step, folder: str, files: Mapping[str, str], digests: Mapping[str, str]
) -> Record:
    """What a step's result depends on, as the record of a run that begins.

    The place of the pipeline is not part of it, nor are the names of files from outside,
    which count by their content.

    Args:
        folder: the pipeline's.
        files: digest of every file and folder that the step reads.
        digests: of the steps before.
    """
    names = {file: f"{{{number}}}" for number, file in enumerate(step.files)}
    command = [os.path.basename(step.command[0])]
    command += [_placed(word, folder, names) for word in step.command[1:]]
    parts = {
        "command": command,
        "files": {names[file]: files[file] for file in step.files},
        "after": {name: digests[name] for name in step.after},
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Record(digest, parts)


def _placed(word: str, folder: str, names: Mapping[str, str]) -> str:
    if word in names:
        return names[word]
    inside = word == folder or word.startswith(os.path.join(folder, ""))
    return OUTPUT + word[len(folder) :] if inside else word


def difference(before: Record, now: Record) -> str:
    """Why a step has to be made again, in words."""
    changed = _changed_options(before.parts["command"], now.parts["command"])
    if changed:
        return f"its options changed ({', '.join(changed)})"
    old, new = before.parts["after"], now.parts["after"]
    steps = [name for name in new if old.get(name) != new[name]]
    if steps:
        return f"{' and '.join(steps)} changed"
    return "the data or the model changed"


def _changed_options(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """Options that one command has and another has not, or with another value."""
    old, new = _options(before), _options(now)
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def _options(command: Sequence[str]) -> Dict[str, Tuple[str, ...]]:
    found: Dict[str, Tuple[str, ...]] = {}
    name = "command"
    for word in command:
        if word.startswith("--"):
            name = word
            found[name] = ()
        else:
            found[name] = (*found.get(name, ()), word)
    return found
