"""Optimizers and selections for tests of freezing."""

import torch
from omegaconf import OmegaConf

from src.connectivity.groups import channel_groups
from src.optim.srp_adam import SRPAdam, SRPAdamConfig
from tests.support.cuts import random_keep


def removed(model, kinds):
    gone = {}
    for name, kept in random_keep(model, kinds).items():
        mask = torch.ones(channel_groups(model)[name].width, dtype=torch.bool)
        mask[kept] = False
        gone[name] = mask.nonzero().squeeze(1)
    return gone


def adam(model, **options):
    given = {"lr": [1e-3], "adam_betas": "(0.9, 0.98)", **options}
    config = OmegaConf.merge(OmegaConf.structured(SRPAdamConfig), given)
    return SRPAdam(config, list(model.parameters()))
