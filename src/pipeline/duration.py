"""About how long a pipeline's trainings take on this machine."""

import time
from typing import Iterable, Tuple

import torch
import torch.nn.functional as F

from .base import Base

BATCHES = 3  # the first is a warm-up


def seconds_per_update(base: Base, batch: Tuple, bfloat16: bool = False) -> float:
    """Time of an update of the uncut model.

    Args:
        batch: tokens and sentences of a batch, and batches of an update.
        bfloat16: with ``--cpu-bf16``, else in float32.
    """
    tokens, sentences, frequency = batch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, pad = base.train, base.train.tgt_dict.pad()
    batches = base.batches(tokens, sentences)
    middle = batches[len(batches) // 2]
    sample = train.collater([train[i] for i in middle])
    inputs = {name: x.to(device) for name, x in sample["net_input"].items()}
    target = sample["target"].to(device)
    model, times = base.model.to(device).train(), []
    try:
        for _ in range(BATCHES):
            begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, bfloat16 and device == "cpu"):
                logits, _ = model(**inputs)
            F.cross_entropy(
                logits.float().flatten(0, 1), target.flatten(), ignore_index=pad
            ).backward()
            model.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
    finally:
        model.cpu().eval()
    return min(times[1:]) * frequency


def in_words(seconds: float) -> str:
    """A time, rounded: ``25 minutes``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


def training_seconds(
    base: Base, batch: Tuple, epochs: Iterable[float], bfloat16: bool = False
) -> float:
    """Time of trainings of so many epochs of the data each, of which none is skipped."""
    updates = sum(epochs) * base.updates_in_epoch(*batch)
    return updates * seconds_per_update(base, batch, bfloat16)
