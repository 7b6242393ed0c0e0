"""Pruning while training: scores, counts, masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from src.sparsity.errors import SparsityError
from src.sparsity.pruning.hooks import Pruning
from src.sparsity.pruning.scores import SCORES
from tests.support.sparsity import adam, adamw, backward, network, removed, sgd, start, train

FEW = settings(max_examples=20, deadline=None)
PATTERNS = ["1x1", "4x1", "2x3", "channelx1", "1xchannel", "2:4", "1:4"]


# the formulas, of the gradients of three steps
FORMULAS = {
    "magnitude": lambda w, g: w[2].abs(),
    "snip": lambda w, g: (w[2] * g[2]).abs(),
    "snip_momentum": lambda w, g: (
        0.81 * (w[0] * g[0]).abs() + 0.9 * (w[1] * g[1]).abs() + (w[2] * g[2]).abs()
    ),
    "grad": lambda w, g: (g[0] + g[1] + g[2]).abs(),
    "taylor": lambda w, g: (w[0] * g[0] + w[1] * g[1] + w[2] * g[2]).abs(),
    "connectivity": lambda w, g: -(w[0] * g[0] + w[1] * g[1] + w[2] * g[2]),
    "fisher": lambda w, g: (w[0] * g[0]) ** 2 + (w[1] * g[1]) ** 2 + (w[2] * g[2]) ** 2,
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("scale", [1.0, 1 / 64])
def test_scores_equal_their_formulas(name, scale):
    """Also with gradients that an optimizer would still have to divide by 64."""
    layer = nn.Linear(2, 2, bias=False).double()
    pruning = start(
        layer, prune_type=name, pattern="1x1", target_sparsity=0.5, start_step=9, end_step=9
    )
    if name == "snip":  # looks at no step but that of a prune
        pruning.update_items_for_all_pruners(start_step=2, end_step=9)
    weights, gradients = [], []
    for step in range(3):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]) + step)
        weights.append(layer.weight.detach().clone())
        true = torch.tensor([[0.5, -1.0], [0.25, 4.0]], dtype=torch.float64) * (2 - step)
        gradients.append(true)
        layer.weight.grad = true / scale
        found = pruning.pruners[0].scores
        if name == "snip" and step == 2:
            found.forget = lambda everything=False: None
        pruning.on_before_optimizer_step(gradient_scale=scale)
        if step < 2:
            pruning.on_after_optimizer_step()
    expected = FORMULAS[name](weights, gradients)
    torch.testing.assert_close(found.scores("", layer.weight), expected)


def test_every_criterion_is_tested():
    assert set(FORMULAS) | {"random"} == set(SCORES)


def test_layers_of_one_shape_are_drawn_apart():
    pruning = start(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
        prune_type="random",
        pattern="1x1",
        target_sparsity=0.5,
    )
    pruning.on_before_optimizer_step()
    first, second = pruning.masks.values()
    assert not torch.equal(first, second)


def test_scores_of_half_precision_do_not_vanish():
    layer = nn.Linear(4, 1, bias=False).half()
    pruning = start(layer, pattern="1x1", target_sparsity=0.5, start_step=5, end_step=5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1, 2, 3, 4]]) * 1e-4)
    layer.weight.grad = torch.full_like(layer.weight, 1e-4)
    pruning.on_before_optimizer_step(gradient_scale=0.5)
    scores = pruning.pruners[0].scores.state[""]
    expected = layer.weight.detach().double() * layer.weight.grad.double() / 2
    torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=0)


@FEW
@given(
    st.sampled_from(PATTERNS),
    st.floats(0, 0.98),
    st.sampled_from(["global", "local"]),
    st.sampled_from(["magnitude", "snip", "random", "snip_momentum"]),
    st.sampled_from(["mean", "sum", "max"]),
)
def test_one_shot_removes_the_exact_number(pattern, target, domain, prune_type, reduce):
    if ":" in pattern:
        target = min(target, 0.24)
    model = network()
    try:
        pruning = start(
            model,
            pattern=pattern,
            target_sparsity=target,
            prune_domain=domain,
            prune_type=prune_type,
            reduce=reduce,
        )
    except SparsityError as error:
        assert "the largest" in str(error)
        return
    backward(model, 0)
    pruning.on_before_optimizer_step()
    (pruner,) = pruning.pruners
    layers = [module.weight for module in pruner.layers.values()]
    blocks = [int(pruner.pattern.block_sizes(pruner.pattern.matrix(w).shape).max()) for w in layers]
    counts = [int((w == 0).sum()) for w in layers]
    if domain == "global":
        total = sum(w.numel() for w in layers)
        assert abs(sum(counts) - target * total) < max(blocks)
        assert pruning.sparsity == pytest.approx(sum(counts) / total)
    for count, weight, block in zip(counts, layers, blocks):
        assert count <= 0.98 * weight.numel() + block
        if domain == "local":
            assert abs(count - target * weight.numel()) < block
    for name, mask in pruning.masks.items():
        parameter = model.get_parameter(name)
        assert torch.equal(parameter != 0, mask)
        assert (parameter.grad[~mask] == 0).all()


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_groups_are_exactly_full_at_n_of_m_after_gradual_pruning(pattern):
    """Also where every weight and score is the same."""
    n, m = map(int, pattern.split(":"))
    for fill in (None, 0.0, 1.0):
        model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 12))
        if fill is not None:
            for layer in model:
                nn.init.constant_(layer.weight, fill)
        pruning = start(
            model,
            pattern=pattern,
            target_sparsity=n / m,
            prune_type="magnitude",
            end_step=5,
        )
        for _ in range(6):
            pruning.on_before_optimizer_step()
            pruning.on_after_optimizer_step()
        for mask in pruning.masks.values():
            assert ((~mask).view(-1, m).sum(1) == n).all()


@FEW
@given(
    st.sampled_from(PATTERNS),
    st.sampled_from(sorted(SCORES)),
    st.integers(0, 3),
    st.integers(0, 6),
    st.integers(1, 4),
    st.sampled_from([sgd, adam, adamw]),
)
def test_masks_grow_and_removed_weights_stay_zero(
    pattern, prune_type, first, length, frequency, optimizer
):
    model = network()
    pruning = start(
        model,
        pattern=pattern,
        prune_type=prune_type,
        target_sparsity=0.2,
        start_step=first,
        end_step=first + length,
        update_frequency_on_step=frequency,
        names=["2", "4"],
    )
    optimizer = optimizer(model)
    past = {}
    for step in range(first + length + 3):
        train(model, pruning, optimizer, [step])
        now = removed(pruning)
        for name, gone in past.items():
            assert (now[name] | ~gone).all()
        for name, gone in now.items():
            weight = model.get_parameter(name)
            assert (weight[gone] == 0).all() and (weight.grad[gone] == 0).all()
            for value in optimizer.state[weight].values():
                if torch.is_tensor(value) and value.shape == weight.shape:
                    assert (value[gone] == 0).all()
        past = now
    assert pruning.finished
    block = 20 if "channel" in pattern else 6
    assert abs(sum(int(gone.sum()) for gone in past.values()) - 0.2 * 270) <= block


@pytest.mark.parametrize("optimizer", [sgd, adam, adamw])
def test_removed_weights_stay_zero_without_the_optimizer_at_hand(optimizer):
    model = network()
    pruning = start(model, target_sparsity=0.7, start_step=3, end_step=3)
    train(model, pruning, optimizer(model), range(8), moments=False)
    for name, gone in removed(pruning).items():
        assert gone.any() and (model.get_parameter(name)[gone] == 0).all()


def test_inf_and_nan_are_masked_to_zero():
    layer = nn.Linear(4, 4)
    pruning = start(layer, prune_type="magnitude", pattern="1x1", target_sparsity=0.5)
    pruning.on_before_optimizer_step()
    (gone,) = removed(pruning).values()
    layer.weight.grad = torch.where(gone, float("nan"), 1.0)
    with torch.no_grad():
        layer.weight[gone] = float("-inf")
    pruning.mask_gradients()
    pruning.mask_weights()
    for tensor in (layer.weight, layer.weight.grad):
        assert (tensor[gone] == 0).all() and not tensor[gone].signbit().any()
        assert (tensor[~gone] != 0).all() and tensor.isfinite().all()


def test_complex_weights_go_by_their_magnitude():
    layer = nn.Linear(2, 2, bias=False, dtype=torch.complex64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1j, 2j], [0.5, 0.4]]))
    settings = dict(pattern="1x1", target_sparsity=0.5)
    with pytest.raises(SparsityError, match="its weight is complex, and prune_type snip"):
        start(layer, prune_type="snip", **settings)
    pruning = start(layer, prune_type="magnitude", **settings)
    pruning.on_before_optimizer_step()
    assert pruning.masks["weight"].tolist() == [[True, True], [False, False]]
    with torch.no_grad():
        layer.weight[1] = complex("nan")
    pruning.mask_weights()
    assert layer.weight.tolist() == [[1j, 2j], [0, 0]]


def test_accumulated_batches_count_as_one_step_and_score_their_sum():
    masks = []
    for passes in (1, 2):
        model = network().double()
        pruning = start(model, target_sparsity=0.5, start_step=1, end_step=5)
        optimizer = sgd(model)
        for step in range(6):
            assert pruning.step == step
            optimizer.zero_grad()
            for _ in range(passes):
                pruning.on_step_begin(step)
                backward(model, step)
            for parameter in model.parameters():
                parameter.grad /= passes
            pruning.on_before_optimizer_step()
            optimizer.step()
            pruning.on_after_optimizer_step()
            assert pruning.finished == (step >= 4)
        masks.append(pruning.masks)
    assert all(torch.equal(a, masks[1][name]) for name, a in masks[0].items())


@pytest.mark.parametrize("prune_type", ["snip", "snip_momentum", "magnitude"])
def test_training_of_end_step_steps_reaches_the_target(prune_type):
    """As in the template, where no further gradients come."""
    model = network()
    settings = dict(pattern="1x1", prune_type=prune_type, target_sparsity=0.5)
    pruning = start(model, start_step=2, end_step=8, update_frequency_on_step=3, **settings)
    optimizer = sgd(model)
    for step in range(8):
        train(model, pruning, optimizer, [step])
        keeps = prune_type == "snip_momentum" and step < 7  # what is still needed
        assert bool(pruning.pruners[0].scores.state) == keeps
    assert pruning.finished
    zeros = sum(int((m.weight == 0).sum()) for m in pruning.pruners[0].layers.values())
    assert zeros == 165  # of 60 + 200 + 70


@pytest.mark.parametrize("prune_type", ["snip", "snip_momentum"])
def test_a_step_with_broken_gradients_is_passed_over(prune_type):
    masks = []
    for broken in (False, True):
        model = network()
        pruning = start(model, prune_type=prune_type, target_sparsity=0.5, pattern="1x1")
        if broken:
            backward(model, 0)
            model[2].weight.grad[1, 1] = float("inf")
            pruning.on_before_optimizer_step()
            assert not pruning.masks and not pruning.pruners[0].scores.state
            pruning.on_after_optimizer_step()
            model.zero_grad()
        backward(model, 1)
        pruning.on_before_optimizer_step()
        assert pruning.finished and abs(pruning.sparsity - 0.5) < 1e-6
        masks.append(pruning.masks)
    assert all(torch.equal(a, masks[1][name]) for name, a in masks[0].items())


def test_a_broken_last_step_is_passed_over_too():
    model = network()
    pruning = start(model, target_sparsity=0.5, start_step=1, end_step=1)
    backward(model, 0)
    model[2].weight.grad[1, 1] = float("inf")
    pruning.on_before_optimizer_step()
    pruning.on_after_optimizer_step()
    assert not pruning.masks
    model.zero_grad()
    backward(model, 1)
    pruning.on_before_optimizer_step()
    assert pruning.finished


def test_a_broken_step_holds_up_those_who_need_its_gradients_only():
    model = network()
    pruning = Pruning(
        {
            "pruners": [
                {"names": ["2"], "prune_type": "magnitude"},
                {"names": ["4"], "end_step": 5},
            ],
            "target_sparsity": 0.5,
        }
    )
    pruning.model = model
    backward(model, 0)
    model[4].weight.grad[1, 1] = float("inf")
    pruning.on_before_optimizer_step()
    assert list(pruning.masks) == ["2.weight"]
    assert not pruning.finished  # as long as one is not


def test_training_begins_and_ends_with_what_was_removed_at_zero():
    model = network()
    pruning = start(model, target_sparsity=0.5, prune_type="magnitude")
    pruning.on_before_optimizer_step()
    for call in (pruning.on_train_begin, pruning.on_train_end):
        nn.init.ones_(model[2].weight)  # as of a moving average
        call()
        assert torch.equal(model[2].weight != 0, pruning.masks["2.weight"])


def test_layers_without_gradients_are_refused_by_name():
    model = network()
    model[2].weight.requires_grad_(False)
    pruning = Pruning({"pruners": [{}], "target_sparsity": 0.5})
    with pytest.raises(SparsityError, match="model: missing"):
        pruning.on_train_begin()
    pruning.model = model
    with pytest.raises(SparsityError, match="2.weight: is frozen"):
        pruning.on_train_begin()
    pruning.update_items_for_all_pruners(prune_type="magnitude")
    pruning.on_train_begin()
    pruning = start(network(), target_sparsity=0.5)
    with pytest.raises(SparsityError, match="layer 0: prune_type snip_momentum needs"):
        pruning.on_before_optimizer_step()
    broken = network()
    nn.init.constant_(broken[4].weight, float("nan"))
    pruning = start(broken, target_sparsity=0.5, prune_type="magnitude")
    with pytest.raises(SparsityError, match="layer 4: .* not all finite"):
        pruning.on_before_optimizer_step()
    nn.init.ones_(broken[4].weight)
    broken[4].weight.data[0, 0] = float("inf")  # whose score is the lowest
    pruning = start(broken, target_sparsity=0.5, prune_type="connectivity")
    for parameter in broken.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(SparsityError, match="layer 4: .* not all finite"):
        pruning.on_before_optimizer_step()


def test_a_layer_that_a_batch_did_not_use_adds_nothing():
    model = network().double()
    pruning = start(model, target_sparsity=0.5, start_step=9, end_step=9)
    backward(model, 0)
    pruning.on_before_optimizer_step()
    before = pruning.pruners[0].scores.state["2"].clone()
    model[2].weight.grad = None
    pruning.on_before_optimizer_step()
    torch.testing.assert_close(pruning.pruners[0].scores.state["2"], 0.9 * before)


def test_targets_that_layers_cannot_reach_are_refused_when_the_model_is_set():
    tiny = nn.Sequential(*[nn.Linear(1, 8, bias=False) for _ in range(9)])
    pruning = Pruning({"pruners": [{"target_sparsity": 0.9}]})
    with pytest.raises(SparsityError, match="target_sparsity: 0.9 is more than 0.5, "):
        pruning.model = tiny
    assert pruning.model is None and pruning.pruners == []
    pruning.update_items_for_all_pruners(target_sparsity=0.5)
    pruning.model = tiny
    with pytest.raises(SparsityError, match="0.8 is more than 0.5, the largest"):
        pruning.update_items_for_all_pruners(target_sparsity=0.8)
    assert pruning.config.pruners[0].target_sparsity == 0.5


def test_a_model_that_is_set_again_keeps_its_masks():
    settings = {"prune_type": "fisher", "target_sparsity": 0.5, "end_step": 3}
    model = network()
    pruning, optimizer = start(model, **settings), torch.optim.Adam(model.parameters())
    train(model, pruning, optimizer, range(4))
    masks = pruning.masks
    pruning.model = nn.ModuleDict({"module": model})  # as DistributedDataParallel is
    assert pruning.finished and {f"module.{name}" for name in masks} == set(pruning.masks)
    train(model, pruning, optimizer, range(4, 6))
    for name, mask in pruning.masks.items():
        assert torch.equal(mask, masks[name.removeprefix("module.")])
    with pytest.raises(SparsityError, match="model: training began with another"):
        pruning.model = network()
    assert pruning.sparsity > 0.4 and pruning.model["module"] is model
    with pytest.raises(SparsityError, match="model: a list is none"):
        pruning.model = [model]
    for seed in ("1", 1.5, True, None):
        with pytest.raises(SparsityError, match="seed: .* is not valid; give an int"):
            Pruning({"pruners": [{}]}, seed=seed)


def test_masks_cover_all_layers_of_a_pruner_once_it_pruned():
    model = network()
    nn.init.constant_(model[4].weight, 9.0)
    pruning = start(model, target_sparsity=0.1, pattern="1x1", prune_type="magnitude")
    pruning.on_before_optimizer_step()
    assert list(pruning.masks) == ["0.weight", "2.weight", "4.weight"]
    assert pruning.masks["4.weight"].all()


def test_a_model_cannot_be_exchanged_within_its_first_step():
    model = network()
    pruning = start(model, target_sparsity=0.5, prune_type="magnitude")
    pruning.on_before_optimizer_step()
    with pytest.raises(SparsityError, match="model: training began with another"):
        pruning.model = network()
    assert pruning.model is model and pruning.masks
