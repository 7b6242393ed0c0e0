"""Layer-wise relevance: its rules, and that it is conserved."""

import math

import pytest
import torch
import torch.nn.functional as F

from src.connectivity.cut import cut
from src.modules import relevance
from src.modules.relevance import (
    _activation_rule,
    _product,
    _softmax,
    _stabilized,
    gold_relevance,
    is_half,
    relevance_rules,
)
from tests.support.importance import MODELS, PAD, close, make, samples, scores_of


def without_constants(model):
    """Biases and the norms' shifts are zero: nothing but softmax keeps relevance."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model


def relevance_of(model, seen, data, monkeypatch, **rules):
    """(start, relevance at what ``seen`` collects, what softmax kept)."""
    softmaxes = []

    def recorded(scores):
        weights = F.softmax(scores, dim=-1)
        softmaxes.append((scores, weights))
        return weights

    monkeypatch.setattr(relevance, "_softmax", recorded)
    inputs, target = data[0]
    start = gold_relevance(model, inputs, target, PAD, **rules)
    tensors = list(seen.values())
    pairs = [t for pair in softmaxes for t in pair if t.requires_grad]
    found = torch.autograd.grad(start, tensors + pairs, allow_unused=True)
    amounts = [
        0.0 if g is None else torch.where(g == 0, 0.0, x * g).sum().item()
        for x, g in zip(tensors + pairs, found)
    ]
    kept = amounts[len(tensors) :]
    return (
        start.item(),
        dict(zip(seen, amounts)),
        [after - before for before, after in zip(kept[::2], kept[1::2])],
    )


def embeddings(model):
    return {"source": model.encoder.dropout_module, "target": model.decoder.dropout_module}


def collect(model, modules):
    seen = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda m, args, out, n=name: seen.update({n: out}))
    return seen


@pytest.mark.parametrize("name", ["post", "pre", "weighted"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("attention", ["split", "values"])
def test_relevance_is_conserved(name, activation, attention, monkeypatch):
    """All that starts at the gold logits arrives at the two embeddings, or at softmax."""
    model = without_constants(make(name, activation_fn=activation))
    seen = collect(model, embeddings(model))
    start, found, kept = relevance_of(
        model, seen, samples(1), monkeypatch, epsilon=0, attention=attention
    )
    assert abs(start) > 0.1 and min(map(abs, found.values())) > 1e-3
    assert sum(found.values()) + sum(kept) == pytest.approx(start, rel=1e-10)
    assert (sum(kept) == 0) == (attention == "values")


@pytest.mark.parametrize("name", ["post", "pre"])
def test_relevance_is_conserved_through_an_encoder_layer(name, monkeypatch):
    model = without_constants(make(name))
    layers = model.encoder.layers
    seen = collect(model, dict(zip(("first", "second"), layers)))
    _, found, kept = relevance_of(model, seen, samples(1), monkeypatch, epsilon=0)
    # softmaxes run in the order encoder 0, encoder 1, decoder
    assert found["first"] + kept[1] == pytest.approx(found["second"], rel=1e-10)
    assert abs(found["second"]) > 1e-3


def test_epsilon_and_biases_keep_relevance(monkeypatch):
    data = samples(1)
    for model, epsilon, least, most in (  # share of the start that is missing
        (without_constants(make("post")), 1e-6, 1e-9, 1e-3),
        (without_constants(make("post")), 0.5, 1e-2, math.inf),
        (make("post"), 0, 1e-2, math.inf),
    ):
        seen = collect(model, embeddings(model))
        start, found, kept = relevance_of(model, seen, data, monkeypatch, epsilon=epsilon)
        missing = abs(start - sum(found.values()) - sum(kept)) / abs(start)
        assert least < missing < most


@pytest.mark.parametrize("name", ["post", "pre"])
def test_epsilon_takes_relevance_at_residual_sums(name):
    model = make(name)
    x, residual = torch.randn(2, 5, 3, 16, dtype=torch.float64).requires_grad_()
    for layer in (model.encoder.layers[1], model.decoder.layers[0]):
        with relevance_rules(model, epsilon=0.3):
            z = layer.residual_connection(x, residual)
            found = torch.autograd.grad(z.sum(), (x, residual))
        assert torch.equal(z, x + residual)
        for gradient in found:
            close(gradient, z.detach() / (z + 0.3 * z.sign()).detach())


def test_half_precision_has_too_little_for_relevance():
    model = make("post")
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    assert [is_half(model.to(dtype)) for dtype in kinds] == [True, True, False, False]


@pytest.mark.parametrize("name", MODELS)
def test_relevance_rules_change_no_output_and_leave_nothing_behind(name):
    model = make(name, activation_fn="gelu")

    for inputs, _ in samples(2):
        model(**inputs)  # the decoder keeps a mask that it has made
    held = [dict(m.__dict__) for m in model.modules()]  # so that no address is used twice

    def attributes():
        return [{k: id(v) for k, v in m.__dict__.items()} for m in model.modules()]

    before = [{k: id(v) for k, v in attributes.items()} for attributes in held]
    for inputs, target in samples(2):
        gold = model(**inputs)[0].gather(-1, target.unsqueeze(-1)).squeeze(-1)
        plain = gold[target.ne(PAD)].sum()
        close(gold_relevance(model, inputs, target, PAD), plain)
    assert attributes() == before
    with pytest.raises(TypeError):
        gold_relevance(model, {}, None, PAD)  # also after a failure
    assert attributes() == before
    assert not any(m._forward_hooks for m in model.modules())


def test_rules_of_relevance_one_by_one():
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # epsilon rule, large enough to be seen
    weight, x, above = random(3, 4), random(5, 4).requires_grad_(), random(5, 3)
    z = x @ weight.t()
    stable = z + 0.3 * z.sign()
    expected = torch.einsum("bi,ji,bj->bi", x, weight, above / stable).detach()
    (gradient,) = torch.autograd.grad(_stabilized(z, 0.3), x, (above / z).detach())
    close(x.detach() * gradient, expected)

    # activation: unchanged, whatever the function
    x = random(5, 4).requires_grad_()
    y = _activation_rule(F.gelu, 0)(x)
    close(y.detach(), F.gelu(x).detach())
    (gradient,) = torch.autograd.grad(y, x, above[:, :1] / y.detach())
    close(x.detach() * gradient, above[:, :1].expand(5, 4))
    zero = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(_activation_rule(F.relu, 1e-6)(zero).sum(), zero)
    assert torch.equal(gradient, torch.zeros_like(gradient))

    # product: half to each factor
    a, b = random(5, 4).requires_grad_(), random(4, 3).requires_grad_()
    y = _product(a, b)
    both = torch.autograd.grad(y, (a, b), (above / y).detach())
    halves = [(t.detach() * g).sum() for t, g in zip((a, b), both)]
    close(halves[0], above.sum() / 2)
    close(halves[1], above.sum() / 2)

    # softmax
    x, above = random(5, 4).requires_grad_(), random(5, 4)
    s = _softmax(x)
    (gradient,) = torch.autograd.grad(s, x, (above / s).detach())
    close(
        (x * gradient).detach(),
        (x * (above - s * above.sum(-1, keepdim=True))).detach(),
    )


def test_lrp_is_the_absolute_relevance_of_tokens():
    """The criterion's sums at one site, and that queries have relevance."""
    model, data = make("post"), samples()
    found = scores_of(model, data, "lrp")
    attention = model.decoder.layers[0].encoder_attn
    expected = 0
    for inputs, target in data:
        seen = {}
        hook = attention.out_proj.register_forward_pre_hook(lambda m, args: seen.update(vo=args[0]))
        start = gold_relevance(model, inputs, target, PAD)
        (gradient,) = torch.autograd.grad(start, seen["vo"])
        expected = expected + (seen["vo"] * gradient).abs().sum((0, 1))
        hook.remove()
    close(found["decoder.layers.0.encoder_attn.vo"], expected.detach())
    for name, scores in found.items():
        assert (scores > 1e-6).any() and (scores >= 0).all(), name


@pytest.mark.parametrize("weighted", [False, True])
def test_relevance_is_conserved_in_cut_models(weighted, monkeypatch):
    model = without_constants(make("pre", weighted_layernorm=weighted))
    kept = torch.tensor([0, 2, 5, 6, 9, 14])
    cut(model, {"encoder.embedding": kept, "decoder.embedding": kept})
    seen = collect(model, embeddings(model))
    start, found, kept = relevance_of(model, seen, samples(1), monkeypatch, epsilon=0)
    assert sum(found.values()) + sum(kept) == pytest.approx(start, rel=1e-10)
