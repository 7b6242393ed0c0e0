"""Linear layers on oneDNN: the same function and gradients as F.linear."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.errors import UserError
from src.modules import linear as module
from src.modules.linear import (
    ConstantLinear,
    Linear,
    PackedLinear,
    accelerate,
    linear,
    use_sparse_products,
    uses_onednn,
)
from tests.support.training import batch, build

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch without oneDNN"
)


@pytest.fixture
def onednn(monkeypatch):
    """Everything of float32 runs on oneDNN; a list of the products made."""
    made = []
    product = module._onednn

    def recorded(*given):
        made.append(given)
        return product(*given)

    monkeypatch.setattr(module, "_LEAST_WORK", 1)
    monkeypatch.setattr(module, "uses_onednn", lambda: True)
    monkeypatch.setattr(module, "_onednn", recorded)
    return made


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
@pytest.mark.parametrize(
    "dtype, packed, error",
    [(torch.float32, 1, 1e-5), (torch.bfloat16, 1, 1e-2), (torch.float64, 0, 0)],
)
def test_packed_weights(onednn, monkeypatch, dtype, packed, error):
    """Products that are worth it run on oneDNN, in the types that it takes."""
    monkeypatch.setattr(module, "_LEAST_PACKED_WORK", 1000)
    torch.manual_seed(1)
    x, weight, bias = (torch.randn(*n).to(dtype) for n in ((40, 19), (11, 19), (11,)))
    for given in (bias, None):
        product = PackedLinear(weight, given)
        for rows, made in ((1, 0), (40, packed)):
            onednn.clear()
            found, exact = product(x[:rows]), F.linear(x[:rows].double(), weight.double())
            exact = exact if given is None else exact + given
            assert (found - exact).abs().max() <= max(error, 1e-14) * exact.abs().max()
            assert len(onednn) == made


def test_weights_lie_by_inputs_where_mkl_multiplies(monkeypatch):
    """From four rows on, and only float32 ones on a CPU; the result is F.linear's."""
    monkeypatch.setattr(module, "uses_onednn", lambda: False)
    torch.manual_seed(1)
    x, weight, bias = torch.randn(40, 19), torch.randn(11, 19), torch.randn(11)
    for given in (bias, None):
        product = PackedLinear(weight, given)
        assert product._by_inputs.is_contiguous() and product._by_inputs.shape == (19, 11)
        for rows in (0, 1, 3, 4, 40):
            torch.testing.assert_close(product(x[:rows]), F.linear(x[:rows], weight, given))
        product._by_inputs.zero_()  # which tells what multiplied
        assert product(x[:3]).any() and torch.equal(
            product(x), torch.zeros(40, 11) if given is None else given.expand(40, 11)
        )
    for dtype in (torch.float64, torch.bfloat16):
        assert PackedLinear(weight.to(dtype))._by_inputs is None
    assert PackedLinear(weight[:0])(x).shape == (40, 0)


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


def test_layers_with_a_product_of_their_own_keep_it_in_sparse_inference():
    class Special(Linear):
        pass

    model = nn.Module()
    model.encoder = nn.Sequential(Linear(3, 4), nn.Sequential(Special(4, 5), Linear(5, 2)))
    use_sparse_products(model)
    kinds = [type(m) for m in model.encoder.modules() if not isinstance(m, nn.Sequential)]
    assert kinds == [ConstantLinear, Special, ConstantLinear]


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


@pytest.mark.parametrize(
    "variable, vendor, capability, present, expected",
    [
        ("", "AuthenticAMD", "AVX512", True, True),
        ("", "AuthenticAMD", "AVX2", True, False),
        ("", "GenuineIntel", "AVX512", True, False),
        ("", "", "DEFAULT", True, False),  # no x86 processor
        ("", "AuthenticAMD", "AVX512", False, False),
        ("0", "AuthenticAMD", "AVX512", True, False),
        ("1", "GenuineIntel", "AVX2", True, True),
    ],
)
def test_the_processor_decides(monkeypatch, variable, vendor, capability, present, expected):
    monkeypatch.setenv(module.VARIABLE, variable)
    monkeypatch.setattr(module, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: present)
    assert uses_onednn.__wrapped__() == expected


def test_the_vendor_is_that_of_the_processor(monkeypatch):
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC\n"
    monkeypatch.setattr(module.Path, "read_text", lambda *_, **__: text)
    assert module._vendor() == "AuthenticAMD"

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(module.Path, "read_text", missing)  # elsewhere than on Linux
    assert module._vendor() == ""


@pytest.mark.parametrize("value, present", [("yes", True), ("1", False)])
def test_refused_settings(monkeypatch, value, present):
    monkeypatch.setenv(module.VARIABLE, value)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: present)
    with pytest.raises(UserError, match=f"SRP_ONEDNN={value}"):
        uses_onednn.__wrapped__()
