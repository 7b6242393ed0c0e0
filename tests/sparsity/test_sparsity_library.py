"""Pruning by share, rank, threshold and at random, on any model."""

import copy
import importlib
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from src.sparsity.errors import SparsityError
from src.sparsity.magnitude import (
    Prunable,
    prune_by_pct,
    prune_by_rank,
    prune_by_threshold,
    random_prune_by_pct,
)
from src.sparsity.prunable import (
    apply_masks,
    calc_num_prunable_params,
    masks,
    prunable_layers,
)
from tests.support.training import ROOT

# what the README of ModelPruningLibrary prints for its model conv2
CONV2_LINES = """\
Before pruning:
Layer name: features.0. remaining/all: 832/832 = 1.0
Layer name: features.3. remaining/all: 51264/51264 = 1.0
Layer name: classifier.0. remaining/all: 6424576/6424576 = 1.0
Layer name: classifier.2. remaining/all: 127038/127038 = 1.0
Total: remaining/all: 6603710/6603710 = 1.0
After pruning:
Layer name: features.0. remaining/all: 752/832 = 0.9038461538461539
Layer name: features.3. remaining/all: 51264/51264 = 1.0
Layer name: classifier.0. remaining/all: 6424576/6424576 = 1.0
Layer name: classifier.2. remaining/all: 12760/127038 = 0.10044238731718069
Total: remaining/all: 6489352/6603710 = 0.9826827646883343
"""


class Conv2(Prunable, nn.Module):
    """The example of ModelPruningLibrary: two convolutions, two linear layers."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(3136, 2048), nn.ReLU(), nn.Linear(2048, 62))
        for parameter in self.parameters():  # one of 2^24 uniform numbers is zero
            parameter.data[parameter == 0] = 1e-3

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class Small(Prunable, nn.Module):
    """[2, 3, 3, 3] and [5, 7] weights, then one that the embedding has too."""

    def __init__(self, seed=1):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(11, 5)
        self.norm = nn.LayerNorm(7)
        self.conv = nn.Conv2d(3, 2, 3)
        self.linear = nn.Linear(7, 5)
        self.output = nn.Linear(5, 11, bias=False)
        self.output.weight = self.embedding.weight


def remaining(model):
    return [int(layer.weight.count_nonzero()) for layer in prunable_layers(model).values()]


def same(one, two):
    pairs = zip(one.state_dict().items(), two.state_dict().items())
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_readme_example_prints_the_same_lines(capsys):
    model = Conv2()
    print("Before pruning:")
    model.calc_num_prunable_params(display=True)
    print("After pruning:")
    model.prune_by_pct([0.1, 0, None, 0.9])
    counts = model.calc_num_prunable_params(display=True)
    assert capsys.readouterr().out == CONV2_LINES
    assert counts == (6489352, 6603710)
    assert model.calc_num_prunable_params(count_bias=False) == (6487146, 6601504)
    assert capsys.readouterr().out == ""


weights = st.sampled_from(["distinct", "equal", "few", "zeros"])
shares = st.lists(st.integers(0, 100).map(lambda n: n / 100), min_size=1, max_size=4)


def layer_with(kind, outputs, inputs, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(inputs, outputs).to(dtype)
    with torch.no_grad():
        values = torch.randn(outputs, inputs, generator=generator)
        if kind == "equal":
            values = values.sign()
        elif kind == "few":
            values = values.round()  # among them zeros
        elif kind == "zeros":
            values = torch.zeros_like(values)
        layer.weight.copy_(values)
    return layer


@settings(max_examples=150, deadline=None)
@given(
    weights, st.integers(1, 9), st.integers(1, 9), shares, st.booleans(), st.integers(0, 99)
)  # fmt: skip
def test_counts_are_exact_for_any_sequence_of_shares(kind, n, m, sequence, random, seed):
    layer = layer_with(kind, n, m, seed)
    expected = int(layer.weight.count_nonzero())
    for step, share in enumerate(sequence):
        before = layer.weight.detach().clone()
        if random:
            random_prune_by_pct(layer, share, seed + step)
        else:
            prune_by_pct(layer, share)
        percent = round(100 * share)
        expected -= percent * expected // 100
        assert remaining(layer) == [expected]
        kept = layer.weight.detach() != 0
        # zeros stay zero, the rest stays what it was
        assert torch.equal(layer.weight.detach(), before * kept)
        gone = before.abs()[~kept & (before != 0)]
        if not random and kept.any() and len(gone):
            assert gone.max() <= before.abs()[kept].min()


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(0, 99), st.data(),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)  # fmt: skip
def test_among_equal_magnitudes_the_first_go(n, m, seed, data, dtype):
    layer = layer_with("few", n, m, seed, dtype)
    before = layer.weight.detach().clone().double().flatten()
    rank = data.draw(st.integers(0, int(before.count_nonzero())))
    prune_by_rank(layer, rank)
    # Python's sort keeps the order of equal ones
    places = [i for i in range(n * m) if before[i] != 0]
    order = sorted(places, key=lambda i: abs(before[i]))
    expected = before.clone()
    expected[order[:rank]] = 0
    assert torch.equal(layer.weight.detach().double().flatten(), expected)


def test_half_twice_leaves_a_quarter_and_one_leaves_nothing():
    layer = nn.Linear(40, 25)
    assert remaining(prune_by_pct(layer, 0.5)) == [500]
    assert remaining(prune_by_pct(layer, 0.5)) == [250]
    assert remaining(prune_by_pct(layer, 1.0)) == [0]
    assert remaining(prune_by_pct(layer, 1)) == [0]
    assert layer.bias.count_nonzero() == 25


@pytest.mark.parametrize("share", [0.29, np.float32(0.29), Fraction(29, 100)])
def test_shares_are_taken_as_they_are_written(share):
    # 100 * 0.29 is 28.999999999999996 in floating point
    assert remaining(prune_by_pct(nn.Linear(10, 10), share)) == [71]


def test_what_memory_order_a_weight_has_makes_no_difference():
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(4, 3, 3, 3, generator=generator).round()
    one, two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    for layer in (one, two):
        layer.weight.data.copy_(values)
        prune_by_rank(layer, 37)
        random_prune_by_pct(layer, 0.3, seed=5)
    assert not two.weight.is_contiguous()
    assert torch.equal(one.weight, two.weight)


def test_each_layer_has_its_own_value_and_none_leaves_it():
    model = Small()
    before = copy.deepcopy(model)
    assert list(prunable_layers(model)) == ["conv", "linear", "output"]
    model.prune_by_rank([0, None, 10])
    assert remaining(model) == [54, 35, 45]
    assert torch.equal(model.conv.weight, before.conv.weight)
    model.prune_by_rank((4, 5, None))
    assert remaining(model) == [50, 30, 45]


def test_threshold_keeps_what_equals_it():
    layer = nn.Linear(4, 1)
    values = torch.tensor([[0.1, -0.2, 0.3, -0.05]])
    layer.weight.data.copy_(values)
    assert remaining(prune_by_threshold(layer, 0)) == [4]
    prune_by_threshold(layer, 0.2)  # float32's 0.2 is another number than Python's
    assert torch.equal(layer.weight, values * torch.tensor([0, 1, 1, 0]))
    half = nn.Linear(4, 1).bfloat16()
    half.weight.data.copy_(values)
    prune_by_threshold(half, 0.1)
    assert torch.equal(half.weight != 0, torch.tensor([[True, True, True, False]]))
    assert remaining(prune_by_threshold(half, 1e6)) == [0]
    double = nn.Linear(4, 1).double()
    nn.init.constant_(double.weight, 0.1)  # below float32's
    assert remaining(prune_by_threshold(double, 0.1)) == [4]


def test_rank_and_threshold_and_share_agree():
    one, two, three = Small(), Small(), Small()
    smallest_kept = [
        float(weight.abs().flatten().sort().values[weight.numel() // 5])
        for weight in (x.weight.detach() for x in prunable_layers(one).values())
    ]
    one.prune_by_pct(0.2)
    two.prune_by_rank([54 // 5, 35 // 5, 55 // 5])
    three.prune_by_threshold(smallest_kept)
    assert same(one, two) and same(one, three)


def test_random_choice_is_the_seeds_and_even():
    one, two, three = Small(), Small(), Small()
    random_prune_by_pct(one, 0.5, 7)
    random_prune_by_pct(two, 0.5, torch.Generator().manual_seed(7))
    random_prune_by_pct(three, 0.5, 8)
    assert same(one, two) and not same(one, three)
    torch.manual_seed(7)
    three = Small()
    torch.manual_seed(7)
    random_prune_by_pct(three, 0.5)  # the global generator
    assert same(one, three)
    times_kept = torch.zeros(3, 4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(600):
        layer = nn.Linear(4, 3)
        random_prune_by_pct(layer, 0.5, generator)
        times_kept += layer.weight != 0
    # standard deviation sqrt(600 / 4) = 12.2
    assert (times_kept - 300).abs().max() < 4 * 12.3


def test_tied_weights_count_once_and_stay_tied():
    model = Small()
    assert model.calc_num_prunable_params() == (56 + 40 + 55, 151)
    model.prune_by_pct([0, 0, 0.4])
    assert model.output.weight is model.embedding.weight
    assert model.calc_num_prunable_params() == (151 - 22, 151)
    twice = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    twice[2].weight = twice[0].weight
    assert list(prunable_layers(twice)) == ["0"]
    assert remaining(prune_by_pct(twice, [0.5])) == [8]
    twice = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    twice[1].bias = twice[0].bias
    assert calc_num_prunable_params(twice) == (36, 36)
    again = nn.Linear(4, 4)
    assert list(prunable_layers(nn.Sequential(again, again))) == ["0"]


def test_zero_biases_count_as_remaining():
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.bias)
    prune_by_pct(layer, 0.5)
    assert calc_num_prunable_params(layer) == (6 + 3, 12 + 3)
    assert calc_num_prunable_params(layer, count_bias=False) == (6, 12)


def test_masks_keep_zeros_through_training_with_momentum_and_decay():
    model = Conv2()
    model.prune_by_pct(0.9)
    kept = model.pruning_masks()
    names = ("features.0", "features.3", "classifier.0", "classifier.2")
    assert tuple(kept) == tuple(f"{name}.weight" for name in names)
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
        assert remaining(model) != remaining(before)  # the optimizer wrote over zeros
        model.apply_pruning_masks(kept)
        for name, mask in kept.items():
            weight = model.get_parameter(name)
            assert not weight[~mask].any()
            assert (weight != before.get_parameter(name))[mask].float().mean() > 0.9
    assert masks(nn.Linear(2, 3)).keys() == {"weight"}


def test_a_model_becomes_sparse_with_its_method():
    model = Conv2().eval().prune_by_pct(0.9)
    sparse = model.to_sparse(trainable=True)
    text = repr(sparse)
    for layer in (
        "(3): SparseConv2d(32, 64, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2)",
        "(2): SparseLinear(in_features=2048, out_features=62, bias=True)",
    ):
        assert layer in text
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(sparse(images), model(images), atol=1e-5, rtol=1e-4)
    with pytest.raises(SparsityError, match="dense again with to_dense"):
        prune_by_pct(sparse, 0.5)


def test_layers_that_store_their_values_count_as_the_dense_ones(capsys):
    model = Conv2().prune_by_pct(0.9)
    expected = model.calc_num_prunable_params(display=True)
    lines = capsys.readouterr().out
    for layers in ([nn.Linear], [nn.Conv2d], [nn.Linear, nn.Conv2d]):
        sparse = model.to_sparse(layers=layers)
        assert sparse.calc_num_prunable_params(display=True) == expected
        assert capsys.readouterr().out == lines
        weights = sparse.calc_num_prunable_params(count_bias=False)
        assert weights == model.calc_num_prunable_params(count_bias=False)
    with torch.no_grad():
        sparse.classifier[2].values[:3] = 0  # stored, and pruned all the same
    assert sparse.calc_num_prunable_params() == (expected[0] - 3, expected[1])


def test_pruning_between_forward_and_backward_is_noticed_by_autograd():
    layer = nn.Linear(7, 5)
    loss = layer(torch.randn(2, 7, requires_grad=True)).sum()
    prune_by_pct(layer, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert layer.weight.is_leaf and layer.weight.requires_grad


REFUSED = [
    (prune_by_pct, 1.5, "pct = 1.5: must be a number from 0 to 1"),
    (prune_by_pct, -0.1, "pct = -0.1: must be"),
    (prune_by_pct, math.nan, "pct = nan: must be"),
    (prune_by_pct, None, "pct = None: must be"),
    (prune_by_pct, True, "pct = True: must be"),
    (prune_by_pct, "0.5", "pct = '0.5': must be"),
    (prune_by_pct, [0.1, 0.2], "pct: 2 values for 3 prunable layers (conv, linear, output)"),
    (prune_by_pct, [0.1, None, 2], "pct[2] for layer output = 2: must be"),
    (random_prune_by_pct, [0.1, math.inf, 0], "pct[1] for layer linear = inf: must be"),
    (random_prune_by_pct, [], "pct: 0 values for 3 prunable layers"),
    (prune_by_rank, 0.5, "rank = 0.5: must be a whole number"),
    (prune_by_rank, -1, "rank = -1: must be a whole number"),
    (prune_by_rank, math.inf, "rank = inf: must be a whole number"),
    (prune_by_rank, 10**400, "only 54 of its weights remain"),
    (prune_by_rank, [1, 36, 2], "rank = 36, layer linear: only 35 of its weights remain"),
    (prune_by_threshold, -0.5, "threshold = -0.5: must be a number of at least 0"),
    (prune_by_threshold, math.nan, "threshold = nan: must be"),
    (prune_by_threshold, [1, None, math.inf], "threshold[2] for layer output = inf: must be"),
]


@pytest.mark.parametrize("call, value, message", REFUSED)
def test_impossible_values_are_refused_before_any_change(call, value, message):
    model, untouched = Small(), Small()
    with pytest.raises(SparsityError) as error:
        call(model, value)
    assert message in str(error.value)
    assert same(model, untouched)


@pytest.mark.parametrize("seed", [True, -1, 2**64, 0.5, "1"])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(SparsityError, match="seed = "):
        random_prune_by_pct(Small(), 0.5, seed)


def test_nan_is_refused_where_it_would_be_pruned_only():
    model = Small()
    model.linear.weight.data[2, 3] = math.nan
    untouched = copy.deepcopy(model)
    for call in (prune_by_pct, prune_by_threshold, prune_by_rank, random_prune_by_pct):
        with pytest.raises(SparsityError, match="layer linear: its weight has NaN"):
            call(model, 1)
    assert torch.equal(model.conv.weight, untouched.conv.weight)
    prune_by_pct(model, [0.5, None, 0.5])
    assert model.conv.weight.count_nonzero() == 27


@pytest.mark.parametrize(
    "model, message",
    [
        (
            nn.Sequential(nn.ReLU(), nn.LayerNorm(3)),
            "model Sequential: has no layer of Linear, Conv2d",
        ),
        (nn.Sequential(nn.LazyLinear(3)), "layer 0: its weight has no values yet"),
        ([nn.Linear(3, 3)], "model: a list is none; give a torch.nn.Module"),
        (nn.Linear(3, 3, device="meta"), "layer Linear: its weight has no values yet"),
        (
            nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))),
            "layer 0: its weight is computed from other tensors",
        ),
    ],
)
def test_models_that_cannot_be_pruned_are_refused(model, message):
    for call in (lambda m: prune_by_pct(m, 0.5), calc_num_prunable_params):
        with pytest.raises(SparsityError, match=message):
            call(model)


def test_the_package_does_without_fairseq(monkeypatch):
    """As docs/sparsity.md says, with src/ on the path."""
    before = set(sys.modules)
    monkeypatch.setitem(sys.modules, "fairseq", None)
    monkeypatch.setitem(sys.modules, "src", None)
    monkeypatch.syspath_prepend(ROOT / "src")
    try:
        for path in (ROOT / "src" / "sparsity").glob("*.py"):
            importlib.import_module(f"sparsity.{path.stem}".removesuffix(".__init__"))
        layer = importlib.import_module("sparsity").prune_by_pct(nn.Linear(4, 4), 0.5)
        assert layer.weight.count_nonzero() == 8
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "sparsity":
                del sys.modules[name]


def test_masks_of_another_model_are_refused():
    model, untouched = Small(), Small()
    for kept, message in (
        ({**masks(model), "other.weight": torch.ones(2).bool()}, "mask other.weight: the"),
        ({"linear.weight": torch.zeros(7, 5).bool()}, r"mask linear.weight: is torch.bool \(7"),
        ({"linear.weight": torch.zeros(5, 7)}, "mask linear.weight: is torch.float32"),
        ({"linear.weight": [True]}, "mask linear.weight: a list is none"),
    ):
        with pytest.raises(SparsityError, match=message):
            apply_masks(model, kept)
    assert same(model, untouched)
