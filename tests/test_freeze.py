"""Frozen weights stay bit for bit, whatever an optimizer does to them."""

import pytest
import torch
from conftest import build
from test_cut import random_keep

from src.connectivity.freeze import Freezer
from src.connectivity.groups import KINDS, channel_groups


def removed(model, kinds):
    gone = {}
    for name, kept in random_keep(model, kinds).items():
        mask = torch.ones(channel_groups(model)[name].width, dtype=torch.bool)
        mask[kept] = False
        gone[name] = mask.nonzero().squeeze(1)
    return gone


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kinds", [("embedding",), ("qk", "vo", "ffn"), KINDS])
def test_masks_and_values(kinds, dtype):
    torch.manual_seed(1)
    model = build().to(dtype)
    freezer = Freezer(model, removed(model, kinds))
    masks = {id(p): m for p, m, _ in freezer.frozen}
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    gradients = [p.grad.clone() for p in model.parameters()]

    freezer.mask_gradients()
    for parameter, gradient in zip(model.parameters(), gradients):
        mask = masks.get(id(parameter), torch.zeros_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter.grad, gradient.masked_fill(mask, 0))

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9).add_(torch.randn_like(parameter) * 100)
    moved = [p.detach().clone() for p in model.parameters()]
    freezer.restore()
    for parameter, old, new in zip(model.parameters(), before, moved):
        mask = masks.get(id(parameter), torch.zeros_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter, torch.where(mask, old, new))


def test_the_mask_covers_every_tied_slice():
    """A weight is frozen if one of its channels is removed, along any dimension."""
    model = build()
    gone = removed(model, KINDS)
    masks = {id(p): m for p, m, _ in Freezer(model, gone).frozen}
    for name, group in channel_groups(model).items():
        for piece in group.slices:
            mask = masks[id(piece.parameter)]
            assert mask.index_select(piece.dim, gone[name]).all()
            assert not mask.all()
