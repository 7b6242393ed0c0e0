"""What a checkpoint says of the changes to its vocabulary: what rates count from."""

from typing import Any, Dict, Optional

from ..checkpoint_utils import VOCABULARY as RECORD


def record(state: Dict[str, Any], **facts) -> None:
    """Note what was done to a checkpoint's vocabulary, after what was before.

    Args:
        facts: ``types_before`` and ``types_after`` (of source and target),
            ``parameters_before`` and ``parameters_after``, ``how``.
    """
    state[RECORD] = [*state.get(RECORD, ()), facts]


def describe_record(state: Dict[str, Any]) -> Optional[str]:
    """What a checkpoint says of its vocabulary's history: what a rate counts from."""
    history = state.get(RECORD)
    if not history:
        return None
    first, last = history[0], history[-1]
    return (
        f"its vocabulary was changed ({first['types_before'][0]:,} + {first['types_before'][1]:,} "
        f"types of source and target before, {last['types_after'][0]:,} + "
        f"{last['types_after'][1]:,} now); rates count from the model as it is now, which "
        f"uncut has {last['parameters_after'] / max(1, first['parameters_before']):.4f} of the "
        f"parameters it had ({first['parameters_before']:,})"
    )
