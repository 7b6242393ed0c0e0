"""Sparse layers compute and learn as the dense ones do whose zeros are held at zero."""

import copy
import io
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.sparsity.errors import SparsityError
from src.sparsity.execution import stored, timing
from src.sparsity.execution.convolution import CONVOLUTIONS
from src.sparsity.execution.layers import (
    DenseConv2d,
    DenseLinear,
    SparseConv2d,
    SparseLinear,
    to_dense,
    to_sparse,
)
from src.sparsity.execution.layouts import LAYOUTS
from src.sparsity.execution.optim import SGD
from src.sparsity.magnitude import masks, prune_by_pct
from tests.support.sparsity import check_replicas

CPU = tuple(name for name in LAYOUTS if name != "semi_structured")


def prune(layer: nn.Module, density: float) -> nn.Module:
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < density)
    return layer


def linear(density=0.3, outputs=40, inputs=24, bias=True, dtype=torch.float64):
    return prune(nn.Linear(inputs, outputs, bias, dtype=dtype), density)


class Net(nn.Module):
    """Two convolutions and two linear layers, for images ``[B, 1, 12, 12]``."""

    def __init__(self, linear=DenseLinear, convolution=DenseConv2d):
        super().__init__()
        self.features = nn.Sequential(
            convolution(1, 8, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2)),
            nn.ReLU(),
            convolution(8, 6, kernel_size=(3, 3), stride=(2, 2)),
        )
        self.classifier = nn.Sequential(linear(150, 64), nn.ReLU(), linear(64, 10))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def net(density=0.3, dtype=torch.float64) -> Net:
    torch.manual_seed(1)
    model = Net().to(dtype)
    for module in model.modules():
        if hasattr(module, "weight"):
            prune(module, density)
    return model


@pytest.fixture(params=["sparse", "dense"])
def training(request, monkeypatch):
    """Stored values alone are multiplied in training, or the dense weight."""
    limit = 1.0 if request.param == "sparse" else -1.0
    monkeypatch.setattr(stored, "_SPARSE_TRAINING", limit)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (7, 24), (0, 24), (3, 5, 24), (2, 1, 3, 24)])
def test_linear_learns_what_the_dense_layer_does(training, density, bias, shape):
    torch.manual_seed(1)
    dense = linear(density, bias=bias)
    sparse = SparseLinear.from_dense(dense)
    results = []
    x = torch.randn(shape, dtype=torch.float64)
    for layer in (dense, sparse):
        given = x.clone().requires_grad_()
        y = layer(given)
        (y * torch.linspace(0, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
        results.append((y.detach(), given.grad, layer))
    (y, by_x, _), (found, found_by_x, _) = results
    torch.testing.assert_close(found, y)
    torch.testing.assert_close(found_by_x, by_x)
    kept = dense.weight.flatten() != 0
    torch.testing.assert_close(sparse.values.grad, dense.weight.grad.flatten()[kept])
    if bias:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad)


def test_gradients_of_linear(training):
    torch.manual_seed(1)
    layer = SparseLinear.from_dense(linear(0.3, 6, 5))
    layer.transposed_for_training()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def function(x, values, bias):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, (x, layer.values, layer.bias))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("shape", [(), (2,), (2, 5), (0, 2)])
def test_linear_without_inputs_or_outputs_is_as_the_dense_layer(training, sizes, shape):
    dense = nn.Linear(*sizes)
    sparse = SparseLinear.from_dense(dense)
    x = torch.randn(*shape, sizes[0], requires_grad=True)
    for mode in (True, False):
        y = sparse.train(mode)(x)
        assert torch.equal(y, dense(x))
        with torch.no_grad():
            assert torch.equal(sparse(x), dense(x))
    sparse(x).sum().backward()
    dense(x).sum().backward()
    assert torch.equal(sparse.bias.grad, dense.bias.grad)


@pytest.mark.parametrize("shape", [(12,), (4, 12), (2, 4, 12), (2, 2, 48), (24, 1)])
@pytest.mark.parametrize("mode", [True, False])
def test_inputs_of_another_width_are_refused(training, mode, shape):
    sparse = SparseLinear.from_dense(linear()).train(mode)
    with pytest.raises(SparsityError, match=f"{shape[-1]} numbers .* takes 24"):
        sparse(torch.randn(shape, dtype=torch.float64))
    with torch.no_grad(), pytest.raises(SparsityError, match="takes 24"):
        sparse(torch.randn(shape, dtype=torch.float64))


def test_a_compiled_model_computes_and_learns_the_same():
    torch.manual_seed(1)
    dense = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4)
    )
    prune(dense[2], 0.05)
    sparse = to_sparse(dense)
    compiled = torch.compile(sparse, backend="eager")
    x = torch.randn(4, 3, 10, 10)
    for mode in (False, True, False):
        compiled.train(mode)
        with torch.set_grad_enabled(mode):
            y = compiled(x)
        torch.testing.assert_close(y, dense(x))
        if mode:
            y.sum().backward()
            dense(x).sum().backward()
    kept = dense[2].weight != 0
    torch.testing.assert_close(sparse[2].values.grad, dense[2].weight.grad[kept])


CONVS = [
    dict(in_channels=4, out_channels=6, kernel_size=3),
    dict(in_channels=4, out_channels=6, kernel_size=(3, 2), stride=(2, 1), padding=(2, 1)),
    dict(in_channels=4, out_channels=6, kernel_size=1, bias=False),
    dict(in_channels=4, out_channels=6, kernel_size=1, stride=2),
    dict(in_channels=4, out_channels=6, kernel_size=1, padding=1),
    dict(in_channels=4, out_channels=6, kernel_size=3, dilation=2, padding="same"),
    dict(in_channels=4, out_channels=6, kernel_size=(2, 3), padding="same"),
    dict(in_channels=4, out_channels=6, kernel_size=2, padding="valid"),
    dict(in_channels=4, out_channels=6, kernel_size=3, padding=1, padding_mode="reflect"),
    dict(in_channels=4, out_channels=6, kernel_size=2, padding=1, padding_mode="circular"),
    dict(in_channels=4, out_channels=6, kernel_size=3, groups=2, padding=1),
    dict(in_channels=4, out_channels=8, kernel_size=3, groups=4, stride=2),
]


@pytest.mark.parametrize("layout", [None, *CONVOLUTIONS])
@pytest.mark.parametrize("settings", CONVS)
def test_convolution_is_that_of_the_dense_layer(settings, layout):
    torch.manual_seed(1)
    dense = prune(nn.Conv2d(**settings, dtype=torch.float64), 0.3)
    with torch.no_grad():
        dense.weight[1] = 0
        if dense.groups == 1:
            dense.weight[:, 2] = 0
    sparse = SparseConv2d.from_dense(dense)
    sparse.force(layout)
    for size in [(2, 4, 9, 8), (4, 9, 8), (0, 4, 9, 8)]:
        x = torch.randn(size, dtype=torch.float64)
        y = dense(x)
        for mode in (True, False):
            sparse.train(mode)
            with torch.no_grad():
                torch.testing.assert_close(sparse(x), y)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    (sparse(x) ** 2).sum().backward()
    (dense(x) ** 2).sum().backward()
    kept = dense.weight.flatten() != 0
    torch.testing.assert_close(sparse.values.grad, dense.weight.grad.flatten()[kept])
    back = sparse.to_dense()
    assert repr(back) == repr(dense) and torch.equal(back.weight, dense.weight)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_convolution_without_zeros_and_without_weights(density):
    dense = prune(nn.Conv2d(3, 4, 3), density)
    sparse = SparseConv2d.from_dense(dense).eval()
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x))


@pytest.mark.parametrize("layout", [None, *CPU])
def test_linear_evaluates_as_the_dense_layer(layout):
    torch.manual_seed(1)
    dense = linear(0.2)
    sparse = SparseLinear.from_dense(dense).eval()
    sparse.force(layout)
    with torch.no_grad():
        for shape in [(24,), (7, 24), (0, 24), (3, 5, 24), (400, 24)]:
            x = torch.randn(shape, dtype=torch.float64)
            torch.testing.assert_close(sparse(x), dense(x))
    if layout is not None:
        assert set(sparse.optimize((1, 500)).values()) == {layout}


@torch.no_grad()
def written_unseen(tensor: torch.Tensor) -> None:
    """Double a tensor as fused optimizers do, without a new version."""
    version = tensor._version
    tensor.data.mul_(2)
    assert tensor._version == version


@pytest.mark.parametrize(
    "change",
    ["train", "eval", "load", "seen", "gradients", "type", "replaced"],
)
def test_changed_values_are_used(change):
    torch.manual_seed(1)
    sparse = SparseLinear.from_dense(linear(0.2)).eval()
    x = torch.randn(3, 24, dtype=torch.float64)
    other = SparseLinear.from_dense(linear(0.4))

    def evaluated():
        with torch.no_grad():
            return sparse(x)

    before = evaluated()
    if change == "train":
        sparse.train()
        written_unseen(sparse.values)
        torch.testing.assert_close(evaluated(), F.linear(x, sparse.weight, sparse.bias))
        sparse.eval()
    elif change == "eval":
        written_unseen(sparse.values)
        sparse.eval()
    elif change == "load":
        sparse.load_state_dict(other.state_dict())
    elif change == "seen":
        with torch.no_grad():
            sparse.values.mul_(2)
    elif change == "gradients":
        sparse(x)
        written_unseen(sparse.values)
    elif change == "type":
        sparse.float()
        x = x.float()
    else:
        sparse.bias = nn.Parameter(sparse.bias.detach() + 1)
    after = evaluated()
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, F.linear(x, sparse.weight, sparse.bias))


def test_evaluating_again_times_nothing_anew(monkeypatch):
    sparse = SparseLinear.from_dense(linear(0.1, 128, 128)).eval()
    names = sparse.optimize((1, 32))
    monkeypatch.setattr(timing, "_measure", pytest.fail)
    sparse.train().eval()
    with torch.no_grad():
        sparse(torch.randn(32, 128, dtype=torch.float64))
    assert sparse.optimize((1, 32)) == names


@pytest.mark.parametrize("density", [0.0, 0.1, 0.9])
def test_a_state_dict_brings_its_number_of_values(density):
    torch.manual_seed(1)
    source, target = to_sparse(net(density)), to_sparse(net(0.3))
    parameter = target.classifier[0].values
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert target.classifier[0].values is parameter
    x = torch.randn(2, 1, 12, 12, dtype=torch.float64)
    for mode in (True, False):
        assert torch.equal(target.train(mode)(x), source.train(mode)(x))
    target(x).sum().backward()
    target.load_state_dict(to_sparse(net(0.5)).state_dict())
    assert parameter.grad is None  # that of another number of values
    empty = SparseLinear(64, 10, dtype=torch.float64)
    empty.load_state_dict(source.classifier[2].state_dict())
    assert torch.equal(empty.to_dense().weight, source.classifier[2].to_dense().weight)


@pytest.mark.parametrize(
    "name, spoil, message",
    [
        ("col_indices", lambda t: t[:-1], "another length"),
        ("crow_indices", lambda t: t[:-1], "another length"),
        ("crow_indices", lambda t: t + 1, "do not ascend from 0"),
        ("col_indices", lambda t: t + 24, "are not in 0 to 23"),
        ("col_indices", lambda t: t - 24, "are not in 0 to 23"),
        ("col_indices", lambda t: t * 0, "do not ascend within"),
        ("values", lambda t: t[1:], "another length"),
    ],
)
def test_a_damaged_state_dict_is_refused(name, spoil, message):
    layer = SparseLinear.from_dense(linear(0.5))
    state = layer.state_dict()
    state[name] = spoil(state[name])
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_copies_and_pickles_are_the_same_function():
    model = to_sparse(net(0.1)).eval()
    x = torch.randn(2, 1, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        y = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), y)
            other.classifier[0].values.zero_()
            assert not torch.equal(other(x), y)
        assert torch.equal(model(x), y)


def test_dense_and_back_is_exact():
    model = net(0.3)
    sparse = to_sparse(model)
    assert not any(isinstance(m, (nn.Linear, nn.Conv2d)) for m in sparse.modules())
    assert sum(p.numel() for p in sparse.parameters()) == sum(
        int((p != 0).sum()) for p in model.parameters()
    )
    back = to_dense(sparse)
    for (name, expected), (_, found) in zip(model.state_dict().items(), back.state_dict().items()):
        assert torch.equal(expected, found), name
    assert type(model.features[0]) is DenseConv2d
    assert to_sparse(model, inplace=True) is model
    assert to_dense(model, inplace=True) is model
    assert type(to_sparse(linear())) is SparseLinear


def test_layers_take_over_what_is_frozen_and_the_mode_and_no_memory():
    for frozen in ("weight", "bias"):
        dense = linear().eval()
        getattr(dense, frozen).requires_grad_(False)
        sparse = SparseLinear.from_dense(dense)
        back = sparse.to_dense()
        assert not sparse.training and not back.training
        assert sparse.values.requires_grad == back.weight.requires_grad == (frozen == "bias")
        assert sparse.bias.requires_grad == back.bias.requires_grad == (frozen == "weight")
        with torch.no_grad():
            sparse.bias.add_(1)
        assert torch.equal(back.bias, dense.bias)


def test_layers_print_as_in_model_pruning_library():
    model = nn.Sequential(
        DenseConv2d(1, 32, kernel_size=(5, 5), padding=(2, 2)), DenseLinear(3136, 2048)
    )
    shown = "(1, 32, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2)"
    assert repr(model[0]) == f"DenseConv2d{shown})"
    assert repr(model[1]) == "DenseLinear(in_features=3136, out_features=2048, bias=True)"
    sparse = to_sparse(model)
    assert repr(sparse[0]) == f"SparseConv2d{shown}, bias=True)"
    assert repr(sparse[1]) == "SparseLinear(in_features=3136, out_features=2048, bias=True)"


def test_what_cannot_be_replaced_stays_and_is_named(caplog):
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(24, 24)
            self.tied = nn.Linear(24, 24, bias=False)
            self.tied.weight = self.embedding.weight
            self.scaled = Scaled(24, 24)
            self.hooked = nn.Linear(24, 24)
            self.hooked.register_forward_pre_hook(lambda m, x: None)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(24, 24))
            self.plain = nn.Linear(24, 24)
            self.again = self.plain

        def forward(self, x):
            for part in (self.tied, self.scaled, self.hooked, self.normed, self.plain):
                x = part(x)
            return self.again(x)

    torch.manual_seed(1)
    model = Model().double()
    x = torch.randn(3, 24, dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        sparse = to_sparse(model)
    torch.testing.assert_close(sparse(x), model(x))
    assert sparse.tied.weight is sparse.embedding.weight
    assert type(sparse.plain) is SparseLinear and sparse.again is sparse.plain
    for part in ("tied (shares", "scaled (is a Scaled", "hooked (has hooks", "normed"):
        assert part in caplog.text
    assert "plain" not in caplog.text
    listed = to_sparse(model, layers=(Scaled,))
    assert type(listed.scaled) is SparseLinear and type(listed.plain) is nn.Linear
    with pytest.raises(SparsityError, match="Embedding"):
        to_sparse(model, layers=(nn.Embedding,))


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda m: m.register_forward_hook(lambda *a: None), "has hooks"),
        (lambda m: m.register_full_backward_hook(lambda *a: None), "has hooks"),
        (lambda m: m.register_full_backward_pre_hook(lambda *a: None), "has hooks"),
        (lambda m: setattr(m, "forward", lambda x: x), "has hooks"),
        (lambda m: m.add_module("scale", nn.Identity()), "has more than weight and bias"),
        (lambda m: m.register_buffer("seen", torch.ones(1)), "has more than weight"),
    ],
)
def test_layers_with_something_added_stay(change, reason, caplog):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    change(model[0])
    sparse = to_sparse(model)
    assert [type(layer) for layer in sparse] == [nn.Linear, SparseLinear]
    assert f"left dense: 0 ({reason}" in caplog.text


def test_a_layout_is_chosen_anew_after_another_demand(monkeypatch):
    timed = []

    def measure(products, x, budget):
        timed.append(list(products))
        return {name: [1.0 + (name == "dense")] * 9 for name in products}

    monkeypatch.setattr(timing, "_measure", measure)
    torch.manual_seed(1)
    sparse = SparseLinear.from_dense(linear(0.05, 128, 128)).eval().requires_grad_(False)
    sparse.force("dense")
    assert sparse.optimize() == {24: "dense"} and not timed
    sparse.force(None)
    assert sparse.optimize() != {24: "dense"} and len(timed) == 1
    sparse.optimize()
    assert len(timed) == 1
    sparse.optimize(dense=lambda weight, bias: lambda x: F.linear(x, weight, bias))
    assert len(timed) == 2


def test_for_inference_layers_stay_dense_where_sparse_is_not_faster(monkeypatch):
    torch.manual_seed(1)
    model = nn.Sequential(linear(0.02, 512, 512), linear(1.0, 512, 512), nn.Conv2d(2, 2, 1))
    sparse = to_sparse(model, rows=(32, 64), trainable=False)
    assert type(sparse[0]) is SparseLinear and not sparse.training
    assert not any(p.requires_grad for p in sparse[0].parameters())
    assert type(sparse[1]) is nn.Linear
    assert type(sparse[2]) is SparseConv2d
    images = {"2": torch.randn(1, 2, 4, 4)}
    assert type(to_sparse(model, 32, False, images=images)[2]) is nn.Conv2d
    x = torch.randn(32, 512, dtype=torch.float64)
    torch.testing.assert_close(sparse[:2](x), model[:2](x))


@pytest.mark.parametrize("rows", [0, -1, [], [32, 0], None, "32", 1.5])
def test_numbers_of_rows_are_checked(rows):
    layer = SparseLinear(2, 2)
    for call in (lambda: to_sparse(linear(), rows), lambda: layer.optimize(rows)):
        with pytest.raises(SparsityError, match="rows: .* is not valid; give an int"):
            call()


def test_one_class_is_as_good_as_a_list_and_no_model_is_refused():
    sparse = to_sparse(net(0.3), layers=nn.Conv2d)
    assert type(sparse.features[2]) is SparseConv2d
    assert type(sparse.classifier[0]) is DenseLinear
    with pytest.raises(SparsityError, match="model: a list is none"):
        to_sparse([linear()])


def test_images_of_no_convolution_are_refused():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Linear(4, 4))
    for name in ("typo", "1"):
        with pytest.raises(SparsityError, match=f"images: '{name}' is no .*it has '0'"):
            to_sparse(model, trainable=False, images={name: torch.randn(1, 2, 4, 4)})


def test_the_callers_dense_product_is_used():
    seen = []

    def factory(weight, bias):
        def product(x):
            seen.append(len(x))
            return F.linear(x, weight, bias)

        return product

    dense = linear(1.0)
    sparse = SparseLinear.from_dense(dense).eval().requires_grad_(False)
    assert sparse.optimize(3, factory) == {4: "dense"}
    x = torch.randn(7, 24, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x))
    assert seen == [7]


def test_autocast_computes_in_its_type():
    dense = linear(0.3, dtype=torch.float32)
    sparse = SparseLinear.from_dense(dense)
    x = torch.randn(5, 24, requires_grad=True)
    for mode in (True, False):
        sparse.train(mode)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = sparse(x)
            assert torch.equal(y, dense(x)) and y.dtype == torch.bfloat16
        y.float().sum().backward()
    assert sparse.values.grad is not None
    dense = nn.Conv2d(2, 3, 3)
    sparse, x = SparseConv2d.from_dense(dense).eval(), torch.randn(1, 2, 5, 5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sparse(x), dense(x)) and sparse(x).dtype == torch.bfloat16


def test_the_weight_of_a_sparse_layer_can_be_read_and_differentiated():
    dense = linear(0.3)
    sparse = SparseLinear.from_dense(dense)
    assert torch.equal(sparse.weight, dense.weight)
    (sparse.weight**2).sum().backward()
    torch.testing.assert_close(sparse.values.grad, 2 * sparse.values.detach())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_held_zeros_stay_zero_with_any_optimizer(optimizer):
    torch.manual_seed(1)
    model = net(0.3)
    state = set(model.state_dict())
    for module in (model.features[0], model.classifier[0]):
        module.hold_zeros()
    assert set(model.state_dict()) == state
    optimizer = optimizer(model.parameters(), lr=0.1, weight_decay=0.1)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 12, 12, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    for name in ("features.0.weight", "classifier.0.weight"):
        after = model.state_dict()[name]
        assert torch.equal(after == 0, before[name] == 0) and not after.equal(before[name])
    free, held = model.classifier[2].weight, model.classifier[0].weight
    assert free.count_nonzero() > before["classifier.2.weight"].count_nonzero()
    model.classifier[0].hold_zeros(False)
    model(torch.randn(4, 1, 12, 12, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert held.count_nonzero() > before["classifier.0.weight"].count_nonzero()


def test_held_zeros_stay_zero_after_momentum_of_before():
    torch.manual_seed(1)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def step():
        optimizer.zero_grad()
        model(torch.randn(4, 1, 12, 12)).square().sum().backward()
        optimizer.step()

    step()
    prune_by_pct(model, 0.5)
    found = masks(model)
    for module in model.modules():
        if hasattr(module, "hold_zeros"):
            module.hold_zeros()
    readers = (
        lambda: masks(model),
        lambda: {k: v != 0 for k, v in model.state_dict().items() if k in found},
        lambda: {k: v != 0 for k, v in to_dense(to_sparse(model)).state_dict().items()},
        lambda: masks(prune_by_pct(model, 0)),
    )
    for read in readers:
        step()
        kept = read()
        assert all(torch.equal(kept[name], found[name]) for name in found)
    layer = model.classifier[2]
    x, weight = torch.randn(2, 64), found["classifier.2.weight"]
    step()
    assert layer.weight[~weight].any()  # until it is read
    expected = F.linear(x, layer.weight * weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    layer.hold_zeros()
    step()
    model.load_state_dict({}, strict=False)
    assert all(torch.equal(mask, found[name]) for name, mask in masks(model).items())
    assert type(to_sparse(model).classifier[2]) is SparseLinear
    # zeros of a state dict are the ones held from then on
    other = {k: v.flip(0) for k, v in model.state_dict().items()}
    model.load_state_dict(other)
    step()
    state = model.state_dict()
    assert all(torch.equal(state[k] != 0, other[k] != 0) for k in found)


SETTINGS = [
    dict(),
    dict(momentum=0.9),
    dict(weight_decay=0.01),
    dict(momentum=0.9, weight_decay=0.01),
    dict(momentum=0.9, weight_decay=0.01, nesterov=True),
]


def test_sgd_goes_on_from_a_state_of_torchs():
    layer = linear(0.3)
    theirs = torch.optim.SGD(layer.parameters(), lr=0.02, momentum=0.9)
    layer(torch.randn(3, 24, dtype=torch.float64)).sum().backward()
    theirs.step()
    prune_by_pct(layer, 0.5)
    kept = masks(layer)["weight"]
    ours = SGD(layer.parameters(), lr=1)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == 0.02 and ours.param_groups[0]["momentum"] == 0.9
    for optimizer in (ours, pickle.loads(pickle.dumps(ours))):
        optimizer.step()
    assert torch.equal(masks(layer)["weight"], kept)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_sgd_equals_that_of_torch_with_masked_gradients(settings, kind):
    start = net(0.3)
    masks = [p.detach() != 0 if p.dim() > 1 else None for p in start.parameters()]
    reference = copy.deepcopy(start)
    model = to_sparse(start) if kind == "sparse" else copy.deepcopy(start)
    ours = SGD(model.parameters(), lr=0.02, **settings)
    theirs = torch.optim.SGD(reference.parameters(), lr=0.02, **settings)
    torch.manual_seed(2)
    for _ in range(20):
        x = torch.randn(4, 1, 12, 12, dtype=torch.float64)
        for module, optimizer in ((model, ours), (reference, theirs)):
            optimizer.zero_grad()
            module(x).square().mean().backward()
        for parameter, mask in zip(reference.parameters(), masks):
            if mask is not None:
                parameter.grad.mul_(mask)
        ours.step()
        theirs.step()
    found = to_dense(model) if kind == "sparse" else model
    for (name, parameter), expected in zip(found.named_parameters(), reference.parameters()):
        if kind == "dense":
            assert torch.equal(parameter, expected), name
        else:
            torch.testing.assert_close(parameter, expected, atol=1e-12, rtol=0)
    assert not torch.equal(expected, list(start.parameters())[-1])


def test_sgd_forgets_the_momentum_of_what_is_pruned_on_the_way():
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(4, 4))
    optimizer = SGD([weight], lr=0.1, momentum=0.9)
    for step in range(4):
        weight.grad = torch.ones(4, 4)
        if step == 2:
            with torch.no_grad():
                weight[1] = 0
        optimizer.step()
    assert not weight[1].any() and weight[0].all()
    assert not optimizer.state[weight]["momentum_buffer"][1].any()


def test_sgd_moves_biases_and_stored_values_that_are_zero():
    layer = SparseLinear.from_dense(linear(0.3))
    with torch.no_grad():
        layer.values.zero_()
        layer.bias.zero_()
    optimizer = SGD(layer.parameters(), lr=0.1)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert layer.values.all() and layer.bias.all()


def test_sgd_refuses_sparse_gradients_with_what_to_do():
    embedding = nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(SparsityError, match="sparse tensor; make its layer with sparse=F"):
        SGD(embedding.parameters(), lr=0.1).step()


def test_sgd_resumes_and_can_let_zeros_grow():
    def step(weight, optimizer):
        weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()

    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = SGD([weight], lr=0.1, momentum=0.9)
    step(weight, optimizer)
    other = nn.Parameter(weight.detach().clone())
    resumed = SGD([other], lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(weight, optimizer)
    step(other, resumed)
    assert torch.equal(weight, other)
    zero = nn.Parameter(torch.zeros(2, 2))
    step(zero, SGD([zero], lr=0.1))
    assert not zero.any()
    step(zero, SGD([{"params": [zero], "keep_zeros": False}], lr=0.1))
    assert zero.all()


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(lr=-1), "lr = -1"),
        (dict(lr="0.1"), "lr = 0.1: must be a number"),
        (dict(momentum=None), "momentum = None"),
        (dict(momentum=-0.1), "momentum = -0.1"),
        (dict(weight_decay=float("nan")), "weight_decay = nan"),
        (dict(nesterov=True), "nesterov = True: needs a momentum"),
    ],
)
def test_sgd_checks_its_settings(settings, message):
    with pytest.raises(SparsityError, match=message):
        SGD([nn.Parameter(torch.ones(2))], **settings)


def test_forced_layouts_are_checked():
    for layer in (SparseLinear(2, 2), SparseConv2d(2, 2, 1)):
        with pytest.raises(SparsityError, match="layout coo: is none of"):
            layer.force("coo")
    layer = SparseLinear(2, 2).eval().requires_grad_(False)
    layer.force("semi_structured")
    with pytest.raises(SparsityError, match="CUDA only"):
        layer(torch.ones(1, 2))


def test_a_layer_that_was_compiled_alone_is_replaced_for_its_wrapper_too():
    model = nn.Sequential(torch.compile(linear(0.3), backend="eager"), nn.ReLU())
    x = torch.randn(3, 24, dtype=torch.float64)
    sparse = to_sparse(model)
    sparse(x).sum().backward()
    assert all(p.grad is not None for p in sparse.parameters())
    torch.testing.assert_close(to_dense(sparse)(x), model(x))


def test_a_weight_without_values_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta"))
    with pytest.raises(SparsityError, match="layer 1: its weight has no values yet"):
        to_sparse(model, inplace=True)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_replicas_of_data_parallel_compute_and_learn_the_same(training, learning, monkeypatch):
    model = to_sparse(net(0.3))
    x = torch.randn(4, 1, 12, 12, dtype=torch.float64)
    model.train(training)
    check_replicas(model, x, learning, monkeypatch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False])
def test_traced_and_exported_layers_compute_the_same(training):
    model = to_sparse(net(0.3)).train(training)
    x, other = torch.randn(2, 4, 1, 12, 12, dtype=torch.float64)
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            traced = torch.jit.trace(model, x)
            exported = torch.export.export(model, (x,)).module()
            expected = model(other)
            for made in (traced, exported):
                torch.testing.assert_close(made(other), expected)


def test_masks_of_torchs_own_pruning_are_to_be_made_permanent_first():
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU())
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    for inplace in (False, True):
        with pytest.raises(SparsityError, match="layer 0: .*prune.remove"):
            to_sparse(model, inplace=inplace)
    x = torch.randn(3, 9)
    expected = model(x)
    prune.remove(model[0], "weight")
    sparse = to_sparse(model)
    assert sparse[0].values.numel() == 36
    torch.testing.assert_close(sparse(x), expected)
