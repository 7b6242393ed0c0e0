"""How adapted layers compute: precision, what is kept, attention, fast paths, hooks."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src import adapters
from src.adapters import SPLoRA
from tests.support.adapters import METHODS, both, linear, stir, values
from tests.support.sparsity import check_replicas


class TestPrecision:
    @both
    def test_update_is_cast_once(self, method):
        layer = METHODS[method](linear(dtype=torch.bfloat16), init_range=1e-3)
        exact = copy.deepcopy(layer).double()
        expected = adapters.adapted_weight(exact).float().to(torch.bfloat16)
        assert torch.equal(layer.to_module().weight, expected)
        assert layer.to_module().weight.dtype == torch.bfloat16
        assert not torch.equal(expected, layer.weight)

    @both
    def test_half_casts_leave_the_adapters(self, method):
        layer = stir(METHODS[method](linear(dtype=torch.float32)))
        learned = {n: p for n, p in layer.named_parameters() if n not in ("weight", "bias")}
        before = copy.deepcopy(learned)
        layer(torch.randn(2, 10)).sum().backward()
        for cast in (layer.half, layer.bfloat16, lambda: layer.to(torch.float16)):
            cast()
            assert layer.weight.element_size() == 2
            for name, parameter in layer.named_parameters():
                if name in learned:
                    assert parameter is learned[name]
                    assert torch.equal(parameter, before[name])
                    assert parameter.grad.dtype == torch.float32

    @both
    @pytest.mark.parametrize("training", [True, False])
    def test_autocast(self, method, training):
        layer = stir(METHODS[method](linear(dtype=torch.float32))).train(training)
        x = torch.randn(6, 10)
        weight = adapters.adapted_weight(layer)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(adapters.adapted_weight(layer), weight)
            y = layer(x)
            with torch.no_grad():
                assert torch.equal(layer.fused_weights()["weight"], weight.detach())
                assert layer(x).dtype == torch.bfloat16
        assert y.dtype == torch.bfloat16
        assert (y.float() - F.linear(x, weight, layer.bias)).abs().max() < 0.1
        y.float().pow(2).sum().backward()
        for name, parameter in layer.named_parameters():
            if name != "weight":
                assert parameter.grad.dtype == torch.float32
                assert parameter.grad.abs().max() > 0


class TestLowRankProduct:
    """Few inputs and many take different ways."""

    def setup_layer(self, tokens, **options):
        layer = stir(SPLoRA(linear(**options), rank=3))
        layer.weight.requires_grad_(True)
        assert layer._merging_pays(values(20, 10), layer.weight)
        assert not layer._merging_pays(values(2, 10), layer.weight)
        return layer, values(*tokens, 10).requires_grad_()

    @pytest.mark.parametrize("tokens", [(), (2,), (20,), (5, 7), (2, 3, 4)], ids=str)
    @pytest.mark.parametrize("bias", [True, False])
    def test_equals_the_formula(self, tokens, bias):
        layer, x = self.setup_layer(tokens, bias=bias)
        result = layer(x)
        grads = values(*result.shape, seed=9)
        result.backward(grads)
        learned = [p for n, p in layer.named_parameters() if n != "weight"]
        found = [p.grad for p in (x, *learned)]
        expected = F.linear(x, layer.weight, layer.bias)
        expected = expected + (x @ layer.rows.t()) @ layer.cols.t()
        wanted = torch.autograd.grad(expected, (x, *learned), grads)
        assert (result - expected).abs().max() < 1e-13
        assert all((f - w).abs().max() < 1e-12 for f, w in zip(found, wanted))
        assert layer.weight.grad is None
        with torch.no_grad():
            assert torch.equal(layer(x), result)

    @pytest.mark.parametrize("tokens", [2, 20])
    def test_gradients(self, tokens):
        layer, x = self.setup_layer((tokens,))
        names = ("rows", "cols", "bias")

        def function(x, *learned):
            return torch.func.functional_call(layer, dict(zip(names, learned)), (x,))

        inputs = (x, *(getattr(layer, n).detach().requires_grad_() for n in names))
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)

    @pytest.mark.parametrize("frozen", ["rows", "cols", "bias", "x"])
    def test_what_is_frozen_gets_no_gradient(self, frozen):
        layer, x = self.setup_layer((20,))
        tensors = dict(rows=layer.rows, cols=layer.cols, bias=layer.bias, x=x)
        tensors[frozen].requires_grad_(False)
        layer(x).pow(2).sum().backward()
        assert [n for n, t in tensors.items() if t.grad is None] == [frozen]

    def test_updates_are_not_rounded_to_the_precision_of_the_weight(self):
        layer = SPLoRA(linear(dtype=torch.bfloat16), rank=3, init_range=2e-4)
        with torch.no_grad():
            layer.weight.fill_(1)
            layer.bias.fill_(0)
        x = torch.tensor([[1.0, -1.0] * 5]).bfloat16().expand(64, 10)
        exact = (x.float() @ layer.rows.t()) @ layer.cols.t()
        assert torch.equal(layer.to_module().weight, layer.weight)  # rounded away
        assert (layer(x) - exact).abs().max() < 0.05 * exact.abs().max()
        layer = layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert (layer(x.float()) - exact).abs().max() < 0.05 * exact.abs().max()

    def test_plain_class_with_another_product(self):
        calls = []

        class Counted(nn.Linear):
            @staticmethod
            def product(x, weight, bias=None):
                calls.append(tuple(weight.shape))
                return F.linear(x, weight, bias)

        torch.manual_seed(2)
        for method, expected in ((METHODS["SPLoRA"], 6), (METHODS["SPLoPA"], 1)):
            net = nn.Sequential(Counted(10, 14).double())
            adapted = stir(method(net))
            layer, x = adapted[0], values(20, 10)
            calls.clear()
            adapted(x.requires_grad_()).pow(2).sum().backward()
            assert len(calls) == expected
            with torch.no_grad():
                result = adapted.eval()(x)
            assert calls[-1] == (14, 10)
            fresh = nn.Sequential(Counted(10, 14)).double()
            for other in (copy.deepcopy(adapted), fresh):
                adapters.insert_like(other, adapted.state_dict())
                other.load_state_dict(adapted.state_dict())
                assert type(adapters.fuse(other)[0]) is Counted
                with torch.no_grad():
                    assert torch.equal(other.eval()(x), result)
            assert type(layer.to_module()) is Counted


@both
class TestCache:
    def setup_layer(self, method):
        layer = stir(METHODS[method](linear())).eval()
        return layer, values(3, 10)

    @pytest.mark.parametrize(
        "change",
        [
            lambda layer: layer.weight.mul_(2),
            lambda layer: setattr(layer.weight, "data", layer.weight.data * 2),
            lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 2)),
            lambda layer: next(iter(layer.sources())).add_(1),
            lambda layer: layer.load_state_dict(
                {k: v * 2 if v.is_floating_point() else v for k, v in layer.state_dict().items()}
            ),
            lambda layer: (layer.weight.data.mul_(2), layer.eval()),
            lambda layer: (layer.weight.data.mul_(2), layer.train(), layer.eval()),
            lambda layer: layer.float().double(),
        ],
        ids="in-place data new update load eval train cast".split(),
    )
    def test_a_change_is_seen(self, method, change):
        layer, x = self.setup_layer(method)
        with torch.no_grad():
            before = layer(x)
            change(layer)
            after = layer(x)
            layer.forget()
            assert torch.equal(layer(x), after)
        assert not torch.equal(before, after)

    def test_fused_steps_in_evaluation_mode_are_seen(self, method):
        """They change weights without raising their versions."""
        layer, x = self.setup_layer(method)
        learned = [p for n, p in layer.named_parameters() if n not in ("weight", "bias")]
        optimizer = torch.optim.AdamW(learned, 0.1, fused=True)
        with torch.no_grad():
            before = layer(x)
        for _ in range(2):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
        with torch.no_grad():
            after = layer(x)
            layer.forget()
            assert torch.equal(layer(x), after)
        assert not torch.equal(before, after)

    def test_memory_is_not_taken_along(self, method):
        layer, x = self.setup_layer(method)
        with torch.no_grad():
            layer(x)
        assert "_remembered" in layer.__dict__
        size = len(pickle.dumps(layer))
        layer.forget()
        assert size == len(pickle.dumps(layer))
        loaded = pickle.loads(pickle.dumps(layer))
        with torch.no_grad():
            assert torch.equal(loaded(x), layer(x))

    def test_inference_mode_and_gradients_of_inputs(self, method):
        layer, x = self.setup_layer(method)
        with torch.inference_mode():
            expected = layer(x).clone()
        with torch.no_grad():
            assert torch.equal(expected, layer(x))
        layer.requires_grad_(False)
        x = x.clone().requires_grad_()
        layer(x).sum().backward()
        weight = layer.to_module().weight
        assert (x.grad - weight.sum(0)).abs().max() < 1e-13

    def test_made_in_inference_mode(self, method):
        with torch.inference_mode():
            layer = stir(METHODS[method](linear())).eval()
            x = values(3, 10)
            before = layer(x)
            layer.weight.mul_(2)
            assert not torch.equal(layer(x), before)


ATTENTION = {
    "self": (dict(), (5, 5)),
    "no bias": (dict(bias=False), (5, 5)),
    "kdim = vdim": (dict(kdim=6, vdim=6), (4, 5)),
    "kdim and vdim": (dict(kdim=6, vdim=5), (4, 5)),
    "bias_kv": (dict(add_bias_kv=True), (4, 5)),
    "zero attention": (dict(add_zero_attn=True), (4, 5)),
    "batch first": (dict(batch_first=True), (3, 3)),
}


@both
@pytest.mark.parametrize("variant", ATTENTION)
@pytest.mark.parametrize("training", [True, False])
def test_attention_is_that_of_the_adapted_weights(method, variant, training):
    options, (target, source) = ATTENTION[variant]
    torch.manual_seed(1)
    plain = nn.MultiheadAttention(8, 2, **options).double()
    adapted = stir(METHODS[method](plain)).train(training)
    expected = copy.deepcopy(plain).train(training)
    own = dict(expected.named_parameters())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name in own:
                own[name].copy_(parameter)
        for name, weight in adapted.adapted_weights().items():
            assert not torch.equal(own[name], weight)
            own[name].copy_(weight)
    query, key, value = (
        values(target, 3, 8),
        values(source, 3, plain.kdim, seed=2),
        values(source, 3, plain.vdim, seed=3),
    )
    if variant in ("self", "no bias", "batch first"):
        key = value = query
    padding = torch.zeros(3, source, dtype=torch.bool)
    padding[1, -2:] = True
    for kwargs in (
        dict(),
        dict(need_weights=False),
        dict(key_padding_mask=padding),
        dict(average_attn_weights=False),
    ):
        if variant == "batch first" and "key_padding_mask" in kwargs:
            kwargs = dict(key_padding_mask=padding[:, :3])
        with torch.no_grad():
            a, b = adapted(query, key, value, **kwargs), expected(query, key, value, **kwargs)
        assert (a[0] - b[0]).abs().max() < 1e-12
        assert (a[1] is None) == (b[1] is None)
        assert a[1] is None or (a[1] - b[1]).abs().max() < 1e-12
    adapted(query, key, value)[0].pow(2).sum().backward()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name


@both
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("include", [None, "*linear1", "*self_attn"])
def test_fast_paths_of_encoders_do_not_bypass_adapters(method, include, norm_first):
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    plain = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    plain = plain.double().eval()
    adapted = stir(METHODS[method](plain, include=include))
    fused = adapters.fuse(copy.deepcopy(adapted))
    x = values(3, 6, 8)
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = padding[2, 2:] = True
    for mask in (None, padding):
        kept = slice(None) if mask is None else ~mask
        with torch.no_grad():
            expected = fused(x, src_key_padding_mask=mask)[kept]
            result = adapted(x, src_key_padding_mask=mask)[kept]
            changed = result - plain(x, src_key_padding_mask=mask)[kept]
        assert changed.abs().max() > 1e-2
        assert (result - expected).abs().max() < 1e-12
        with torch.no_grad():
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                slow = fused(x, src_key_padding_mask=mask)[kept]
            finally:
                torch.backends.mha.set_fastpath_enabled(True)
        assert (result - slow).abs().max() < 1e-12


@both
def test_hooks_and_references_survive(method):
    layer = linear()
    calls = []
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.weight.register_hook(lambda grad: calls.append("weight"))
    reference, weight = layer, layer.weight
    adapted = METHODS[method](layer, inplace=True)
    assert adapted is reference and adapted.weight is weight
    adapted(values(2, 10)).sum().backward()
    assert calls == ["before", "forward"]
    assert isinstance(reference, nn.Linear) and reference.in_features == 10
    adapters.fuse(adapted)
    reference(values(2, 10))
    assert calls == ["before", "forward"] * 2
    assert type(reference) is nn.Linear and reference.weight is weight


@both
def test_to_module_owns_its_storage(method):
    layer = stir(METHODS[method](linear()))
    plain = layer.to_module()
    assert type(plain) is nn.Linear and isinstance(layer, adapters.AdaptedLayer)
    assert list(plain.state_dict()) == ["weight", "bias"]
    assert all(p.requires_grad for p in plain.parameters())
    assert torch.equal(plain.weight, adapters.adapted_weight(layer))
    assert adapters.adapted_weight(plain) is plain.weight
    storages = {p.data_ptr() for p in plain.parameters()}
    assert not storages & {p.data_ptr() for p in layer.parameters()}


@both
def test_compiled_layers_keep_nothing(method, monkeypatch):
    layer = stir(METHODS[method](linear())).eval()
    x = values(3, 10)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.no_grad():
        layer(x)
        assert "fused" not in layer.__dict__.get("_remembered", {})
        layer.sources()[0].add_(1)
        expected = F.linear(x, layer.to_module().weight, layer.bias)
        assert (layer(x) - expected).abs().max() < 1e-13


@both
@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_replicas_of_data_parallel_compute_and_learn_the_same(
    method, training, learning, monkeypatch
):
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(12, 3, 18, dropout=0.0, dtype=torch.float64)
    model, x = stir(METHODS[method](layer)), torch.randn(5, 2, 12, dtype=torch.float64)
    model.train(training)
    check_replicas(model, x, learning, monkeypatch)


def test_functional_gradients_whatever_the_number_of_rows():
    layer = stir(SPLoRA(linear(4, 64), rank=2))
    learned = {n: p.detach() for n, p in layer.named_parameters() if p.requires_grad}

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, x).square().sum()

    x = torch.randn(5, 64, 4, dtype=torch.float64)
    assert layer._merging_pays(x[0], layer.weight)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(learned, x)
    for number in range(5):
        layer.zero_grad()
        layer(x[number]).square().sum().backward()
        for name in learned:
            expected = layer.get_parameter(name).grad
            torch.testing.assert_close(each[name][number], expected)


@both
@pytest.mark.filterwarnings("ignore")
def test_traced_and_exported_layers_compute_the_same(method):
    layer = stir(METHODS[method](linear(4, 64))).eval()
    if method == "SPLoPA":
        layer.set_block_mask(torch.rand(layer.block_mask.shape) < 0.5)
    x, other = torch.randn(2, 64, 4, dtype=torch.float64)
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            expected = layer(other)
            traced = torch.jit.trace(layer, x)
            exported = torch.export.export(layer, (x,)).module()
            for made in (traced, exported):
                torch.testing.assert_close(made(other), expected)
            assert torch.equal(layer(other), expected)


@pytest.mark.parametrize("name", ["in_proj_weight", "out_proj.weight"])
def test_attention_sees_that_its_weights_change(name):
    attention = SPLoRA(nn.MultiheadAttention(8, 2), rank=2).eval()
    x = torch.randn(3, 1, 8)
    with torch.no_grad():
        before = attention(x, x, x)[0]
        attention.get_parameter(name).mul_(2)
        assert not torch.allclose(attention(x, x, x)[0], before)


@pytest.mark.parametrize(
    "options", [dict(padding=(0, 2)), dict(padding="valid"), dict(padding=(3, 0), stride=2)]
)
def test_convolution_is_that_of_the_adapted_weight(options):
    layer = stir(SPLoRA(nn.Conv2d(4, 6, (3, 5), **options).double(), rank=2))
    x, weight = values(2, 4, 9, 8), adapters.adapted_weight(layer)
    expected = F.conv2d(x, weight, layer.bias, **options)
    torch.testing.assert_close(layer(x), expected)
