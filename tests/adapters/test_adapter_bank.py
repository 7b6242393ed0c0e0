"""Several adapters on one base: switched, learned in turn, added up by weight."""

import copy

import pytest
import torch
from torch import nn

from src import adapters
from src.adapters import AdapterBank, AdapterError, SPLoPA, SPLoRA, weighted_sum
from tests.support.adapters import METHODS, both, linear, network, outputs, snapshot, stir, values
from tests.support.adapters import unchanged as is_unchanged

TWO = {
    "SPLoRA": (dict(rank=3), dict(rank=2, include="*up")),
    "SPLoPA": (
        dict(block_size=(4, 3), num_prototypes=5, rank=2),
        dict(block_size=(4, 3), num_prototypes=3, include="*up"),
    ),
}
MAKE = {"SPLoRA": SPLoRA, "SPLoPA": SPLoPA}
SHARING = {"SPLoRA": dict(), "SPLoPA": dict(shared_pos_weights=True)}


def trained(method, options, size=0.3):
    return stir(MAKE[method](network(), **options), size)


def two_states(method, **more):
    first, second = (dict(options, **more) for options in TWO[method])
    if more.get("shared_pos_weights"):
        del second["include"]  # they are shared among the same layers
    models = trained(method, first), trained(method, second, -0.2)
    return [adapters.adapter_state_dict(model) for model in models]


def plain_weights(state):
    """Weights and biases of the base with these adapters."""
    model = network()
    adapters.load_adapter_state_dict(model, state)
    return adapters.fuse(model).state_dict()


@both
class TestWeightedSum:
    @pytest.mark.parametrize("shared", [False, True])
    def test_is_the_sum_of_the_updates(self, method, shared):
        states, base = two_states(method, **(SHARING[method] if shared else {})), network()
        total = weighted_sum(base, states, [0.7, -1.5])
        first, second = (plain_weights(state) for state in states)
        fused, own = plain_weights(total), base.state_dict()
        assert not torch.equal(first["blocks.0.up.bias"], second["blocks.0.up.bias"])
        for name, value in fused.items():
            expected = own[name] + 0.7 * (first[name] - own[name])
            expected = expected - 1.5 * (second[name] - own[name])
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-12, msg=name)
        assert is_unchanged(base, snapshot(network()))

    def test_one_of_weight_one_is_itself(self, method):
        (state, other), base = two_states(method), network()
        ((name, biased),) = [(k, v) for k, v in state.items() if k == "blocks.0.down.bias"]
        total = weighted_sum(base, [state, other], [1, 0])
        assert torch.equal(total[name], biased)
        alone = weighted_sum(base, [state], [1.0])
        assert state.keys() <= alone.keys()
        assert all(torch.equal(alone[key], state[key]) for key in state)
        weights = plain_weights(state)
        assert all(torch.equal(v, weights[n]) for n, v in plain_weights(alone).items())

    def test_inputs_that_do_not_fit(self, method):
        states, base = two_states(method), network()
        for args, message in (
            ((states, [1.0]), "2 states and 1 weights"),
            (([], []), "0 states"),
            ((states, [1.0, float("nan")]), "weight nan"),
            (([states[0], {**states[1], "else": torch.ones(1)}], [1.0, 1.0]), "holds else"),
        ):
            with pytest.raises(AdapterError, match=message):
                weighted_sum(base, *args)
        with pytest.raises(AdapterError, match="has adapters"):
            weighted_sum(trained(method, TWO[method][0]), states, [1.0, 1.0])


def test_of_masked_states_is_zero_where_all_are():
    layer = stir(SPLoRA(linear(), rank=3))
    kept = torch.arange(14) < 9
    state = adapters.adapter_state_dict(layer, {"": {"out_features_mask": kept}})
    total = weighted_sum(linear(), [state, state], [0.5, 0.25])
    other = linear()
    adapters.load_adapter_state_dict(other, total)
    whole = linear().weight + 0.75 * layer.cols @ layer.rows
    expected = torch.where(kept[:, None], whole, linear().weight)
    torch.testing.assert_close(adapters.adapted_weight(other), expected)


def test_what_can_not_be_added_up():
    def state(make=SPLoPA, net=network, **options):
        return adapters.adapter_state_dict(stir(make(net(), **options)))

    low_rank, small = state(SPLoRA, rank=2), state(block_size=2)
    positions = dict(block_size=(4, 3), shared_pos_weights=True)
    blocked = SPLoPA(network(), block_size=4)
    blocked.blocks[0]["up"].set_block_mask(torch.eye(3, 2).bool())
    normed = lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double()
    one, other = (SPLoRA(normed(), rank=2).train() for _ in range(2))
    other(values(7, 4))
    for net, states, message in (
        (network, [low_rank, small], "SPLoPA and SPLoRA"),
        (network, [small, state(block_size=4)], "other blocks"),
        (network, [state(block_size=4), adapters.adapter_state_dict(blocked)], "block masks"),
        (network, [small, state(block_size=2, shared_prototypes=False)], "share"),
        (network, [state(**positions), state(**positions, include="*up")], "different layers"),
        (normed, [adapters.adapter_state_dict(m) for m in (one, other)], "statistics"),
    ):
        with pytest.raises(AdapterError, match=message):
            weighted_sum(net(), states, [0.5, 0.5])


@both
class TestBank:
    def bank(self, method):
        base = network()
        bank = AdapterBank(base)
        self.states = dict(zip(("a", "b"), two_states(method)))
        for name, state in self.states.items():
            bank.add(name, state)
        return base, bank

    def expected(self, state):
        model = network()
        adapters.load_adapter_state_dict(model, state)
        return outputs(model)

    def test_switches_and_mixes(self, method):
        base, bank = self.bank(method)
        before, alone = snapshot(base), outputs(base)
        for _ in range(2):
            for name in bank.names:
                bank.set_active(name)
                assert torch.equal(outputs(base), self.expected(self.states[name]))
                assert any(p.requires_grad for p in base.parameters())
            bank.set_active({"a": 0.4, "b": 0.6})
            total = weighted_sum(network(), [*self.states.values()], [0.4, 0.6])
            assert torch.equal(outputs(base), self.expected(total))
            assert not any(p.requires_grad for p in base.parameters())
            bank.set_active({"b": 0.5})
            assert torch.equal(
                outputs(base), self.expected(weighted_sum(network(), [self.states["b"]], [0.5]))
            )
            bank.set_active(None)
            assert is_unchanged(base, before) and torch.equal(outputs(base), alone)

    def test_each_learns_for_itself(self, method):
        base, bank = self.bank(method)
        weights = base.blocks[0]["up"].weight.detach().clone()
        bank.add("fresh", MAKE[method], **TWO[method][1])
        assert not bank.active and not adapters.adapted_layers(base)
        bank.set_active("fresh")
        stir(base)
        learned = outputs(base)
        assert torch.equal(self.expected(bank.state("fresh")), learned)
        bank.add("c", self.states["a"])  # with another one active
        assert torch.equal(outputs(base), learned) and list(bank.active) == ["fresh"]
        bank.set_active("a")
        assert torch.equal(outputs(base), self.expected(self.states["a"]))
        bank.set_active("fresh")
        assert torch.equal(outputs(base), learned)
        assert torch.equal(base.blocks[0]["up"].weight, weights)

    def test_mistakes_leave_what_is_active(self, method):
        base, bank = self.bank(method)
        bank.set_active("a")
        other = {"SPLoRA": SPLoPA(network(), block_size=2), "SPLoPA": SPLoRA(network(), rank=2)}
        bank.add("other", adapters.adapter_state_dict(other[method]))
        for action, message in (
            (lambda: bank.set_active("c"), "no adapter 'c'; there are 'a', 'b', 'other'"),
            (lambda: bank.set_active({"a": 1, "other": 1}), "can't be added up"),
            (lambda: bank.add("a", self.states["b"]), "'a' already"),
            (lambda: bank.add("d", {"head.weight": torch.ones(1)}), "holds no adapter"),
            (lambda: bank.add("d", MAKE[method], include="nowhere"), "nowhere"),
            (lambda: bank.add("d", self.states["b"], rank=3), "fresh"),
            (lambda: AdapterBank(base), "has adapters"),
        ):
            with pytest.raises(AdapterError, match=message):
                action()
            assert bank.names == ["a", "b", "other"]
            assert torch.equal(outputs(base), self.expected(self.states["a"]))


@both
class TestWrapped:
    def test_states_fit_with_and_without_a_wrapper(self, method):
        plain = stir(METHODS[method](network()))
        expected, small = outputs(plain), adapters.adapter_state_dict(plain)
        wrapped = nn.DataParallel(copy.deepcopy(plain))
        prefixed = adapters.adapter_state_dict(wrapped)
        assert all(key.startswith("module.") for key in prefixed)
        for state in (small, prefixed):
            for wrap in (lambda net: net, nn.DataParallel):
                other = network()
                adapters.load_adapter_state_dict(wrap(other), state)
                assert torch.equal(outputs(other), expected)
                third = wrap(network())
                names = adapters.insert_like(third, state)
                assert len(names) == len(adapters.adapted_layers(third)) == 5

    def test_a_network_with_a_child_of_that_name(self, method):
        def make():
            holder = nn.Module()
            holder.module = linear()
            return holder

        adapted = stir(METHODS[method](make(), inplace=True))
        other = make()
        adapters.load_adapter_state_dict(other, adapters.adapter_state_dict(adapted))
        assert torch.equal(other.module(values(2, 10)), adapted.module(values(2, 10)))
