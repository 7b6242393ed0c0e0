"""What fairseq remembers of the best validation so far, and when it must not."""

from typing import Any, Dict

from fairseq.optim.lr_scheduler import FairseqLRScheduler
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule

from ..fairseq_patches import memories


def forget_best() -> None:
    """Forget the best validation so far, which fairseq keeps on functions.

    A new run in the same process, or a model that was just cut, competes with
    its own results only.
    """
    for function in memories():
        for name in ("best", "num_runs"):
            vars(function).pop(name, None)


def patience_state() -> Dict[str, Any]:
    """What ``--patience`` counts, for a checkpoint's extra state; fairseq leaves it out.

    A resumed run would wait for as many validations anew.
    """
    return {"patience": dict(vars(memories()[-1]))}


def restore_patience(extra_state: Dict[str, Any]) -> None:
    """Go on counting where the run of a checkpoint was; one without the count begins anew."""
    vars(memories()[-1]).update(extra_state.get("patience", {}))


def forget_plateau(scheduler: FairseqLRScheduler) -> None:
    """Let ``reduce_lr_on_plateau`` take the next validation for its best so far.

    While channels shrink the loss rises: the learning rate would fall at every
    validation, and after the cut until the uncut model's loss is reached again.
    Other schedules are left alone.
    """
    if isinstance(scheduler, ReduceLROnPlateauLRSchedule):
        scheduler.load_state_dict({"best": scheduler.lr_scheduler.mode_worse})
