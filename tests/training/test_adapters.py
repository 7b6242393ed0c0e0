"""What holds for every adapter, in every layer, network and type: one table."""

import copy
import io

import pytest
import torch
from torch import nn

from src import adapters
from src.adapters import SPLoPA, SPLoRA
from src.connectivity.cut import cut
from tests.support.adapters import values
from tests.support.cuts import random_keep
from tests.support.training import batch, build

SMALL = {
    "SPLoRA": lambda module, **kw: SPLoRA(module, **{"rank": 2, **kw}),
    "SPLoPA": lambda module, **kw: SPLoPA(
        module, **{"block_size": (4, 3), "num_prototypes": 3, **kw}
    ),
}
FLOAT, BF16, DOUBLE = torch.float32, torch.bfloat16, torch.float64


def attention(x, **options):
    return nn.MultiheadAttention(8, 2, batch_first=True, **options), (x, x, x)


def small_network():
    """Linears, norms, biasless and twice used layers, all in one."""
    shared = nn.Linear(8, 8)
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1)
    return nn.Sequential(
        nn.Linear(6, 8, bias=False), shared, nn.ReLU(), shared, encoder, nn.Linear(8, 5)
    )


def srp(width_cut: bool):
    model = build(share_decoder_input_output_embed=True)
    if width_cut:
        cut(model, random_keep(model, ("embedding", "qk", "vo", "ffn")))
    return model


CASES = {
    "linear": lambda: (nn.Linear(6, 8), (values(2, 5, 6),)),
    "linear without bias": lambda: (nn.Linear(6, 8, bias=False), (values(4, 6),)),
    "conv1d": lambda: (nn.Conv1d(4, 6, 5, 2, 1), (values(2, 4, 11),)),
    "conv2d": lambda: (
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, padding_mode="reflect"),
        (values(2, 4, 7, 8),),
    ),
    "conv3d": lambda: (
        nn.Conv3d(4, 2, (1, 3, 5), padding="same"),
        (values(2, 4, 3, 4, 5),),
    ),
    "attention": lambda: attention(values(2, 5, 8)),
    "cross attention": lambda: (
        nn.MultiheadAttention(8, 2, kdim=5, vdim=7, add_bias_kv=True, bias=False),
        (values(4, 2, 8), values(5, 2, 5), values(5, 2, 7)),
    ),
    "network": lambda: (small_network(), (values(2, 5, 6),)),
    "SRP": lambda: (srp(False), batch()),
    "SRP, cut": lambda: (srp(True), batch()),
}
TYPES = {"SRP": (DOUBLE, BF16), "SRP, cut": (FLOAT,)}
NETWORKS = ("network", "SRP", "SRP, cut")
TABLE = [
    pytest.param(method, case, dtype, id=f"{method}-{case}-{str(dtype)[6:]}")
    for method in SMALL
    for case in CASES
    for dtype in TYPES.get(case, (FLOAT, BF16, DOUBLE))
    if not (method == "SPLoPA" and case.startswith("conv"))
]


@pytest.mark.parametrize("method, case, dtype", TABLE)
class TestEveryAdapter:
    @pytest.fixture(autouse=True)
    def make(self, method, case, dtype):
        torch.manual_seed(3)
        plain, inputs = CASES[case]()
        self.case, self.dtype = case, dtype
        self.plain = plain.to(dtype).eval()
        self.inputs = [
            x.to(dtype) if x is not None and x.is_floating_point() else x for x in inputs
        ]
        excluded = {"exclude": "decoder.output_projection"} if "SRP" in case else {}
        self.adapt = lambda module, **kw: SMALL[method](module, **excluded, **kw)
        self.tolerance = {FLOAT: 1e-4, BF16: 0.1, DOUBLE: 1e-10}[dtype]

    def run(self, module):
        output = module(*self.inputs)
        return output[0] if isinstance(output, tuple) else output

    def infer(self, module):
        with torch.no_grad():
            return self.run(module.eval())

    def adapted(self, **kw):
        """With updates that show."""
        module = self.adapt(self.plain, **kw)
        torch.manual_seed(4)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return module

    def learned(self, module):
        return [(n, p) for n, p in module.named_parameters() if p.requires_grad]

    def bases(self, module):
        layers = adapters.adapted_layers(module).values()
        return {
            id(adapters.layer.attribute(layer, part.weight))
            for layer in layers
            for part in adapters.layer.parts(layer)
        }

    def close(self, a, b):
        scale = b.abs().max().clamp(min=1)
        return (a - b).abs().max() <= self.tolerance * scale

    def test_source_stays_untouched_and_weights_are_kept(self):
        before = copy.deepcopy(self.plain.state_dict())
        flags = [p.requires_grad for p in self.plain.parameters()]
        module = self.adapted()
        assert flags == [p.requires_grad for p in self.plain.parameters()]
        assert not adapters.adapted_layers(self.plain)
        after = self.plain.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[k], after[k]) for k in before)
        fresh = self.adapt(self.plain).state_dict()
        assert all(torch.equal(before[k], fresh[k]) for k in before)
        shared = {p.data_ptr() for p in self.plain.parameters()}
        assert not shared & {p.data_ptr() for p in module.parameters()}

    def test_exactly_the_plain_layer_without_init_range(self):
        module = self.adapt(self.plain, init_range=0)
        # torch multiplies a transposed input in another order (and rounds otherwise)
        # when the weight requires a gradient
        bases = self.bases(module)
        plains = [copy.deepcopy(self.plain).requires_grad_(False) for _ in range(2)]
        named = dict(plains[1].named_parameters())
        for name, parameter in module.named_parameters():
            if name in named:
                named[name].requires_grad_(id(parameter) in bases)
        torch.backends.mha.set_fastpath_enabled(self.case != "network")
        try:
            result = self.infer(module)
            assert any(torch.equal(result, self.infer(plain)) for plain in plains)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        result = self.run(module.train())
        assert any(torch.equal(result, self.run(plain.train())) for plain in plains)
        adapters.fuse(module)
        for key, value in self.plain.state_dict().items():
            assert torch.equal(module.state_dict()[key], value)

    def test_close_to_the_plain_layer_at_first(self):
        outputs, plain = self.infer(self.adapt(self.plain)), self.infer(self.plain)
        assert (outputs - plain).abs().max() <= (0.1 if self.dtype is BF16 else 1e-2)
        assert self.dtype is BF16 or not torch.equal(outputs, plain)

    def test_every_adapter_receives_a_gradient(self):
        module = self.adapted().train()
        self.run(module).pow(2).sum().backward()
        learned = self.learned(module)
        assert len(learned) > 1
        for name, parameter in learned:
            key_bias = "k_proj.bias" in name  # softmax does not see it
            if not key_bias:
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        others = [p for p in module.parameters() if not p.requires_grad]
        assert others and all(p.grad is None for p in others)

    def test_adapters_get_gradients_in_evaluation_mode(self):
        module = self.adapted().eval()
        self.run(module).pow(2).sum().backward()
        for name, parameter in self.learned(module):
            if "k_proj.bias" not in name:
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, name

    def test_a_step_changes_adapters_and_biases_but_no_weight(self):
        module = self.adapted().train()
        bases = self.bases(module)
        for parameter in module.parameters():
            if id(parameter) in bases:
                parameter.requires_grad_(True)
        before = copy.deepcopy(module.state_dict())
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        self.run(module).pow(2).sum().backward()
        optimizer.step()
        named = dict(module.named_parameters())
        for name, parameter in named.items():
            changed = not torch.equal(before[name], parameter)
            learned = parameter.requires_grad and id(parameter) not in bases
            assert changed == learned or "k_proj.bias" in name, name
            if id(parameter) in bases:
                assert parameter.grad is None

    def test_fused_equals_unfused(self):
        module = self.adapted()
        unfused = self.run(module.train()).detach()
        fused = self.infer(module)
        assert self.close(fused, unfused)
        assert not self.close(fused, self.infer(self.plain))
        for layer in adapters.adapted_layers(module).values():
            assert "fused" in layer.__dict__["_remembered"]

        def fused_weights():
            layers = adapters.adapted_layers(module).values()
            return [w for m in layers for w in m.fused_weights().values()]

        weights = fused_weights()
        with torch.no_grad():
            self.run(module)
        assert all(a is b for a, b in zip(fused_weights(), weights))
        module.eval()
        assert not any(a is b for a, b in zip(fused_weights(), weights))

    def test_fuse_gives_the_plain_network_back(self):
        module = self.adapted()
        expected = self.infer(module)
        same = [id(p) for n, p in module.named_parameters() if n in self.plain.state_dict()]
        assert adapters.fuse(module) is module
        assert torch.equal(self.infer(module), expected)
        assert [type(m) for m in module.modules()] == [type(m) for m in self.plain.modules()]
        assert list(module.state_dict()) == list(self.plain.state_dict())
        assert [id(p) for p in module.parameters()] == same
        assert not any(m._forward_pre_hooks for m in module.modules())
        expected = {n: p.dtype for n, p in self.plain.named_parameters()}
        assert {n: p.dtype for n, p in module.named_parameters()} == expected

    def test_adapter_state_onto_the_same_base(self):
        module = self.adapted()
        file = io.BytesIO()
        torch.save(adapters.adapter_state_dict(module), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        assert set(state).isdisjoint(n for n, p in self.plain.named_parameters() if "bias" not in n)
        other = copy.deepcopy(self.plain)
        adapters.load_adapter_state_dict(other, state)
        assert torch.equal(self.infer(other), self.infer(module))
        assert torch.equal(self.run(other.train()), self.run(module.train()))
        adapters.load_adapter_state_dict(other, state)  # already inserted
        assert torch.equal(self.infer(other), self.infer(module))
        assert [n for n, p in self.learned(other)] == [n for n, p in self.learned(module)]

    def test_insert_like_needs_no_configuration(self):
        module = self.adapted()
        state = {f"model.{k}": v for k, v in module.state_dict().items()}
        other = copy.deepcopy(self.plain)
        names = adapters.insert_like(other, state, "model.")
        assert set(names) >= set(adapters.adapted_layers(module))
        kinds = [type(m) for m in other.modules()]
        assert kinds == [type(m) for m in module.modules()]
        assert adapters.insert_like(other, state, "model.") == names
        assert kinds == [type(m) for m in other.modules()]
        other.load_state_dict(module.state_dict(), strict=True)
        assert torch.equal(self.infer(other), self.infer(module))

    def test_insert_like_reads_an_adapter_only_state(self):
        module = self.adapted()
        other = copy.deepcopy(self.plain)
        adapters.insert_like(other, adapters.adapter_state_dict(module))
        assert {n: p.shape for n, p in other.named_parameters()} == {
            n: p.shape for n, p in module.named_parameters()
        }

    def test_nothing_is_inserted_for_a_plain_state(self):
        other = copy.deepcopy(self.plain)
        assert adapters.insert_like(other, self.plain.state_dict()) == []
        assert all(p.requires_grad for p in other.parameters())

    def test_mode_and_types_are_kept(self):
        half = self.dtype is BF16
        for mode in (True, False):
            module = self.adapt(self.plain.train(mode))
            assert {m.training for m in module.modules()} == {mode}
        plain = dict(self.plain.named_parameters())
        for name, parameter in module.named_parameters():
            if name in plain:
                assert parameter.dtype == self.dtype
            else:
                assert parameter.dtype == (FLOAT if half else self.dtype)
        for cast, adapter in ((BF16, FLOAT), (DOUBLE, DOUBLE), (FLOAT, FLOAT)):
            module.to(cast)
            for name, parameter in module.named_parameters():
                assert parameter.dtype == (cast if name in plain else adapter)

    def test_copies_are_independent(self):
        module = self.adapted()
        self.infer(module)
        other = copy.deepcopy(module)
        assert not any("_remembered" in m.__dict__ for m in other.modules())
        mine = {id(p) for p in module.parameters()}
        for layer in adapters.adapted_layers(other).values():
            for update in layer.updates().values():
                assert not {id(t) for t in update.sources()} & mine
        expected = self.infer(module)
        with torch.no_grad():
            for _, parameter in self.learned(other):
                parameter.add_(1)
        assert torch.equal(self.infer(module), expected)
        assert not torch.equal(self.infer(other), expected)

    def test_what_is_read_is_what_is_learned(self):
        module = self.adapted()
        everything = [id(p) for p in module.parameters()]
        keys = list(module.state_dict())
        adapters.configure_parameter_read(module)
        learned = dict(module.named_parameters())
        count = sum(p.numel() for p in module.parameters())
        assert list(learned) == [n for n, p in self.learned(adapters_reset(module))]
        assert count == sum(p.numel() for _, p in self.learned(module))
        assert [id(p) for p in module.parameters()] == everything
        assert list(module.state_dict()) == keys
        total = adapters.report(module)[-1]
        assert total["adapter"] + total["biases"] == count
        assert total["base"] == sum(p.numel() for p in self.plain.parameters())
        assert total["percent"] == 100 * count / total["base"]

    def test_an_adapter_is_never_discarded(self):
        module = self.adapted()
        before = copy.deepcopy(module.state_dict())
        for method in SMALL.values():
            with pytest.raises(adapters.AdapterError, match="adapter"):
                include = None if self.case not in NETWORKS else "*"
                method(module, inplace=True, include=include)
        for key, value in module.state_dict().items():
            assert torch.equal(value, before[key])


def adapters_reset(module):
    adapters.reset_parameter_read(module)
    return module
