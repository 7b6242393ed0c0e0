"""Values of options that several commands refuse in the same words."""

import ast
from typing import Any, Dict, Optional

from ..errors import UserError


def check_seed(seed: Optional[int]) -> None:
    """Refuse what numpy takes for no seed.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    if seed is not None and not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: must be from 0 to {2**32 - 1}")


def model_overrides(
    text: str,
    option: str = "--model-overrides",
    example: str = "{'max_target_positions': 100}",
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
