"""Linear layers on oneDNN: the same function and gradients as F.linear."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.modules.linear import Linear, accelerate, linear
from src.modules.scriptable import scriptable
from tests.support.onednn import needs_onednn, record_onednn
from tests.support.training import batch, build


@pytest.fixture
def onednn(monkeypatch):
    """Everything of float32 runs on oneDNN; a list of the products made."""
    return record_onednn(monkeypatch, "src.modules.linear")


def inputs(layout: str) -> torch.Tensor:
    """``[..., 19]`` with different orders in memory."""
    if layout == "rows":
        return torch.randn(37, 19)
    if layout == "batch":
        return torch.randn(5, 7, 19)
    if layout == "transposed":
        return torch.randn(7, 5, 19).transpose(0, 1)
    if layout == "strided":
        return torch.randn(5, 14, 38)[:, ::2, ::2]
    return torch.randn(19, 37).t()


LAYOUTS = ["rows", "batch", "transposed", "strided", "columns"]


def both(x, weight, bias, by_sum=False):
    """Output and gradients of ``linear`` in float32 and of ``F.linear`` in float64."""
    results = []
    for function, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        given = [
            None if t is None else t.detach().to(dtype).requires_grad_(t.requires_grad)
            for t in (x, weight, bias)
        ]
        y = function(*given)
        torch.manual_seed(2)
        (y.sum() if by_sum else (y * torch.randn(y.shape).to(dtype)).sum()).backward()
        results.append([y.detach(), *(None if t is None else t.grad for t in given)])
    return zip(*results)


@needs_onednn
@pytest.mark.parametrize("width", [11, 40])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients(onednn, layout, with_bias, width):
    torch.manual_seed(1)
    x = inputs(layout).requires_grad_()
    weight = torch.randn(width, 19, requires_grad=True)
    bias = torch.randn(width, requires_grad=True) if with_bias else None
    for ours, exact in both(x, weight, bias):
        if exact is None:
            assert ours is None
        else:
            assert ours.shape == exact.shape
            assert (ours - exact).abs().max() < 1e-5 * exact.abs().max()
    assert len(onednn) == 3  # forward, gradient by input, gradient by weight


@needs_onednn
def test_gradients_of_a_sum(onednn):
    """Its gradient is expanded from one number: all strides are zero."""
    torch.manual_seed(1)
    x, weight, bias = torch.randn(6, 4, 9), torch.randn(8, 9), torch.randn(8)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    for ours, exact in both(x, weight, bias, by_sum=True):
        assert (ours - exact).abs().max() < 1e-5 * exact.abs().max()


@needs_onednn
@pytest.mark.parametrize("learned", ["x", "weight", "bias"])
def test_only_what_is_learned_is_computed(onednn, learned):
    tensors = dict(x=torch.randn(8, 9), weight=torch.randn(8, 9), bias=torch.randn(8))
    tensors[learned].requires_grad_()
    linear(**tensors).sum().backward()
    assert {n for n, t in tensors.items() if t.grad is not None} == {learned}
    assert len(onednn) == (1 if learned == "bias" else 2)


@needs_onednn
def test_others_are_left_to_pytorch(onednn):
    torch.manual_seed(1)
    x, weight, bias = torch.randn(8, 9), torch.randn(7, 9), torch.randn(7)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, weight, bias)
        assert torch.equal(y, F.linear(x, weight, bias)) and y.dtype == torch.bfloat16
    for dtype in (torch.float64, torch.bfloat16):
        given = [t.to(dtype) for t in (x, weight, bias)]
        assert torch.equal(linear(*given), F.linear(*given))
    for rows in (0, 1, 3):  # too few
        assert torch.equal(linear(x[:rows], weight, bias), F.linear(x[:rows], weight, bias))
    assert not onednn
    linear(x, weight, bias)
    assert len(onednn) == 1


@needs_onednn
def test_a_model_trains_the_same(onednn):
    """Outputs and gradients of a whole model are F.linear's to float32 rounding."""
    results = []
    for fast in (True, False):
        model = build(weighted_layernorm=True).float()
        assert all(type(m) is Linear for m in model.modules() if isinstance(m, nn.Linear))
        if not fast:
            for layer in model.modules():
                if isinstance(layer, Linear):
                    layer.__class__ = nn.Linear
        made = len(onednn)
        logits = model(*batch())[0]
        logits.square().sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append([logits.detach(), gradients])
        assert (len(onednn) > made) == fast
    for one, other in zip(*results):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_accelerate_changes_plain_layers_only():
    class Special(nn.Linear):
        pass

    network = nn.Sequential(nn.Linear(3, 4), Special(4, 5), nn.ReLU())
    before = network.state_dict()
    accelerate(network)
    assert [type(m) for m in network] == [Linear, Special, nn.ReLU]
    assert network.state_dict().keys() == before.keys()
    x = torch.randn(2, 3)
    assert torch.equal(network[0](x), F.linear(x, network[0].weight, network[0].bias))


@pytest.mark.filterwarnings("ignore")  # torch's, that torchao takes over
def test_dynamic_quantization_finds_the_layers_of_the_scriptable_form():
    quantize = torch.ao.quantization.quantize_dynamic
    model = build().float()
    tokens = batch()
    with torch.no_grad():
        exact, _ = model(*tokens)
        number = sum(type(module) is Linear for module in model.modules())
        quantized = quantize(scriptable(model), {nn.Linear})
        rounded, _ = quantized(*tokens)
    found = [m for m in quantized.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(found) == number > 30
    assert 0 < (exact - rounded).abs().max() < 0.05 * exact.abs().max()
