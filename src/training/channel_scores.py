"""Importance of a model's channels, from batches of a task's training data."""

import copy
from typing import Iterable, Iterator, Optional

import numpy as np
from fairseq import utils
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import FairseqTask
from torch import nn

from ..connectivity.groups import channel_groups
from ..connectivity.importance import score as score_channels
from ..connectivity.scoring import IMPORTANCE, Scores, ScoringBatch
from ..modules.relevance import gold_relevance, is_half
from ..options import importance_of_widths


def scoring_samples(task: FairseqTask, split: str, seed: int, limits=None) -> Iterator[dict]:
    """Small batches of random training sentences, the same for any number of processes.

    Args:
        limits: longest source and target; longer pairs are left out, as in training.
    """
    dataset, cfg = task.datasets[split], task.cfg
    order = np.random.default_rng(seed).permutation(len(dataset))
    order, _ = dataset.filter_indices_by_size(order, limits or task.max_positions())
    batch, tokens, made = [], 0, 0
    for index in order.tolist():
        length = max(dataset.num_tokens(index), 1)
        if batch and tokens + length > cfg.scoring_tokens:
            yield dataset.collater([dataset[i] for i in batch])
            made += 1
            if made == cfg.scoring_batches:
                return
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield dataset.collater([dataset[i] for i in batch])


def score_model(
    task: FairseqTask,
    model: nn.Module,
    criterion,
    split: str,
    seed: int,
    device,
    rank: int = 0,
    world: int = 1,
    measure=score_channels,
    samples: Optional[Iterable[dict]] = None,
) -> Scores:
    """Importance of every channel from scoring batches, dropout off.

    Args:
        rank, world: this process scores every ``world``-th batch; the sums
            are added up over processes.
        measure: ``importance.score`` or the like.
        samples: the batches, by default :func:`scoring_samples`.
    """
    was_training = model.training
    name = importance_of_widths(task.cfg)
    if IMPORTANCE[name].uses_relevance and is_half(model):
        model = copy.deepcopy(model).float()
    model.eval()
    if samples is None:
        limits = utils.resolve_max_positions(task.max_positions(), model.max_positions())
        samples = scoring_samples(task, split, seed, limits)

    def batches():
        for number, sample in enumerate(samples):
            if number % world == rank:
                if device.type == "cuda":
                    sample = utils.move_to_cuda(sample, device)
                yield _scoring_batch(task, model, criterion, sample)

    def reduce(total):
        if world > 1:
            distributed_utils.all_reduce(total, group=distributed_utils.get_data_parallel_group())

    try:
        return measure(
            channel_groups(model),
            batches(),
            name,
            reduce,
            norm=str(task.cfg.importance_norm),
            per_example=task.cfg.importance_per_example,
            seed=seed,
        )
    finally:
        model.train(was_training)


def _scoring_batch(task, model, criterion, sample) -> ScoringBatch:
    inputs, padding_idx = sample["net_input"], task.target_dictionary.pad()
    target = sample["target"].clone()
    # as in the loss, for what is not computed from it
    target[:, : getattr(criterion, "ignore_prefix_size", 0)] = padding_idx
    return ScoringBatch(
        loss=lambda: criterion(model, sample)[0],
        tokens=int(target.ne(padding_idx).sum()),
        relevance=lambda: gold_relevance(model, inputs, target, padding_idx),
    )
