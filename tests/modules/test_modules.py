"""Weighted layer normalization, dropout, loss, optimizer: against plain formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.optim.adam import Adam
from omegaconf import OmegaConf

from src.connectivity.groups import ChannelGroup
from src.criterions.srp import distillation_loss, smoothed_nll
from src.errors import UserError
from src.modules.dropout import cpu_dropout
from src.modules.layer_norm import WeightedLayerNorm
from src.modules.srp_layer import GatedActivation
from src.optim.srp_adam import SRPAdam, SRPAdamConfig, parse_betas
from tests.support.training import build


def norm(weighted, connectivity=None, width=10):
    torch.manual_seed(1)
    group = ChannelGroup("embedding", width).double()
    layer = WeightedLayerNorm(group, weighted).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    if connectivity is not None:
        group.set_connectivity(connectivity)
    return layer


@pytest.mark.parametrize("weighted", [True, False])
def test_open_gates_are_layer_norm(weighted):
    layer = norm(weighted)
    x = torch.randn(3, 4, 10, dtype=torch.float64)
    expected = F.layer_norm(x, (10,), layer.weight, layer.bias, layer.eps)
    assert torch.equal(layer(x), expected)
    # and the weighted formula itself, at c = 1
    c = layer.group.connectivity
    through = layer._normalize_weighted(x, c, layer.weight, layer.bias)
    assert (through - expected).abs().max() < 1e-12


def test_weighted_norm_follows_its_formula():
    c = torch.rand(10, dtype=torch.float64)
    layer = norm(True, c)
    x = torch.randn(6, 10, dtype=torch.float64)
    mean = (c * x).sum(-1, keepdim=True) / c.sum()
    var = (c * (x - mean) ** 2).sum(-1, keepdim=True) / c.sum()
    expected = c * ((x - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias)
    assert (layer(x) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("weighted", [True, False])
def test_norm_gradients(weighted):
    layer = norm(weighted, torch.rand(10, dtype=torch.float64))
    x = torch.randn(3, 2, 10, dtype=torch.float64, requires_grad=True)
    for inputs in (x, x.transpose(0, 1)):  # also from memory in another order
        assert torch.autograd.gradcheck(
            lambda v, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (v,)),
            (inputs, layer.weight, layer.bias),
        )


@pytest.mark.parametrize("kind", ["gated", "cut"])
def test_statistics_are_float32s_in_half_precision(kind):
    """Numbers far from 0, whose mean bfloat16 rounds by more than their deviation."""
    connectivity = torch.tensor([1.0, 0.5] * 5)
    layer = norm(kind == "gated", connectivity if kind == "gated" else None).bfloat16()
    if kind == "cut":
        layer.group.resize(torch.arange(6))
        layer.weight.data, layer.bias.data = layer.weight.data[:6], layer.bias.data[:6]
    x = (30 + torch.randn(50, layer.group.width)).bfloat16()
    found = layer(x)
    exact = layer.double()(x.double())
    assert found.dtype == torch.bfloat16
    assert (found - exact).abs().max() <= 2**-8 * exact.abs().max()
    layer, x = layer.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        within = layer(x)
    assert torch.equal(within, layer(x))


def test_constant_vector_gives_finite_gradients():
    layer = norm(True, torch.tensor([1.0] * 5 + [0.5] * 5, dtype=torch.float64))
    x = torch.full((2, 10), 3.0, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def gates(values) -> ChannelGroup:
    group = ChannelGroup("ffn", len(values))
    group.set_connectivity(torch.tensor(values))
    return group


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_relu_is_relu_and_gate_with_one_activation_kept(dtype):
    group, kept = gates([1.0, 0.5, 0.25, 0.0]), []
    x = torch.randn(5, 3, 4).to(dtype).transpose(0, 1).requires_grad_()
    upstream = torch.randn(3, 5, 4).to(dtype)
    plain = F.relu(x) * group.connectivity.to(dtype)
    (expected,) = torch.autograd.grad(plain, x, upstream)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        found = GatedActivation(F.relu, group)(x)
    assert torch.equal(found, plain) and kept == [60, 4]
    assert torch.equal(torch.autograd.grad(found, x, upstream)[0], expected)


def test_gated_activation_elsewhere():
    group = gates([1.0, 0.5])
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(GatedActivation(F.gelu, group)(x), F.gelu(x) * group.connectivity)
    group.connectivity.requires_grad_()  # while connectivity is scored
    GatedActivation(F.relu, group)(x).sum().backward()
    assert torch.equal(group.connectivity.grad, F.relu(x).sum(0).float())
    group = gates([1.0, 1.0])
    assert torch.equal(GatedActivation(F.relu, group)(x), F.relu(x))


def test_attention_scores_are_float32s_under_autocast():
    attention = build().encoder.layers[0].self_attn.float()
    torch.manual_seed(1)
    q, k, v = (torch.randn(3, 2, 5, 8).bfloat16() for _ in range(3))
    mask = torch.zeros(3, 1, 1, 5, dtype=torch.bfloat16)
    mask[1, ..., 3:] = float("-inf")
    wide = [t.float() for t in (q, k, v)]
    exact = F.scaled_dot_product_attention(*wide, attn_mask=mask.float(), scale=8**-0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention._attention(q, k, v, mask)
    assert torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_cpu_dropout(p):
    torch.manual_seed(1)
    x = torch.randn(1000, 501, requires_grad=True)
    y = cpu_dropout(x, p)
    dropped = y == 0
    deviation = math.sqrt(p * (1 - p) / x.numel())
    assert abs(dropped.float().mean() - p) < 5 * deviation
    # neighbours are independent: both dropped with p²
    pairs = (dropped[:, :-1] & dropped[:, 1:]).float().mean()
    assert abs(pairs - p * p) < 0.003
    kept = ~dropped
    assert torch.allclose(y[kept], x[kept] / (1 - p), rtol=1e-3)
    y.sum().backward()
    assert torch.equal(x.grad == 0, dropped)
    torch.manual_seed(1)
    again = cpu_dropout(torch.randn(1000, 501), p)
    assert torch.equal(again == 0, dropped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_dropout_in_any_order_of_memory(dtype):
    """The order stays, and the gradient is dropped where the output was."""
    torch.manual_seed(1)
    dense = torch.randn(6, 5, 8).to(dtype)
    for x in (dense, dense.transpose(0, 1), dense[:, ::2], dense[:, :1].expand(6, 3, 8)):
        x = x.detach().requires_grad_()
        y = cpu_dropout(x, 0.5)
        assert y.stride() == torch.empty_like(x).stride()
        (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert torch.equal(gradient, torch.where(y == 0, 0.0, 2.0).to(dtype))
        assert 0.3 < (y == 0).float().mean() < 0.7


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_norm_of_transposed_memory(weighted, gated):
    layer = norm(weighted, torch.rand(10, dtype=torch.float64) if gated else None)
    x = torch.randn(4, 3, 10, dtype=torch.float64).transpose(0, 1)
    y = layer(x)
    assert torch.equal(y, layer(x.contiguous())) and y.stride() == x.stride()


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_loss_is_fairseqs(epsilon):
    torch.manual_seed(1)
    logits = torch.randn(40, 17, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 17, (40,))
    theirs, nll = label_smoothed_nll_loss(
        F.log_softmax(logits, -1), target, epsilon, ignore_index=1
    )
    expected = torch.autograd.grad(theirs * 3, logits)[0]
    ours, our_nll = smoothed_nll(logits, target, epsilon, 1)
    assert torch.allclose(ours, theirs) and torch.allclose(our_nll, nll)
    assert torch.allclose(torch.autograd.grad(ours * 3, logits)[0], expected)


def test_distillation_ignores_padding_and_is_zero_for_the_teacher():
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    present = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    loss = distillation_loss(student, teacher, present, 2.0)
    p = F.softmax(teacher / 2, -1)
    kl = (p * (p.log() - F.log_softmax(student / 2, -1))).sum(-1)
    assert torch.allclose(loss, 4 * kl[present].sum())
    assert distillation_loss(teacher, teacher, present, 2.0).abs() < 1e-5
    student[0, 3:] += 100  # only padding changes
    assert torch.allclose(distillation_loss(student, teacher, present, 2.0), loss)


def test_fused_adam_follows_fairseqs():
    torch.manual_seed(1)
    start = torch.randn(20, 30)
    settings = dict(lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    results = []
    for make in (Adam, lambda p, **kw: torch.optim.AdamW(p, fused=True, **kw)):
        torch.manual_seed(2)
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make([parameter], **settings)
        for _ in range(20):
            parameter.grad = torch.randn(20, 30)
            optimizer.step()
        results.append(parameter.detach())
    assert torch.allclose(*results, atol=1e-6)
    assert not torch.allclose(results[0], start, atol=1e-2)


@pytest.mark.parametrize("text", ["(0.9, 0.98)", "0.9,0.98", "[0.9, 0.98]"])
def test_betas(text):
    assert parse_betas(text) == (0.9, 0.98)


def test_betas_of_python():
    for pair in ((0, 0.5), [0, 0.5], OmegaConf.create([0, 0.5])):
        assert parse_betas(pair) == (0.0, 0.5)


@pytest.mark.parametrize("name, value", [("lr", [math.inf]), ("weight_decay", math.nan)])
def test_numbers_that_no_optimizer_takes(name, value):
    given = {"lr": [1e-3], name: value}
    config = OmegaConf.merge(OmegaConf.structured(SRPAdamConfig), given)
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} (inf|nan): must be"):
        SRPAdam(config, [torch.nn.Parameter(torch.zeros(2))])


@pytest.mark.parametrize("text", ["(0.9)", "(0.9, 1.5)", "(0.9, 1)", "__import__('os')", ""])
def test_bad_betas_are_refused(text):
    with pytest.raises(UserError, match="--adam-betas"):
        parse_betas(text)
