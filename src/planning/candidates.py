"""Models that pruning could leave: numbers of layers and rates, cut without training.

What they compute is worth nothing; they have the size and the speed of trained ones.
"""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import List, Optional, Sequence, Tuple

import torch
from fairseq.data import Dictionary
from fairseq.models import MODEL_REGISTRY
from torch import nn

from ..connectivity.budget import ParameterCount
from ..connectivity.errors import PruningError
from ..connectivity.groups import channel_groups
from ..connectivity.stage import PruningStage, StagePlan
from .rows import Candidate, Depths

RATES = (0.7, 0.5, 0.35, 0.2, 0.1, 0.05)


def depths_of(model: nn.Module) -> Depths:
    """Layers that a model has."""
    return len(model.encoder.layers), len(model.decoder.layers)


def usual_depths(model: nn.Module, plan: StagePlan) -> List[Depths]:
    """Depths to plan with: those that the plan gives, or all, half, two and one decoder layers.

    Translation waits for the decoder, so an encoder whose layers are not given keeps them.
    """
    encoder, decoder = depths_of(model)
    encoder = plan.keep_encoder_layers or encoder
    if plan.keep_decoder_layers:
        return [(encoder, plan.keep_decoder_layers)]
    if plan.stage == 1:  # which cuts no layers
        return [(encoder, decoder)]
    numbers = {decoder, decoder // 2, 2, 1}
    return [(encoder, number) for number in sorted(numbers, reverse=True) if 1 <= number <= decoder]


def stage_for(candidate: Candidate, model: nn.Module, plan: StagePlan) -> StagePlan:
    """The stage that leaves a candidate of a model, everything else as in ``plan``."""
    present = depths_of(model)
    kept = [None if n == there else n for n, there in zip(candidate.depths, present)]
    return replace(
        plan,
        compression_rate=candidate.rate,
        keep_encoder_layers=kept[0],
        keep_decoder_layers=kept[1],
    )


def cut_to(candidate: Candidate, model: nn.Module, plan: StagePlan) -> Optional[nn.Module]:
    """A copy of a model that is cut to a candidate, channels and layers chosen at random.

    Args:
        model: in evaluation mode.
        plan: how: its stage, heads and embedding ratio. After stage 1 comes stage 2.

    Returns:
        None where nothing would be cut, or where the rate is out of the layers' reach.
    """
    plan = stage_for(candidate, model, plan)
    plan = replace(plan, stage=2 if plan.stage == 2 else 0, iterations=1, decreasing=None)
    model = copy.deepcopy(model)
    stage = PruningStage(plan, model)
    try:
        stage.check()
    except PruningError:
        return None
    generator = torch.Generator().manual_seed(1)
    groups = channel_groups(model).items()
    stage.begin({n: torch.rand(g.width, generator=generator) for n, g in groups}, 0)
    if not stage.ready:
        return None
    stage.cut()
    return model


def candidates(depths: Sequence[Depths], rates: Sequence[float] = RATES) -> List[Candidate]:
    """Every depth at every rate, and with nothing but its layers cut."""
    return [Candidate(*some, rate) for some in depths for rate in dict.fromkeys((1.0, *rates))]


def is_uncut(model: nn.Module) -> bool:
    count = ParameterCount(model)
    return count(count.current) == count.uncut


def rebuilt(name: str, model: nn.Module, dictionaries: Tuple[Dictionary, Dictionary]) -> nn.Module:
    """An uncut model with random weights, of the same options as ``model``, in evaluation mode.

    Args:
        name: fairseq's ``transformer``, or ``srp``.
    """
    cfg = copy.deepcopy(model.cfg)
    cfg.encoder.embed_path = cfg.decoder.embed_path = None  # trained embeddings to begin with
    source, target = dictionaries
    task = SimpleNamespace(source_dictionary=source, target_dictionary=target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MODEL_REGISTRY[name].build_model(cfg, task).eval()
