"""What this library refuses."""

from string import Template
from typing import Mapping


class _Names(dict):
    """Words for the names in a message; a name without any stands for itself."""

    def __missing__(self, name: str) -> str:
        return name


class PruningError(ValueError):
    """A plan, scores or a state that can't be used, said in one line.

    Args:
        message: calls what the caller gave ``$name``, as ``$compression_rate``, so that a
            program whose users know it as something else can say that instead, see
            :meth:`worded`.
    """

    DEFAULTS = {
        "no_schedule": "None",
        "targets": "their targets are not empty",
        "load_stage": "load the state of that stage first",
        "stage_place": "the state to go on with",
        "give_that": "give that",
    }

    def worded(self, words: Mapping[str, str]) -> str:
        """The message with ``words`` in place of the names that it has for them."""
        message = super().__str__()
        return Template(message).safe_substitute(_Names(self.DEFAULTS, **words))

    def __str__(self) -> str:
        return self.worded({})
