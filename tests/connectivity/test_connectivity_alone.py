"""The library on its own: its document's example, without fairseq, on plain modules."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from src.connectivity import ChannelGroup, PruningError, channel_groups, cut, score, select
from src.connectivity import plan_widths as plan

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "connectivity.md").read_text(encoding="utf-8")


@pytest.fixture
def alone(monkeypatch):
    """The package as the document imports it: nothing of the plug-in can be imported."""
    before = set(sys.modules)
    for name in ("fairseq", "src"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.syspath_prepend(ROOT / "src")
    yield importlib.import_module("connectivity")
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "connectivity":
            del sys.modules[name]


def test_the_example_prints_what_the_document_says(alone, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)
    (printed,) = re.findall(r"```\n(Linear.*?)```", DOCUMENT, re.S)
    exec(compile(code, "docs/connectivity.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out == printed


def test_the_document_names_every_call(alone):
    assert [name for name in alone.__all__ if name not in DOCUMENT] == []


class Deep(nn.Module):
    """Two hidden layers of one kind, measured as well as gated."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*size) for size in ((6, 12), (12, 20), (20, 3)))
        self.groups = nn.ModuleList(ChannelGroup("hidden", width) for width in (12, 20))
        for group, first, second in zip(self.groups, self.layers, self.layers[1:]):
            group.tie(first, weight=0, bias=0)
            group.tie(second, weight=1)

    def forward(self, x):
        for group, layer in zip(self.groups, self.layers):
            x = group.measure(group.gate(layer(x).relu()), sentences=0)
        return self.layers[-1](x)


@pytest.mark.parametrize("criterion", ["connectivity", "fisher", "weight", "grad", "taylor"])
def test_the_least_important_channels_go_whichever_group_has_them(criterion):
    torch.manual_seed(1)
    network, x = Deep().double(), torch.randn(30, 6).double()
    batches = [lambda: network(x).square().sum(), lambda: network(x + 1).square().sum()]
    groups = channel_groups(network)
    scores = score(groups, batches, criterion)
    keep = select(network, scores, plan(network, 0.7, 0))
    stays = {n: torch.zeros(g.width, dtype=torch.bool) for n, g in groups.items()}
    for name, kept in stays.items():
        kept[keep.get(name, slice(None))] = True
    kept = torch.cat([scores[n][stays[n]] for n in groups])
    gone = torch.cat([scores[n][~stays[n]] for n in groups])
    assert len(gone) > 3 and gone.max() <= kept.min()
    for name, group in groups.items():
        group.set_connectivity(stays[name].double())
    before = network(x)
    cut(network, keep)
    torch.testing.assert_close(network(x), before)
    assert [layer.weight.shape[0] for layer in network.layers[:2]] == [
        int(kept.sum()) for kept in stays.values()
    ]


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda m: score(channel_groups(m), [], "magic"),
            "importance 'magic': is none of .*grad, .*taylor",
        ),
        (lambda m: score(channel_groups(m), [], norm="l3"), "norm 'l3': is none of none, l1, l2"),
        (lambda m: score({}, []), "no channel groups to score"),
        (
            lambda m: score(channel_groups(m), [lambda: m(torch.ones(1, 6)).sum()], "lrp"),
            "lrp: nee",
        ),
        (lambda m: plan(m, 0.5, 3), "stage 3: is none of 0"),
        (lambda m: plan(m, 0.01, 0), "when one channel per other group are kept; use a larger"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(PruningError, match=words):
        call(Deep())
