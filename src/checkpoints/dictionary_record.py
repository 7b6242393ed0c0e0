"""Which dictionaries and languages a checkpoint's model was trained with, and their comparison.

A dictionary of as many other types fits a model's tables and makes nonsense of them, and so
does the other direction where source and target have one dictionary. So the trainer notes
digests in ``extra_state``, and what is made of a checkpoint keeps them.
"""

import functools
import hashlib
import logging
import re
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence, Tuple

from fairseq.data import Dictionary

from ..checkpoint_utils import DICTIONARIES as RECORD
from ..checkpoint_utils import comparing
from ..errors import UserError

logger = logging.getLogger(__name__)


def digest(dictionary: Dictionary) -> str:
    """Of a dictionary's types in their order, whatever their counts."""
    return hashlib.sha256("\n".join(dictionary.symbols).encode("utf-8", "replace")).hexdigest()


def describe(dictionaries: Sequence[Dictionary], languages: Sequence[str]) -> Dict[str, Any]:
    """What a checkpoint notes of the dictionaries and languages of source and target."""
    source, target = map(digest, dictionaries)
    return {RECORD: {"source": source, "target": target, "languages": list(languages)}}


def describe_task(task) -> Dict[str, Any]:
    """The same of a task; empty where it does not translate one language into another."""
    dictionaries, languages = _dictionaries(task), _languages(task)
    if any(x is None for x in (*dictionaries, *languages)):
        return {}
    return describe(dictionaries, languages)


def _dictionaries(task) -> Tuple[Optional[Dictionary], Optional[Dictionary]]:
    try:
        return task.source_dictionary, task.target_dictionary
    except (NotImplementedError, AttributeError):
        return None, None


def _languages(task) -> Tuple[Optional[str], Optional[str]]:
    options = getattr(task, "cfg", None) or getattr(task, "args", None)
    return getattr(options, "source_lang", None), getattr(options, "target_lang", None)


def kept(state: Mapping[str, Any]) -> Dict[str, Any]:
    """The note of a checkpoint, for the ``extra_state`` of what is made of it."""
    extra = state.get("extra_state") or {}
    return {RECORD: extra[RECORD]} if RECORD in extra else {}


def check(state: Mapping[str, Any], task, origin: str, other_direction: bool = False) -> None:
    """Compare what a checkpoint says of its dictionaries and languages with a task's.

    Those of earlier versions say nothing of dictionaries, and of languages if they were given.

    Args:
        origin: option and file of the checkpoint, for messages.
        other_direction: let a model of the other direction pass with a warning.

    Raises:
        UserError: names the languages, or the dictionary, that differ.
    """
    check_direction(state, task, origin, other_direction)
    check_digests(state, task, origin)


def check_direction(state: Mapping[str, Any], task, origin: str, warn: bool = False) -> None:
    """Refuse a model of the other direction; with one joined dictionary it would fit.

    Args:
        warn: let it pass with a warning.

    Raises:
        UserError: names both directions and what to give.
    """
    given, recorded = _languages(task), languages_of(state)
    if None in (*recorded, *given) or recorded != given[::-1] or recorded == given:
        return
    message = (
        f"{origin}: translates {recorded[0]} to {recorded[1]}, the data is read as {given[0]} to "
        f"{given[1]}"
    )
    if not warn:
        raise UserError(f"{message}; give --source-lang {recorded[0]} --target-lang {recorded[1]}")
    logger.warning(message)


def check_digests(state: Mapping[str, Any], task, origin: str) -> None:
    """Refuse other dictionaries, of as many types, say.

    Raises:
        UserError: names the side.
    """
    noted = kept(state).get(RECORD) or {}
    for side, dictionary in zip(("source", "target"), _dictionaries(task)):
        if dictionary is None or side not in noted:
            continue
        if digest(dictionary) != noted[side]:
            raise UserError(
                f"{origin}: its {side} dictionary is another one than the data's, which has "
                f"{len(dictionary)} types; use the data it was trained on (or preprocess yours "
                "with its dictionaries)"
            )


def languages_of(state: Mapping[str, Any]) -> Tuple[Optional[str], Optional[str]]:
    """Source and target language of a checkpoint's model, as far as it says them."""
    noted = kept(state).get(RECORD) or {}
    if noted.get("languages"):
        return tuple(noted["languages"])
    task = (state.get("cfg") or {}).get("task") or {}
    task = task if hasattr(task, "get") else vars(task)
    return task.get("source_lang"), task.get("target_lang")


def equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two checkpoints say the same, as far as they do."""
    notes = [kept(state).get(RECORD) for state in (one, other)]
    return None in notes or notes[0] == notes[1]


# -- fairseq's own tools -----------------------------------------------------------------


def loading_compared(load: Callable) -> Callable:
    """fairseq's loader of models, which compares them with the task that they are for."""

    @functools.wraps(load)
    def load_model_ensemble_and_task(filenames, arg_overrides=None, task=None, *args, **kwargs):
        read = []

        def compare(state, path):
            if task is not None:
                check(state, task, f"checkpoint {path}")
            else:  # which fairseq makes of the options in the checkpoint
                about = {"extra_state": kept(state), "cfg": state.get("cfg")}
                read.append((about, f"checkpoint {path}"))

        with comparing(compare), _explaining(", ".join(filenames)):
            loaded = load(filenames, arg_overrides, task, *args, **kwargs)
        for about, origin in read:
            check(about, loaded[2], origin)
        return loaded

    return load_model_ensemble_and_task


@contextmanager
def _explaining(path: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if str(error).startswith(("Neither args nor cfg", "Could not infer task type")):
            raise UserError(
                f"checkpoint {path}: has no options of its run, or none of a task that is known "
                "here; use another checkpoint of that run"
            ) from None
        different = re.search(r"size mismatch for (.+?): (.+)", str(error))
        if not different:
            raise
        raise UserError(
            f"checkpoint {path}: does not fit the dictionaries or options it is loaded with "
            f"({different[1]}: {different[2].rstrip('.')}); give those it was trained with"
        ) from None
