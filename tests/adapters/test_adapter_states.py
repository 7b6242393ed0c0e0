"""Shared parameters, files of adapters, their errors, and what is read."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from src import adapters
from src.adapters import AdapterError, SPLoPA, SPLoRA
from tests.support.adapters import METHODS, both, network, outputs, snapshot, stir, unchanged

SETS = {
    "shared prototypes": dict(),
    "own prototypes": dict(shared_prototypes=False),
    "shared positions": dict(shared_prototypes=False, shared_pos_weights=True),
    "both shared": dict(shared_pos_weights=True),
}


def blocks(net, **options):
    return SPLoPA(net, **{"block_size": (4, 3), "num_prototypes": 5, **options})


class TestSharedParameters:
    @pytest.mark.parametrize("sets", SETS)
    def test_what_is_shared(self, sets):
        adapted = blocks(network(), **SETS[sets])
        ups = [block["up"] for block in adapted.blocks]
        same = [a is b for a, b in zip(ups[0].sources(), ups[1].sources())][:3]
        positions, prototypes = "pos" in sets, sets in ("shared prototypes", "both shared")
        if sets == "both shared":
            positions = True
        assert same == [positions, prototypes, prototypes]
        keys = list(adapted.state_dict())
        count = {"shared prototypes": 1, "both shared": 1}.get(sets, 5)
        assert sum("prototypes.rows" in k for k in keys) == count
        # (12, 8), (8, 12) and (9, 8) are grids of 3x3, 2x4 and 3x3
        assert sum("pos_weights" in k for k in keys) == (2 if positions else 5)

    @pytest.mark.parametrize("sequential", [False, True])
    @pytest.mark.parametrize("sets", SETS)
    def test_survives_saving(self, sets, sequential):
        net = network()
        if sequential:
            net = nn.Sequential(net.embed, net.blocks[0]["up"], net.blocks[0]["down"])
        adapted = stir(blocks(net, **SETS[sets]))
        if sequential:
            assert len(adapted) == 3 and type(adapted[-1]) is adapters.SPLoPALinear
        expected = outputs(adapted)
        file = io.BytesIO()
        torch.save((adapted.state_dict(), adapters.adapter_state_dict(adapted)), file)
        file.seek(0)
        for i, state in enumerate(torch.load(file, weights_only=True)):
            other = copy.deepcopy(net)
            adapters.insert_like(other, state)
            if i == 0:
                other.load_state_dict(state, strict=True)
            adapters.load_adapter_state_dict(other, adapters.adapter_state_dict(adapted))
            assert torch.equal(outputs(other), expected)
            shapes = {n: p.shape for n, p in adapted.named_parameters()}
            assert {n: p.shape for n, p in other.named_parameters()} == shapes
            adapters.insert_like(other, state)
        adapters.configure_parameter_read(adapted)
        shown = dict(adapted.named_parameters())
        learned = {n for n, p in other.named_parameters() if p.requires_grad}
        assert set(shown) == learned
        adapters.reset_parameter_read(adapted)
        fused = adapters.fuse(adapted)
        assert torch.equal(outputs(fused), expected)
        assert list(fused.state_dict()) == list(net.state_dict())

    def test_belong_to_one_model(self):
        first, second = blocks(network()), blocks(network())
        third = copy.deepcopy(first)
        fourth = pickle.loads(pickle.dumps(first))
        sets = [net.prototypes for net in (first, second, third, fourth)]
        assert len({id(s.rows) for s in sets}) == 4
        for net in (first, second, third, fourth):
            for layer in adapters.adapted_layers(net).values():
                assert layer.shared_prototypes is net.prototypes
        expected = outputs(stir(first))
        second.float()
        stir(third)
        stir(fourth, 2.0)
        fourth.half()
        assert first.prototypes.rows.dtype == torch.float64
        assert torch.equal(outputs(first), expected)

    def test_further_calls_use_the_same(self):
        net = blocks(network(), include="*up")
        prototypes = net.prototypes
        blocks(net, include="*down", inplace=True)
        assert net.blocks[0]["down"].shared_prototypes is prototypes
        with pytest.raises(AdapterError, match="num_prototypes=7"):
            blocks(net, include="head", num_prototypes=7)
        blocks(net, include="head", num_prototypes=7, block_size=2, inplace=True)
        assert net.prototypes is prototypes
        assert net.prototypes_2x2.rows.shape == (7, 1, 2)
        stir(net)
        other = network()
        adapters.insert_like(other, net.state_dict())
        other.load_state_dict(net.state_dict(), strict=True)
        assert torch.equal(outputs(other), outputs(net))

    def test_both_kinds_in_one_network(self):
        net = SPLoRA(blocks(network(), include="*up"), rank=2, include="*down")
        stir(net)
        for state in (net.state_dict(), adapters.adapter_state_dict(net)):
            other = network()
            adapters.insert_like(other, state)
            adapters.load_adapter_state_dict(other, adapters.adapter_state_dict(net))
            assert torch.equal(outputs(other), outputs(net))

    def test_layer_with_the_prototypes_of_others_is_not_fused_alone(self):
        net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        adapted = blocks(net)
        other = copy.deepcopy(net)
        adapters.insert_like(other, adapted.state_dict())
        for found in (adapted, other):
            before = snapshot(found)
            with pytest.raises(AdapterError, match="fuse the network"):
                adapters.fuse(found[0])
            assert unchanged(found, before)
            adapters.fuse(found[1])
            adapters.fuse(found)
            assert list(found.state_dict()) == list(net.state_dict())
        for layer in (nn.Linear(8, 8), nn.MultiheadAttention(8, 2)):
            adapted = blocks(layer)
            other = copy.deepcopy(layer)
            adapters.insert_like(other, adapted.state_dict())
            for found in (adapted, other):
                adapters.fuse(found)
                assert list(found.state_dict()) == list(layer.state_dict())

    def test_no_place_for_saved_prototypes(self):
        state = blocks(network()).state_dict()
        taken = network()
        taken.prototypes = nn.LayerNorm(2)
        moved = {k.replace("prototypes", "extra.prototypes"): v for k, v in state.items()}
        for net, saved, message in (
            (taken, state, "prototypes, which the network uses for LayerNorm"),
            (network(), moved, r"extra\.prototypes, but the network has no extra"),
        ):
            before = snapshot(net)
            with pytest.raises(AdapterError, match=message):
                adapters.insert_like(net, saved)
            assert unchanged(net, before)

    def test_in_a_part_of_a_network(self):
        net = network()
        blocks(net.blocks, inplace=True)
        stir(net.blocks)
        other = network()
        adapters.load_adapter_state_dict(other, adapters.adapter_state_dict(net))
        assert torch.equal(outputs(other), outputs(net))
        with pytest.raises(AdapterError, match="larger network"):
            adapters.adapter_state_dict(net.blocks[1])


@both
class TestStates:
    def test_file_holds_only_what_was_learned(self, method):
        net = stir(METHODS[method](network()))
        state = adapters.adapter_state_dict(net)
        learned = {n for n, p in net.named_parameters() if p.requires_grad}
        extra = set(state) - learned
        assert learned <= set(state)
        assert all(type(value) is torch.Tensor for value in state.values())
        assert sum(state[n].numel() for n in extra) <= 4 * 5
        before = {n: v.clone() for n, v in state.items()}
        stir(net)
        assert all(torch.equal(before[n], state[n]) for n in state)

    def broken(self, method):
        state = adapters.adapter_state_dict(stir(METHODS[method](network())))
        key = {"SPLoRA": "cols", "SPLoPA": "pos_weights"}[method]
        return state, f"blocks.1.up.{key}"

    def refused(self, state, message, function=adapters.load_adapter_state_dict):
        for net in (network(), METHODS["SPLoRA"](network())):
            if function is adapters.insert_like and adapters.adapted_layers(net):
                continue
            before = snapshot(net)
            with pytest.raises(AdapterError, match=message):
                function(net, state)
            assert unchanged(net, before)

    def test_unknown_layer(self, method):
        state, key = self.broken(method)
        new = {k.replace("blocks.1", "blocks.2"): v for k, v in state.items()}
        self.refused(new, r"blocks\.2\.(up|down)|blocks\.1\.(up|down) has an adapter")
        with pytest.raises(AdapterError, match=r"blocks\.2\.(up|down)"):
            adapters.insert_like(network(), new)

    def test_wrong_shape(self, method):
        state, key = self.broken(method)
        state[key] = state[key][..., :1]
        self.refused(state, r"blocks\.1\.up.*found shape .*expected")
        self.refused(state, "found shape .*expected", adapters.insert_like)

    def test_missing_entry(self, method):
        state, key = self.broken(method)
        state.pop(key)
        self.refused(state, "lacks .*blocks.1.up|has another adapter")
        state, key = self.broken(method)
        state.pop("blocks.1.up.bias")
        self.refused(state, r"lacks blocks\.1\.up\.bias")
        if method == "SPLoPA":
            state, key = self.broken(method)
            state.pop("prototypes.rows")
            self.refused(state, "lacks prototypes")

    def test_unexpected_entry(self, method):
        state, _ = self.broken(method)
        self.refused({**state, "head.scale": torch.ones(1)}, "head.scale")
        self.refused({**state, "head.rows": 3}, "head.rows, a int")
        self.refused([state], "the state is a list")
        self.refused({}, "no adapter|holds none")

    def test_another_adapter(self, method):
        state, _ = self.broken(method)
        for net in (SPLoRA(network(), rank=2), blocks(network(), block_size=2)):
            before = snapshot(net)
            for function in (adapters.load_adapter_state_dict, adapters.insert_like):
                with pytest.raises(AdapterError, match="has another adapter"):
                    function(net, state)
            assert unchanged(net, before)

    def test_fewer_layers_than_there_are_adapters(self, method):
        net = METHODS[method](network())
        state = adapters.adapter_state_dict(METHODS[method](network(), exclude="head"))
        with pytest.raises(AdapterError, match="head has an adapter"):
            adapters.insert_like(net, state)

    def test_ties_are_respected_by_loading(self, method):
        state = adapters.adapter_state_dict(METHODS[method](network()))
        net = network(tie_head=True)
        before = snapshot(net)
        with pytest.raises(AdapterError, match=r"head: .*embed \(Embedding\)"):
            adapters.load_adapter_state_dict(net, state)
        assert unchanged(net, before)


def test_ties_stay_one_tensor_in_a_state():
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    net[1].weight = net[0].weight
    state = adapters.adapter_state_dict(SPLoRA(net, rank=2))
    assert state["0.rows"] is state["1.rows"]


def test_biases_of_another_length_are_refused():
    state = adapters.adapter_state_dict(SPLoRA(nn.Linear(8, 6), rank=2))
    for bias in (state["bias"][:3], torch.ones(9)):
        net = nn.Linear(8, 6)
        with pytest.raises(AdapterError, match=r"bias: found shape .*, expected \(6,\)"):
            adapters.load_adapter_state_dict(net, {**state, "bias": bias})
        assert type(net) is nn.Linear


def test_the_rest_of_a_loaded_network_may_be_trained():
    state = adapters.adapter_state_dict(SPLoRA(nn.Sequential(nn.Linear(8, 6)), rank=2))
    for others in (True, False):
        net = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6))
        adapters.load_adapter_state_dict(net, state, train_others=others)
        assert net[1].weight.requires_grad == others and not net[0].weight.requires_grad


def test_states_that_fit_no_layer_are_refused():
    low = adapters.adapter_state_dict(SPLoRA(nn.Linear(8, 6), rank=2))
    block = adapters.adapter_state_dict(blocks(nn.Linear(8, 6)))
    with pytest.raises(AdapterError, match="entries of both SPLoPA and SPLoRA|of both SPLoRA"):
        adapters.load_adapter_state_dict(nn.Linear(8, 6), {**low, **block})
    with pytest.raises(AdapterError, match="SPLoPA can't adapt Conv1d"):
        adapters.load_adapter_state_dict(nn.Conv1d(8, 6, 3), block)
    with pytest.raises(AdapterError, match="its weight is of type torch.complex64"):
        SPLoRA(nn.Linear(8, 6, dtype=torch.complex64), rank=2)


def test_shared_positions_are_for_one_number_of_prototypes():
    options = dict(shared_prototypes=False, shared_pos_weights=True)
    net = blocks(network(), include="*up", **options)
    with pytest.raises(AdapterError, match="position weights are for 5 prototypes, not 7"):
        blocks(net, include="head", num_prototypes=7, **options)


def test_a_layer_whose_reading_was_configured_is_plain_again_when_fused():
    net = SPLoRA(nn.Sequential(nn.Linear(8, 6)), rank=2)
    net[0].configure_parameter_read()
    adapters.fuse(net)
    assert list(net[0].state_dict()) == ["weight", "bias"]
    assert [p.shape for p in net[0].parameters()] == [(6, 8), (6,)]


def test_projections_of_one_weight_need_the_same_inputs():
    attention = SPLoRA(nn.MultiheadAttention(8, 2), rank=2)
    masks = {"q_adapter": {"in_features_mask": torch.arange(8) < 5}}
    with pytest.raises(AdapterError, match="in_proj_weight is one weight, so its adapters"):
        attention.configure_parameter_read(False, masks=masks)
    attention.configure_parameter_read(True, masks=masks)


def test_masked_weights_stand_in_the_state_of_a_parent():
    net = SPLoRA(nn.Linear(8, 6), rank=2)
    mask = {"in_features_mask": torch.arange(8) < 5}
    net.configure_parameter_read(False, **mask)
    state = nn.ModuleDict({"model": net}).state_dict()
    assert state["model.weight"].shape == (6, 5)
    assert all(name.startswith("model.") for name in state)
    net.configure_parameter_read(True, **mask)
    assert "a.rows" in net.state_dict({}, "a.", True)  # torch's old form


def test_statistics_of_batch_normalization_are_saved():
    torch.manual_seed(1)
    base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    trained = SPLoRA(base, rank=2)
    x = torch.randn(2, 3, 9, 9)
    trained(3 * x + 1)
    state = adapters.adapter_state_dict(trained)
    net = copy.deepcopy(base)
    adapters.load_adapter_state_dict(net, state)
    assert torch.equal(net.eval()(x), trained.eval()(x))
    older = {name: value for name, value in state.items() if name[0] != "1"}
    adapters.load_adapter_state_dict(copy.deepcopy(base), older)
    state["1.running_mean"] = torch.zeros(7)
    with pytest.raises(AdapterError, match=r"1.running_mean: found shape \(7,\)"):
        adapters.load_adapter_state_dict(copy.deepcopy(base), state)


@both
class TestParameterRead:
    def test_masks_by_name(self, method):
        net = METHODS[method](network())
        if method == "SPLoRA":
            name, mask = "in_features_mask", torch.arange(8) < 5
            saved = 3 * 3
        else:
            name, mask = "mask", torch.arange(9).view(3, 3) < 4
            saved = 5 * 5
        adapters.configure_parameter_read(net)
        count = sum(p.numel() for p in net.parameters())
        adapters.configure_parameter_read(net, masks={"blocks.1.up": {name: mask}})
        assert sum(p.numel() for p in net.parameters()) == count - saved
        state = net.state_dict()
        assert (
            sum(v.numel() for n, v in state.items() if n in dict(net.named_parameters()))
            == count - saved
        )
        others = {"model." + n for n in state}
        outer = nn.ModuleDict({"model": net})
        assert set(outer.state_dict()) == others  # a parent's state shows the same
        with pytest.raises(AdapterError, match="no adapter 'blocks.1.norm'"):
            adapters.configure_parameter_read(net, masks={"blocks.1.norm": {name: mask}})
        for wrong in ({"blocks.1.up": mask}, [mask]):
            with pytest.raises(AdapterError, match="masks: expected dicts of masks"):
                adapters.configure_parameter_read(net, masks=wrong)
        with pytest.raises(AdapterError, match="blocks.1.up.* found a list"):
            adapters.configure_parameter_read(net, masks={"blocks.1.up": {name: mask.tolist()}})
        adapters.configure_parameter_read(net, adapter_weights_only=False)
        assert {n for n, _ in net.named_parameters()} >= {"bias", "embed.weight"}
        adapters.reset_parameter_read(net)
        assert isinstance(next(net.parameters()), nn.Parameter)
        assert set(network().state_dict()) < set(net.state_dict())

    def test_more_layers_are_adapted_and_frozen_while_less_is_shown(self, method):
        net = METHODS[method](nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), include="0")
        adapters.configure_parameter_read(net)
        METHODS[method](net, include="1", inplace=True)
        assert not net[0].weight.requires_grad and not net[1].weight.requires_grad

    def test_everything_else_goes_on_as_before(self, method):
        net = stir(METHODS[method](network()))
        expected = outputs(net)
        full = copy.deepcopy(net.state_dict())
        adapters.configure_parameter_read(net)
        assert torch.equal(outputs(net), expected)
        other = copy.deepcopy(net)
        assert {id(p) for p in other.parameters()}.isdisjoint(id(p) for p in net.parameters())
        assert [n for n, _ in other.named_parameters()] == [n for n, _ in net.named_parameters()]
        net.load_state_dict(full)
        assert torch.equal(outputs(net), expected)
        fresh = network()
        adapters.load_adapter_state_dict(fresh, net.state_dict())
        assert torch.equal(outputs(fresh), expected)
        learned = [p for _, p in nn.Module.named_parameters(net) if p.requires_grad]
        for parameter in learned:
            parameter.grad = torch.ones_like(parameter)
        name, masks = "blocks.1.up", {"in_features_mask": torch.arange(8) < 5}
        if method == "SPLoPA":
            masks = {"mask": torch.arange(9).view(3, 3) < 4}
        adapters.configure_parameter_read(net, masks={name: masks})
        net.zero_grad(set_to_none=False)
        assert all(not p.grad.any() for p in learned)
        net.zero_grad()
        assert all(p.grad is None for p in learned)
        net.float()
        assert net.head.weight.dtype == torch.float32
        adapters.fuse(net)
        assert list(net.state_dict()) == list(network().state_dict())


class TestFigures:
    """An IWSLT-shaped model without its embeddings: 512/1024, 6+6 layers."""

    def model(self):
        shapes = [(512, 512)] * 4 + [(1024, 512), (512, 1024)]
        shapes = (shapes + [(512, 512)] * 4 + shapes) * 6
        return nn.ModuleList(nn.utils.skip_init(nn.Linear, m, n) for n, m in shapes)

    @pytest.mark.parametrize(
        "method, options, adapter, percent",
        [
            (SPLoRA, dict(rank=8), 884736, 2.98),
            (SPLoRA, dict(rank=32), 3538944, 11.41),
            (SPLoPA, dict(num_prototypes=64), 1970176, 6.43),
            (SPLoPA, dict(num_prototypes=16), 492544, 1.74),
        ],
    )
    def test_sizes(self, method, options, adapter, percent):
        rows = adapters.report(method(self.model(), inplace=True, **options))
        layers = [row for row in rows[:-1] if row["weights"]]
        assert len(layers) == 96
        total = rows[-1]
        assert total["adapter"] == adapter
        assert total["base"] == 31512576
        assert total["biases"] == 55296
        assert round(total["percent"], 2) == percent
        bits = sum(
            (row["weights"] // 1024)
            if method is SPLoPA
            else (1024 if row["weights"] == 512 * 512 else 1536)
            for row in layers
        )
        assert total["mask_bits"] == bits
        assert total["bytes"] == 4 * (adapter + 55296) + bits // 8
