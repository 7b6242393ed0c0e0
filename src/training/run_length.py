"""How many updates a run's epochs have, and limits that end it before its pruning does."""

import math
from typing import Tuple

from ..connectivity.stage import StagePlan
from ..errors import UserError


def updates_in_epochs(cfg, iterator, first: int, last: int) -> int:
    """Updates from the start of epoch ``first`` to the end of ``last``.

    Args:
        cfg: all options of the run.
        iterator: fairseq's, over the batches of one epoch, as many as any other has; of its
            own epoch those count that are still to come.
    """
    batches = _batches_in_epoch(cfg, iterator)
    frequencies = cfg.optimization.update_freq
    total = 0
    for epoch in range(first, last + 1):
        frequency = frequencies[min(epoch, len(frequencies)) - 1]
        gone = iterator.iterations_in_epoch if epoch == iterator.epoch else 0
        share = (batches - gone) / frequency
        skip = cfg.optimization.skip_remainder_batch
        total += math.floor(share) if skip else math.ceil(share)
    return total


def _batches_in_epoch(cfg, iterator) -> int:
    """Batches that this process is given; fairseq's ``len`` counts a little more."""
    batches = len(iterator)
    if cfg.dataset.grouped_shuffling:  # leaves out what is not enough for all
        batches = len(iterator.frozen_batches) // iterator.num_shards
    return batches - bool(cfg.optimization.skip_remainder_batch)


def check_has_updates(cfg, iterator, epoch: int) -> None:
    """Refuse an epoch without an update, at whose end fairseq fails.

    Raises:
        UserError: names the option by which there is none.
    """
    if updates_in_epochs(cfg, iterator, epoch, epoch) < 1:
        frequencies = ",".join(map(str, cfg.optimization.update_freq))
        skip = cfg.optimization.skip_remainder_batch
        option = "--skip-remainder-batch" if skip else "--grouped-shuffling"
        raise UserError(
            f"{option}: epoch {epoch} has {len(iterator)} batches, too few for "
            f"an update with --update-freq {frequencies}; leave it out, or make smaller batches"
        )


def check_last_cut(plan: StagePlan, cfg, iterator, epoch: int, done: int) -> None:
    """Refuse a limit of updates that ends the training ahead of the last cut.

    Args:
        epoch: the one that begins or, after a resumption, goes on.
        done: updates so far.

    Raises:
        UserError: names the limit and the updates that are needed.
    """
    limit = cfg.optimization.max_update
    if not limit:
        return
    # one shot is made when the epoch before has ended and training goes on
    last = plan.epochs if plan.decreasing else plan.epochs - 1
    updates = done + updates_in_epochs(cfg, iterator, epoch, last)
    updates += not plan.decreasing and epoch <= last
    if updates > limit:
        raise UserError(
            f"--max-update {limit}: the last cut, in epoch {plan.epochs}, takes "
            f"{updates} updates; raise it, or leave it out to end with the cut"
        )


def check_time(cfg, seconds: float) -> None:
    """Refuse a limit of time that has passed before the pruning is done.

    Args:
        seconds: that the run has taken before it was interrupted.

    Raises:
        UserError: names the limit and the hours so far.
    """
    limit = cfg.optimization.stop_time_hours
    if 0 < limit < seconds / 3600:
        raise UserError(
            f"--stop-time-hours {limit:g}: the run has taken {seconds / 3600:.3g} hours and its "
            "pruning is not done; raise it, or leave it out"
        )


def updates_left(cfg, iterator, epoch: int, done: int) -> Tuple[float, str]:
    """Updates to come by the limit that ends the training first, and that limit.

    Args:
        epoch: the one that begins or, after a resumption, goes on.
        done: updates so far.
    """
    options = cfg.optimization
    limits = {math.inf: "nothing"}
    if options.max_update:
        limits[options.max_update - done] = f"--max-update {options.max_update}"
    if options.max_epoch:
        last, limit = options.max_epoch, f"--max-epoch {options.max_epoch}"
        interval = cfg.checkpoint.save_interval
        if last % interval and not options.max_update:  # whose last update is saved
            last -= last % interval
            limit += f", of which --save-interval {interval} saves {last},"
        left = updates_in_epochs(cfg, iterator, epoch, last)
        limits[left] = limit
    return min(limits), limits[min(limits)]
