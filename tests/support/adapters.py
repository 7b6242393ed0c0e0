"""Adapters with values that are not zero."""

import pytest
import torch
from torch import nn

from src.adapters import SPLoPA, SPLoRA


def values(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def stir(module, size=0.3):
    """Updates that show."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * size)
    return module


def linear(m=10, n=14, dtype=torch.float64, **options):
    torch.manual_seed(2)
    return nn.Linear(m, n, dtype=dtype, **options)


METHODS = {
    "SPLoRA": lambda layer, **kw: SPLoRA(layer, rank=3, **kw),
    "SPLoPA": lambda layer, **kw: SPLoPA(layer, block_size=(4, 3), num_prototypes=5, rank=2, **kw),
}


both = pytest.mark.parametrize("method", METHODS)


class Network(nn.Module):
    """An embedding, two blocks and a head; all of one width."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(dict(up=nn.Linear(8, 12), norm=nn.LayerNorm(12), down=nn.Linear(12, 8)))
            for _ in range(2)
        )
        self.head = nn.Linear(8, 9, bias=False)
        self.bias = nn.Parameter(torch.zeros(9))

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block["down"](block["norm"](block["up"](x)).relu())
        return self.head(x) + self.bias


TOKENS = torch.arange(9).view(3, 3)


def network(tie_head=False, tie_blocks=False):
    torch.manual_seed(0)
    made = Network().double()
    if tie_head:
        made.head.weight = made.embed.weight
    if tie_blocks:
        for name in ("up", "down"):
            made.blocks[1][name].weight = made.blocks[0][name].weight
    return made


@torch.no_grad()
def outputs(module):
    return module.eval()(TOKENS)


def snapshot(module):
    """Everything that must not have changed after an error."""
    return (
        [type(m) for m in module.modules()],
        [(n, p.requires_grad) for n, p in module.named_parameters()],
        {k: v.clone() for k, v in module.state_dict().items()},
    )


def unchanged(module, before):
    types, flags, state = snapshot(module)
    return (
        types == before[0]
        and flags == before[1]
        and list(state) == list(before[2])
        and all(torch.equal(state[k], before[2][k]) for k in state)
    )
