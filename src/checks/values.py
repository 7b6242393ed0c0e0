"""Kinds of rules for options. What a command refuses is a table of lines ``rule | message``."""

import ast
import os
from argparse import Namespace
from typing import Any, Callable, Collection, Dict, Iterable, Sequence, Union

from fairseq.data.data_utils import post_process
from fairseq.dataclass.configs import CommonEvalConfig, GenerationConfig

from ..errors import UserError
from ..options import SRPTranslationConfig

_FIELDS = CommonEvalConfig.__dataclass_fields__ | GenerationConfig.__dataclass_fields__
_FIELDS |= SRPTranslationConfig.__dataclass_fields__


class Options:
    """Options as attributes: of the first part that has one, None where none has.

    Args:
        facts: what rules ask about beside options, as ``has_gpu``.
    """

    def __init__(self, *parts: Any, **facts: Any):
        self._parts = (*parts, Namespace(**facts))

    def __getattr__(self, name: str) -> Any:
        return next((getattr(part, name) for part in self._parts if hasattr(part, name)), None)


Condition = Callable[[Options], Any]


class Refused:
    """Options are refused when a condition of all options holds.

    Args:
        names: of the options, or of one.
        bare: leave their values out of the message.
    """

    why = ""

    def __init__(self, names: Union[str, Sequence[str]], when: Condition, bare: bool = False):
        self.names = (names,) if isinstance(names, str) else tuple(names)
        self.when, self.bare = when, bare

    def __or__(self, why: str) -> "Refused":
        """The same rule with a message; ``{o.name}`` in it is the value of an option."""
        self.why = why
        return self

    def refuses(self, name: str, options: Options) -> bool:
        return bool(self.when(options))

    def shown(self, value: Any) -> str:
        """A value as messages show it after its option; nothing of a flag."""
        if isinstance(value, list):
            return ",".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) else "" if value is True else str(value)


class Needs(Refused):
    """Options with another value than by default need another option, or a condition."""

    def __init__(self, names, unless: Union[str, Condition], bare: bool = False):
        met = (lambda o: getattr(o, unless)) if isinstance(unless, str) else unless
        super().__init__(names, lambda o: not met(o), bare)

    def refuses(self, name, options):
        value = getattr(options, name)
        given = bool(value)
        if name in _FIELDS:  # of which some are members of an enumeration
            default = _FIELDS[name].default
            given = value not in (None, default) and str(value) != str(default)
        return given and super().refuses(name, options)


class Unused(Needs):
    """Options that nothing heeds here must have the values that they have by default."""

    def __init__(self, *names: str, bare: bool = False):
        super().__init__(names, lambda o: False, bare)

    def shown(self, value):
        return "" if value is True else str(value)


class Must(Refused):
    """Values must pass a test, unless they are None."""

    def refuses(self, name, options):
        value = getattr(options, name)
        return value is not None and not self.when(value)


class AtLeast(Must):
    """Numbers, or the text of whole ones, must not be too small."""

    def __init__(self, least: int, *names: str):
        super().__init__(names, self._reaches)
        self.least, self.why = least, f"must be at least {least}"

    def _reaches(self, value):
        try:
            return (int(value) if isinstance(value, str) else value) >= self.least
        except ValueError:
            return False


class OneOf(Must):
    """A value must be one of those that are known."""

    def __init__(self, name: str, known: Collection[str]):
        super().__init__(name, lambda value: str(value) in known)
        self.known, self.why = known, f"must be one of {', '.join(known)}"


class IsFile(Must):
    """Files must be there."""

    def __init__(self, *names: str):
        super().__init__(names, os.path.isfile)


SEED = Must("seed", lambda seed: 0 <= seed < 2**32) | f"must be from 0 to {2**32 - 1}"


def check(table: Iterable[Refused], options: Any) -> None:
    """Refuse what the first rule of a table refuses that does.

    Raises:
        UserError: names the option, its value and what to do.
    """
    for rule in table:
        for name in rule.names:
            if rule.refuses(name, options):
                shown = "" if rule.bare else rule.shown(getattr(options, name))
                option = f"{spell(name)} {shown}".rstrip()
                raise UserError(f"{option}: {rule.why.format(o=options)}")


def spell(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def undoes(symbol: str) -> bool:
    """Whether fairseq can undo a segmentation into subwords, ``--post-process``."""
    try:
        return post_process("", symbol) is not None
    except NotImplementedError:
        return False


def model_overrides(
    text: str, option: str = "--model-overrides", example: str = "{'max_target_positions': 100}"
) -> Dict[str, Any]:
    """The dictionary of ``--model-overrides``, or of another option of this form.

    Raises:
        UserError: it is none.
    """
    try:
        overrides = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        overrides = None
    if not isinstance(overrides, dict):
        raise UserError(f"{option} {text}: must be a dictionary as Python writes it, as {example}")
    return overrides
