"""The loss without logits equals the loss of the logits."""

import pytest
import torch
from torch import nn

from src.criterions import projected_loss as module
from src.criterions.projected_loss import is_plain, projected_nll
from src.criterions.srp import SRPCriterion, smoothed_nll
from src.modules.linear import Linear
from tests.support.training import DictionaryTask, batch, build

PAD = 1


@pytest.fixture
def small_pieces(monkeypatch):
    """Seven rows at once, so that several pieces and an incomplete last one are made."""
    monkeypatch.setattr(module, "_LOGITS", 7 * 23)
    monkeypatch.setattr(module, "_LEAST_ROWS", 1)


def example(dtype=torch.float64, bias=True, transposed=False, scale=1.0):
    torch.manual_seed(1)
    projection = Linear(9, 23, bias=bias).to(dtype)
    with torch.no_grad():
        projection.weight.mul_(scale)
    features = torch.randn(5, 6, 9, dtype=dtype)
    if transposed:
        features = features.transpose(0, 1).contiguous().transpose(0, 1)
    target = torch.randint(2, 23, (5, 6))
    target[1, 3:] = target[4, 1:] = PAD
    return projection, features.requires_grad_(), target


def through_logits(features, projection, target, epsilon):
    logits = projection(features)
    return smoothed_nll(logits.flatten(0, 1), target.flatten(), epsilon, PAD)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_same_loss_and_gradients(small_pieces, transposed, bias, epsilon):
    projection, features, target = example(bias=bias, transposed=transposed)
    learned = [features, *projection.parameters()]
    theirs, their_nll = through_logits(features, projection, target, epsilon)
    ours, our_nll = projected_nll(features, projection, target, epsilon, PAD)
    assert torch.allclose(ours, theirs) and torch.allclose(our_nll, their_nll)
    expected = torch.autograd.grad(theirs * 3, learned)
    for one, other in zip(torch.autograd.grad(ours * 3, learned), expected):
        assert torch.allclose(one, other, atol=1e-12)


def test_large_logits(small_pieces):
    """Words whose probability underflows have the right loss all the same."""
    projection, features, target = example(torch.float32, scale=1000.0)
    exact, _ = through_logits(features.double(), projection.double(), target, 0.1)
    ours, _ = projected_nll(features, projection.float(), target, 0.1, PAD)
    assert exact > 10_000
    assert torch.allclose(ours.double(), exact, rtol=1e-5)


def test_nothing_but_padding(small_pieces):
    projection, features, target = example()
    loss, nll = projected_nll(features, projection, target.fill_(PAD), 0.1, PAD)
    loss.backward()
    assert loss == 0 and nll == 0
    assert not features.grad.any() and not projection.weight.grad.any()


@pytest.mark.parametrize("learned", ["features", "weight", "nothing"])
def test_only_what_is_needed_is_computed(small_pieces, monkeypatch, learned):
    projection, features, target = example()
    features.requires_grad_(learned == "features")
    projection.weight.requires_grad_(learned == "weight")
    made = []
    for name in ("matmul_t", "weight_gradient"):
        product = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, p=product: made.append(n) or p(*a))
    projected_nll(features, projection, target, 0.1, PAD)
    expected = {"features": {"matmul_t"}, "weight": {"weight_gradient"}, "nothing": set()}
    assert set(made) == expected[learned]
    made.clear()
    with torch.no_grad():
        projected_nll(features, projection, target, 0.1, PAD)
    assert not made


def test_bfloat16(small_pieces):
    """Products in bfloat16, loss and gradient of the weight summed in float32."""
    projection, features, target = example(torch.float32)
    exact, _ = through_logits(features, projection, target, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = projected_nll(features, projection, target, 0.1, PAD)
    assert ours.dtype == torch.float32
    assert ours != exact and torch.allclose(ours, exact, rtol=0.01)
    expected = torch.autograd.grad(exact, projection.weight)[0]
    gradient = torch.autograd.grad(ours, projection.weight)[0]
    assert gradient.dtype == torch.float32
    assert (gradient - expected).norm() < 0.01 * expected.norm()


def test_what_counts_as_plain():
    class Adapted(nn.Linear):
        pass

    assert is_plain(nn.Linear(2, 3)) and is_plain(Linear(2, 3))
    assert not is_plain(Adapted(2, 3))
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        hooked = Linear(2, 3)
        getattr(hooked, register)(lambda *given: None)
        assert not is_plain(hooked)


@pytest.fixture
def criterion():
    task = DictionaryTask()
    return SRPCriterion(task, sentence_avg=False, label_smoothing=0.1)


@pytest.mark.parametrize("prefix", [0, 2])
def test_the_criterion(criterion, monkeypatch, prefix):
    """A model's loss and gradients are the same with logits and without."""
    criterion.ignore_prefix_size = prefix
    source, _, previous = batch()
    sample = {
        "net_input": dict(src_tokens=source, src_lengths=None, prev_output_tokens=previous),
        "target": previous.roll(-1, 1),
        "ntokens": 30,
    }
    model = build(weighted_layernorm=True).train()
    asked = []
    output_layer = model.decoder.output_layer
    monkeypatch.setattr(model.decoder, "output_layer", lambda x: asked.append(x) or output_layer(x))
    results = []
    for without in (True, False):
        if not without:
            monkeypatch.setattr(criterion, "_needs_no_logits", lambda student: False)
        model.zero_grad()
        loss, _, logged = criterion(model, sample)
        loss.backward()
        results.append([loss, logged["nll_loss"], *(p.grad.clone() for p in model.parameters())])
        assert bool(asked) != without
    for one, other in zip(*results):
        assert torch.allclose(one, other, atol=1e-12)


def test_losses_of_single_tokens(criterion):
    """Not added up, on request."""
    source, _, previous = batch()
    inputs = dict(src_tokens=source, src_lengths=None, prev_output_tokens=previous)
    sample = {"net_input": inputs, "target": previous.roll(-1, 1), "ntokens": 30}
    model = build()
    with torch.no_grad():
        each, together = (criterion(model, sample, reduce=r)[0] for r in (False, True))
    assert each.numel() == previous.numel()
    assert torch.allclose(each.double().sum(), together)


def test_the_criterion_makes_logits_where_they_are_needed(criterion):
    model = build().train()
    assert criterion._needs_no_logits(model)
    model.decoder.output_projection.register_forward_hook(lambda *given: None)
    assert not criterion._needs_no_logits(model)
    model = build()  # in evaluation mode, with gradients: scoring
    assert not criterion._needs_no_logits(model)
    with torch.no_grad():
        assert criterion._needs_no_logits(model)
    criterion.report_accuracy = True
    assert not criterion._needs_no_logits(model.train())
