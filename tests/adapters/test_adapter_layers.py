"""Adapted layers one by one: sizes, masks, cuts, precision, caches, attention."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from src import adapters
from src.adapters import AdapterError, SPLoPA, SPLoRA
from tests.support.adapters import METHODS, both, linear, stir, values


def bits(size, kept, seed=0):
    mask = torch.zeros(size, dtype=torch.bool)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    mask[order[:kept]] = True
    return mask


class TestSettings:
    @pytest.mark.parametrize(
        "rank, expected", [(1, 1), (16, 16), (0.25, 8), (0.27, 9), (0.001, 1), (0.5, 16)]
    )
    def test_rank(self, rank, expected):
        assert SPLoRA(nn.Linear(40, 32), rank=rank).rank == expected

    def test_rank_by_default(self):
        assert SPLoRA(nn.Linear(40, 32)).rank == 16

    @pytest.mark.parametrize("rank", [0, -1, 1.0, 2.5, 0.0, True, "8", None])
    def test_rank_that_is_none(self, rank):
        with pytest.raises(AdapterError, match="rank"):
            SPLoRA(nn.Linear(40, 32), rank=rank)

    def test_rank_above_full_rank(self):
        SPLoRA(nn.Linear(40, 32), rank=32)
        SPLoRA(nn.Linear(32, 40), rank=32)
        for m, n, rank in ((40, 32, 33), (32, 40, 33), (4, 32, 0.25)):
            with pytest.raises(AdapterError, match=f"{min(m, n)}"):
                SPLoRA(nn.Linear(m, n), rank=rank)

    @pytest.mark.parametrize("bad", [-1e-4, math.inf, math.nan, None, "1e-4", True])
    def test_init_range(self, bad):
        for method in (SPLoRA, SPLoPA):
            with pytest.raises(AdapterError, match="init_range"):
                method(nn.Linear(40, 32), init_range=bad)

    @pytest.mark.parametrize(
        "options",
        [
            dict(block_size=0),
            dict(block_size=(4, -1)),
            dict(block_size=(4, 4, 4)),
            dict(block_size=2.5),
            dict(block_size=None),
            dict(num_prototypes=0),
            dict(rank=0),
            dict(block_size=(4, 8), rank=5),
        ],
        ids=str,
    )
    def test_block_settings_that_are_none(self, options):
        with pytest.raises(AdapterError, match=list(options)[-1]):
            SPLoPA(nn.Linear(40, 32), **options)

    @pytest.mark.parametrize("name, value", [
        ("types", ["Linear"]), ("types", 3), ("include", 0), ("exclude", [0]),
    ])  # fmt: skip
    def test_choices_that_are_none(self, name, value):
        net = nn.Sequential(nn.Linear(8, 8), nn.Conv1d(8, 8, 3))
        assert list(adapters.adapted_layers(SPLoRA(net, rank=2, types=nn.Linear))) == ["0"]
        with pytest.raises(AdapterError, match=name):
            SPLoRA(net, rank=2, **{name: value})
        with pytest.raises(AdapterError, match="a list is neither"):
            SPLoRA([net])

    def test_an_empty_weight_has_no_blocks(self):
        net = nn.Sequential(nn.utils.skip_init(nn.Linear, 0, 8))
        with pytest.raises(AdapterError, match=r"can't adapt 0: .*\(8, 0\) has no blocks"):
            SPLoPA(net)

    def test_even_kernels_have_no_centre(self):
        with pytest.raises(AdapterError, match="odd"):
            SPLoRA(nn.Conv2d(8, 8, (3, 4)), rank=2)

    def test_initial_values(self):
        def uniform(tensor, bound):
            assert bound * 0.95 < tensor.abs().max() <= bound
            assert tensor.mean().abs() < bound / 10

        layer = SPLoRA(nn.Linear(300, 200), rank=8)
        uniform(layer.rows, 1 / math.sqrt(8 * 300))
        uniform(layer.cols, 1e-4)
        uniform(SPLoRA(nn.Linear(300, 200), init_range=0.3).cols, 0.3)
        layer = SPLoPA(nn.Linear(320, 200), block_size=(20, 32), rank=2)
        uniform(layer.pos_weights, 1 / math.sqrt(10 * 10))
        uniform(layer.prototypes.rows, 1 / math.sqrt(2 * 32))
        uniform(layer.prototypes.cols, 1e-4)
        assert layer.pos_weights.shape == (64, 10, 10)
        assert SPLoPA(nn.Linear(64, 64)).prototypes.cols.shape == (64, 32, 1)


class TestCounts:
    @pytest.mark.parametrize(
        "layer",
        [
            nn.Linear(10, 14),
            nn.Linear(10, 14, bias=False),
            nn.Conv1d(10, 14, 3),
            nn.Conv2d(10, 14, 3),
            nn.Conv3d(10, 14, 3),
            nn.Conv2d(20, 14, 5, groups=2),
        ],
        ids=str,
    )
    def test_low_rank(self, layer):
        adapted = SPLoRA(layer, rank=3)
        everything = sum(p.numel() for p in adapted.parameters())
        kept_in, kept_out = bits(10, 6), bits(14, 9)
        adapted.configure_parameter_read(
            adapter_weights_only=True,
            in_features_mask=kept_in,
            out_features_mask=kept_out,
        )
        bias = 0 if layer.bias is None else 9
        assert sum(p.numel() for p in adapted.parameters()) == 3 * (6 + 9) + bias
        named = dict(adapted.named_parameters())
        assert torch.equal(named["rows"], adapted.rows[:, kept_in])
        assert torch.equal(named["cols"], adapted.cols[kept_out])
        state = adapted.state_dict()
        assert set(state) == {*named, "in_features_mask", "out_features_mask"}
        assert all(torch.equal(state[name], named[name]) for name in named)
        assert sum(m.numel() for n, m in state.items() if "mask" in n) == 2 + 2  # bytes
        adapted.configure_parameter_read(in_features_mask=kept_in)
        bias = 0 if layer.bias is None else 14
        assert sum(p.numel() for p in adapted.parameters()) == 3 * (6 + 14) + bias
        adapted.configure_parameter_read()
        assert sum(p.numel() for p in adapted.parameters()) == 3 * (10 + 14) + bias
        adapted.reset_parameter_read()
        assert sum(p.numel() for p in adapted.parameters()) == everything
        assert set(adapted.state_dict()) == {"rows", "cols", *layer.state_dict()}

    @pytest.mark.parametrize("rank", [1, 2])
    def test_blocks(self, rank):
        adapted = SPLoPA(nn.Linear(10, 14), (4, 3), num_prototypes=5, rank=rank)
        mask = bits(16, 7).view(4, 4)
        adapted.configure_parameter_read(mask=mask)
        count = 5 * 7 + 5 * rank * (4 + 3) + 14
        assert sum(p.numel() for p in adapted.parameters()) == count
        assert adapted.state_dict()["block_mask"].numel() == 2  # bytes
        adapted.reset_parameter_read()
        adapted.set_block_mask(mask)
        adapted.configure_parameter_read()
        assert sum(p.numel() for p in adapted.parameters()) == count
        assert adapters.report(adapted)[-1]["mask_bits"] == 16

    def test_attention(self):
        attention = SPLoRA(nn.MultiheadAttention(8, 2, kdim=6, vdim=5), rank=2)
        count = 2 * (8 + 8) + 2 * (6 + 8) + 2 * (5 + 8) + 2 * (8 + 8)
        attention.configure_parameter_read()
        assert sum(p.numel() for p in attention.parameters()) == count + 4 * 8
        masks = {
            "k_adapter": dict(in_features_mask=bits(6, 4)),
            "v_adapter": dict(out_features_mask=bits(8, 3)),
        }
        attention.configure_parameter_read(masks=masks)
        count += -2 * 2 - 2 * 5 + 4 * 8 - 5
        assert sum(p.numel() for p in attention.parameters()) == count
        packed = SPLoRA(nn.MultiheadAttention(8, 2), rank=2)  # one weight for q, k, v
        packed.configure_parameter_read()
        assert sum(p.numel() for p in packed.parameters()) == 4 * 2 * 16 + 4 * 8

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("options", [dict(), dict(kdim=6, vdim=5)])
    def test_attention_learns_all_its_biases(self, method, options):
        torch.manual_seed(1)
        plain = nn.MultiheadAttention(8, 2, add_bias_kv=True, **options)
        adapted = stir(METHODS[method](plain))
        named = dict(adapted.named_parameters())
        for name in ("bias_k", "bias_v"):
            assert named[name].requires_grad
            assert not torch.equal(named[name], plain.get_parameter(name))
        x = [torch.randn(4, 3, size) for size in (8, plain.kdim, plain.vdim)]
        expected = adapted.eval()(*x)[0]
        state = adapters.adapter_state_dict(adapted)
        assert adapters.report(adapted)[-1]["biases"] == 4 * 8 + 2 * 8
        again = copy.deepcopy(plain)
        adapters.load_adapter_state_dict(again, state)
        assert torch.equal(again.eval()(*x)[0], expected)
        again = copy.deepcopy(plain)  # of before they were learned
        older = {k: v for k, v in state.items() if k not in ("bias_k", "bias_v")}
        adapters.load_adapter_state_dict(again, older)
        assert torch.equal(again.bias_k, plain.bias_k)
        fused = adapters.fuse(adapted)
        torch.testing.assert_close(fused(*x)[0], expected)

    def test_masks_leave_out_their_part_of_the_biases_for_keys_and_values(self):
        attention = stir(SPLoRA(nn.MultiheadAttention(8, 2, add_bias_kv=True), rank=2))
        kept = bits(8, 3)
        masks = {"v_adapter": dict(out_features_mask=kept)}
        state = adapters.adapter_state_dict(attention, masks)
        assert torch.equal(state["bias_v"], attention.bias_v[..., kept])
        assert torch.equal(state["bias_k"], attention.bias_k)
        again = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        adapters.load_adapter_state_dict(again, state)
        assert torch.equal(again.bias_v, attention.bias_v * kept)

    def test_weights_are_masked_too_when_they_are_read(self):
        adapted = SPLoRA(nn.Conv1d(10, 14, 3), rank=3)
        masks = dict(in_features_mask=bits(10, 6), out_features_mask=bits(14, 9))
        adapted.configure_parameter_read(adapter_weights_only=False, **masks)
        named = dict(adapted.named_parameters())
        expected = adapted.weight[masks["out_features_mask"]]
        expected = expected[:, masks["in_features_mask"]]
        assert torch.equal(named["weight"], expected)
        assert torch.equal(adapted.state_dict()["weight"], expected)

    def test_masks_that_do_not_fit(self):
        layer = SPLoRA(nn.Linear(10, 14), rank=3)
        for masks, message in (
            (dict(in_features_mask=bits(14, 3)), r"in_features_mask.*\(14,\).*\(10,\)"),
            (dict(out_features_mask=bits(14, 3).int()), "int32.*bool"),
            (dict(mask=bits(14, 3)), "no such mask.*in_features_mask"),
        ):
            with pytest.raises(AdapterError, match=message):
                layer.configure_parameter_read(**masks)
            assert "weight" in dict(layer.named_parameters())

    def test_exceeding_adapters_are_reported(self):
        small = adapters.report(SPLoRA(nn.Linear(10, 14), rank=5))
        assert not small[-1]["exceeds"] and small[-1]["note"] == ""
        large = adapters.report(SPLoRA(nn.Linear(10, 14), rank=6))
        assert large[0]["adapter"] == 144 and large[0]["weights"] == 140
        assert large[0]["exceeds"] and "exceeds" in large[0]["note"]
        assert large[-1]["exceeds"]

    def test_bytes_are_of_everything_learned_once(self):
        layer = SPLoRA(linear(10, 13), rank=3)
        (row, total) = adapters.report(layer)
        assert row["mask_bits"] == 23  # three bytes
        assert row["bytes"] == total["bytes"] == 8 * (3 * 23 + 13) + 3
        tied = nn.Sequential(linear(), linear())
        tied[1].weight, tied[1].bias = tied[0].weight, tied[0].bias
        first, second, total = adapters.report(SPLoRA(tied, rank=3))
        assert first["adapter"] == 3 * 24 and first["weights"] == 140
        assert second["adapter"] == second["weights"] == second["biases"] == 0
        assert (total["adapter"], total["weights"], total["biases"]) == (72, 140, 14)
        *_, shared, total = adapters.report(METHODS["SPLoPA"](linear()))
        assert shared["kind"] == "Prototypes" and not shared["exceeds"]


class TestBlocks:
    @pytest.mark.parametrize("rank", [1, 2])
    @pytest.mark.parametrize("size", [(7, 5), (4, 3), (1, 1), (16, 32), (5, 12)], ids=str)
    def test_update_is_the_sum_of_kronecker_products(self, size, rank):
        rank = min(rank, *size)
        layer = stir(SPLoPA(linear(), size, num_prototypes=3, rank=rank))
        prototypes = layer.prototypes
        update = sum(
            torch.kron(layer.pos_weights[i], prototypes.cols[i] @ prototypes.rows[i])
            for i in range(3)
        )
        update = adapters.adapted_weight(layer) - layer.weight - update[:14, :10]
        assert update.abs().max() < 1e-14

    def test_no_large_intermediate_result(self):
        class Largest(TorchDispatchMode):
            numel = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                if isinstance(result, torch.Tensor):
                    self.numel = max(self.numel, result.numel())
                return result

        layer = SPLoPA(nn.Linear(64, 96), 16, num_prototypes=20)
        with Largest() as largest:
            layer(torch.randn(3, 64)).sum().backward()
        assert layer.pos_weights.grad.abs().max() > 0
        assert largest.numel == 64 * 96

    @pytest.mark.parametrize("mode", [True, False])
    def test_masked_blocks_stay_zero(self, mode):
        layer = stir(SPLoPA(linear(), (4, 3), num_prototypes=5)).train(mode)
        mask = bits(16, 9).view(4, 4)
        x = values(6, 10)
        layer(x)
        layer.set_block_mask(mask)
        zero = ~mask.repeat_interleave(4, 0).repeat_interleave(3, 1)[:14, :10]
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            layer(x).pow(2).sum().backward()
            assert (layer.pos_weights.grad[:, ~mask] == 0).all()
            assert (layer.pos_weights.grad[:, mask] != 0).all()
            optimizer.step()
            weight = adapters.adapted_weight(layer)
            assert (weight[zero] == 0).all() and (weight[~zero] != 0).all()
            with torch.no_grad():
                expected = F.linear(x, weight, layer.bias)
                assert (layer(x) - expected).abs().max() < 1e-12
                assert (layer.eval()(x) - expected).abs().max() < 1e-12
            layer.train(mode)
        assert (layer.weight[zero] != 0).all()
        assert (layer.to_module().weight[zero] == 0).all()
        assert (adapters.fuse(layer).weight[zero] == 0).all()

    def test_mask_that_is_set_between_two_uses_is_seen(self):
        layer = stir(SPLoPA(linear(), (4, 3), num_prototypes=3)).eval()
        x = values(2, 10)
        with torch.no_grad():
            assert layer(x).std() > 0
            layer.set_block_mask(torch.zeros(4, 4, dtype=torch.bool))
            assert torch.equal(layer(x), layer.bias.expand(2, -1))

    def test_mask_that_does_not_fit(self):
        layer = SPLoPA(linear(), (4, 3), num_prototypes=5)
        with pytest.raises(AdapterError, match=r"\(4, 5\).*\(4, 4\)"):
            layer.set_block_mask(torch.ones(4, 5, dtype=torch.bool))

    def test_mask_is_saved_with_the_adapters(self):
        layer = stir(SPLoPA(linear(), (4, 3), num_prototypes=5))
        layer.set_block_mask(bits(16, 9).view(4, 4))
        state = adapters.adapter_state_dict(layer)
        assert state["pos_weights"].shape == (5, 9)
        other = linear()
        masks = adapters.load_adapter_state_dict(other, state)
        assert torch.equal(masks[""]["mask"], layer.block_mask)
        with torch.no_grad():
            x = values(6, 10)
            assert torch.equal(other.eval()(x), layer.eval()(x))


def slice_by_hand(layer, out, inputs):
    """What connectivity's cut does, by the layer's own declaration."""
    for dim, kept in ((0, out), (1, inputs)):
        name, follows = layer.adapter_slices[dim]
        for tensor, d in ((layer.weight, dim), (getattr(layer, name), follows)):
            tensor.data = tensor.data.index_select(d, kept)
    layer.bias.data = layer.bias.data[out]


CUT = torch.tensor([0, 1, 4, 5, 6, 9, 12]), torch.tensor([1, 2, 3, 7, 8])


@both
class TestCut:
    def cut_layer(self, method):
        layer = stir(METHODS[method](linear()))
        if method == "SPLoPA":
            layer.set_block_mask(bits(16, 12).view(4, 4))
        uncut = copy.deepcopy(layer)
        slice_by_hand(layer, *CUT)
        return layer, uncut

    def test_fuse_then_slice_equals_slice_then_fuse(self, method):
        layer, uncut = self.cut_layer(method)
        out, inputs = CUT
        fused = uncut.to_module()
        weight = fused.weight[out][:, inputs]
        assert (layer.to_module().weight - weight).abs().max() < 1e-14
        x = values(6, 5)
        expected = F.linear(x, weight, fused.bias[out])
        with torch.no_grad():
            assert (layer.train()(x) - expected).abs().max() < 1e-13
            assert (layer.eval()(x) - expected).abs().max() < 1e-13
        again = torch.tensor([0, 2, 5, 6]), torch.tensor([0, 3, 4])
        slice_by_hand(layer, *again)  # after a pass in evaluation mode
        weight = weight[again[0]][:, again[1]]
        with torch.no_grad():
            assert (layer(x[:, :3]) - F.linear(x[:, :3], weight, layer.bias)).abs().max() < 1e-13
        assert (adapters.fuse(layer).weight - weight).abs().max() < 1e-14

    def test_a_view_of_the_first_channels_is_seen(self, method):
        layer, x = stir(METHODS[method](linear())).eval(), values(3, 10)
        with torch.no_grad():
            expected = layer(x)[:, :5]
            name, dim = layer.adapter_slices[0]
            for tensor in (layer.weight, layer.bias, getattr(layer, name)):
                tensor.data = tensor.data[:5]
            assert (layer(x) - expected).abs().max() < 1e-13

    def test_trains_and_loads_after_the_cut(self, method):
        layer, _ = self.cut_layer(method)
        x = values(6, 5)
        optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad])
        layer.train()(x).pow(2).sum().backward()
        optimizer.step()
        for insert in ("full", "adapters only"):
            base = nn.Linear(5, 7, dtype=torch.float64).eval()
            if insert == "full":
                adapters.insert_like(base, layer.state_dict())
                base.load_state_dict(layer.state_dict(), strict=True)
            else:
                base.weight.data = layer.weight.data.clone()
                adapters.load_adapter_state_dict(base, adapters.adapter_state_dict(layer))
            with torch.no_grad():
                assert torch.equal(base(x), layer.eval()(x))
            assert adapters.insert_like(base, layer.state_dict()) == [""]
            assert torch.equal(base.to_module().weight, layer.to_module().weight)

    def test_state_of_another_width_is_refused(self, method):
        layer, uncut = self.cut_layer(method)
        for base in (linear(), nn.Linear(5, 8), nn.Linear(6, 7)):
            before = type(base), copy.deepcopy(base.state_dict())
            for state in (layer.state_dict(), adapters.adapter_state_dict(layer)):
                with pytest.raises(AdapterError, match="found .*expected"):
                    adapters.insert_like(base, state)
            with pytest.raises(AdapterError, match="found .*expected"):
                adapters.load_adapter_state_dict(base, adapters.adapter_state_dict(layer))
            assert type(base) is before[0]
            assert list(base.state_dict()) == list(before[1])


class TestChannelMasks:
    @pytest.mark.parametrize(
        "layer, shape",
        [(linear(), (6, 10)), (nn.Conv1d(10, 14, 3).double(), (2, 10, 7))],
        ids=["linear", "conv"],
    )
    def test_saved_with_masks(self, layer, shape):
        adapted = stir(SPLoRA(layer, rank=3)).eval()
        masks = dict(in_features_mask=bits(10, 6), out_features_mask=bits(14, 9))
        state = adapters.adapter_state_dict(adapted, {"": masks})
        assert state["rows"].shape == (3, 6) and state["cols"].shape == (9, 3)
        assert state["bias"].shape == (9,)
        other = copy.deepcopy(layer)
        found = adapters.load_adapter_state_dict(other, state)
        assert all(torch.equal(found[""][name], masks[name]) for name in masks)
        kept = masks["out_features_mask"]
        x = values(*shape)
        x[:, ~masks["in_features_mask"]] = 0
        with torch.no_grad():
            expected, result = adapted(x), other.eval()(x)
        assert torch.equal(result[:, kept], expected[:, kept])
        assert (other.cols[~kept] == 0).all() and (other.bias[~kept] == 0).all()
        assert torch.equal(other.weight, layer.weight)

    def test_damaged_masks(self):
        layer = SPLoRA(linear(), rank=3)
        masks = dict(in_features_mask=bits(10, 6), out_features_mask=bits(14, 9))
        state = adapters.adapter_state_dict(layer, {"": masks})
        state["in_features_mask"] = adapters.masks.pack(bits(10, 5))
        with pytest.raises(AdapterError, match=r"rows: found.*\(3, 6\).*\(3, 5\)"):
            adapters.load_adapter_state_dict(linear(), state)

    @pytest.mark.parametrize("size", [1, 7, 8, 9, 64])
    def test_packed_bits(self, size):
        mask = bits(size, size // 2 + 1)
        packed = adapters.masks.pack(mask)
        assert packed.dtype == torch.uint8 and packed.numel() == -(-size // 8)
        assert torch.equal(adapters.masks.unpack(packed, size), mask)
