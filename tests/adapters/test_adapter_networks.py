"""Adapters in whole networks: selection, ties, shared parameters, states, errors."""

import copy

import pytest
import torch
from torch import nn

from src import adapters
from src.adapters import AdapterError, SPLoPA, SPLoRA
from tests.support.adapters import (
    METHODS,
    both,
    network,
    outputs,
    snapshot,
    stir,
    unchanged,
    values,
)
from tests.support.training import batch, build


@both
class TestSelection:
    @pytest.mark.parametrize(
        "options, expected",
        [
            (dict(), "0.up 0.down 1.up 1.down head"),
            (dict(exclude="head"), "0.up 0.down 1.up 1.down"),
            (dict(include="blocks.*"), "0.up 0.down 1.up 1.down"),
            (dict(include=["*.up", "head"]), "0.up 1.up head"),
            (dict(include="blocks.*", exclude=["blocks.0.*", "*.up"]), "1.down"),
            (dict(types=(nn.Linear,)), "0.up 0.down 1.up 1.down head"),
        ],
    )
    def test_names(self, method, options, expected):
        adapted = METHODS[method](network(), **options)
        names = [n.replace("blocks.", "") for n in adapters.adapted_layers(adapted)]
        assert names == expected.split()

    @pytest.mark.parametrize("inplace", [True, False])
    @pytest.mark.parametrize(
        "options, message",
        [
            (dict(include="block.*"), r"include pattern 'block\.\*'"),
            (dict(include=["*", "embed"]), "include pattern 'embed'"),
            (dict(include="*norm"), "Linear"),
            (dict(exclude=["head", "haed"]), "exclude pattern 'haed'"),
            (dict(exclude="*"), "no layer to adapt"),
            (dict(exclude="blocks"), r"'blocks' matches blocks, but .*exclude 'blocks\.\*'"),
            (dict(types=(nn.Conv2d,)), "no layer to adapt"),
        ],
    )
    def test_patterns_that_match_nothing(self, method, options, message, inplace):
        net = network()
        before = snapshot(net)
        with pytest.raises(AdapterError, match=message):
            METHODS[method](net, **options, inplace=inplace)
        assert unchanged(net, before)

    def test_a_part_of_attention_is_not_left_out_alone(self, method):
        net = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.Linear(8, 8)])
        with pytest.raises(AdapterError, match="matches 0.out_proj, but .*exclude '0'"):
            METHODS[method](net, exclude="*.out_proj")
        adapted = METHODS[method](net, exclude=["*.out_proj", "0"])
        assert list(adapters.adapted_layers(adapted)) == ["1"]

    def test_patterns_are_for_networks(self, method):
        with pytest.raises(AdapterError, match="this is a layer"):
            METHODS[method](nn.Linear(8, 8), include="*")

    def test_all_else_is_frozen(self, method):
        adapted = METHODS[method](network(), include="blocks.*")
        trained = {n.split(".")[-1] for n, p in adapted.named_parameters() if p.requires_grad}
        assert trained == {"bias", "rows", "cols"} | (
            {"pos_weights"} if method == "SPLoPA" else set()
        )
        trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
        assert "bias" not in trained and not any("norm" in n for n in trained)
        assert sum(n.endswith("bias") for n in trained) == 4

    def test_training_the_rest_is_left_as_it_was(self, method):
        net = network()
        net.embed.requires_grad_(False)
        adapted = METHODS[method](net, include="blocks.*", train_others=True)
        frozen = [n for n, p in adapted.named_parameters() if not p.requires_grad]
        assert frozen == ["embed.weight"] + [
            f"blocks.{i}.{n}.weight" for i in range(2) for n in ("up", "down")
        ]

    def test_layers_can_be_added(self, method):
        net = METHODS[method](network(), include="*up")
        stir(net)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        METHODS[method](net, include="*down", inplace=True)
        assert len(adapters.adapted_layers(net)) == 4
        after = net.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
        with pytest.raises(AdapterError, match=r"blocks\.0\.up.*adapter already"):
            METHODS[method](net)


@both
def test_frozen_weights_keep_no_gradient_of_before(method):
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(3, 8)).square().sum().backward()
    METHODS[method](net, inplace=True)
    before = copy.deepcopy(net)
    optimizer.step()
    frozen = [n for n, p in net.named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight", "1.weight", "1.bias"]
    for name in frozen:
        assert torch.equal(net.get_parameter(name), before.get_parameter(name))


class TestLayersThatCannotBeAdapted:
    def check(self, net, message, method=SPLoRA, **options):
        before = snapshot(net)
        for inplace in (True, False):
            with pytest.raises(AdapterError, match=message):
                method(net, rank=1, inplace=inplace, **options)
        assert unchanged(net, before)

    def test_by_shape(self):
        net = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 2))
        self.check(net, r"SPLoRA can't adapt 1: kernel \(2,\).*exclude it")
        assert list(adapters.adapted_layers(SPLoRA(net, 1, exclude="1"))) == ["0"]
        assert list(adapters.adapted_layers(SPLoPA(net))) == ["0"]

    @pytest.mark.parametrize("method", [SPLoRA, SPLoPA])
    def test_subclasses(self, method):
        class Doubled(nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        net = nn.Sequential(nn.Linear(4, 4), Doubled(4, 4))
        self.check(net, r"adapt 1: .*Doubled is a subclass", method)

    @pytest.mark.parametrize("method", [SPLoRA, SPLoPA])
    @pytest.mark.filterwarnings("ignore")
    def test_computed_weights(self, method):
        from torch.nn.utils import parametrizations, prune, weight_norm

        for change in (
            lambda layer: weight_norm(layer),
            lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
            lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
            lambda layer: parametrizations.weight_norm(layer),
        ):
            net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            change(net[1])
            with pytest.raises(AdapterError, match="adapt 1: .*(computed|subclass)"):
                method(net, rank=1)

    def test_nothing_to_adapt(self):
        for net in (nn.Embedding(4, 4), nn.Sequential(nn.ReLU()), nn.LayerNorm(4)):
            self.check(net, f"{type(net).__name__} has no layer to adapt")
        self.check(nn.Conv1d(4, 4, 3), "SPLoPA adapts Linear", SPLoPA)

    def test_prototypes_have_no_place(self):
        net = network()
        net.prototypes = nn.Linear(2, 2)
        self.check(net, "attribute 'prototypes' of its own", SPLoPA)
        SPLoPA(net, shared_prototypes=False)


@both
class TestTies:
    def test_tied_layers_share_their_adapter(self, method):
        net = network(tie_blocks=True)
        adapted = stir(METHODS[method](net))
        first, second = adapted.blocks
        for name in ("up", "down"):
            assert first[name].weight is second[name].weight
            for a, b in zip(first[name].sources(), second[name].sources()):
                assert a is b
            assert first[name].bias is not second[name].bias
        expected = outputs(adapted)
        weight = adapters.adapted_weight(first["up"]).detach()
        fused = adapters.fuse(copy.deepcopy(adapted))
        assert fused.blocks[0]["up"].weight is fused.blocks[1]["up"].weight
        assert torch.equal(fused.blocks[0]["up"].weight, weight)  # added only once
        assert torch.equal(outputs(fused), expected)
        assert len(list(fused.parameters())) == len(list(net.parameters()))

    def test_tied_layers_in_states(self, method):
        net = network(tie_blocks=True)
        adapted = stir(METHODS[method](net))
        if method == "SPLoPA":
            adapted.blocks[0]["up"].block_mask[1, 1] = False
        assert adapted.blocks[1]["up"].fused_weights()["weight"].eq(0).any() == (method == "SPLoPA")
        expected = outputs(adapted)
        for state in (adapted.state_dict(), adapters.adapter_state_dict(adapted)):
            other = copy.deepcopy(net)
            assert len(adapters.insert_like(other, state)) == 5
            up = [other.blocks[i]["up"] for i in range(2)]
            assert all(a is b for a, b in zip(up[0].sources(), up[1].sources()))
            if "head.weight" in state:
                other.load_state_dict(state)
            else:
                adapters.load_adapter_state_dict(other, state)
            assert torch.equal(outputs(other), expected)
            for cast in (torch.bfloat16, torch.float64):
                other.to(cast)
            other._apply(lambda tensor: tensor.clone())  # as a move to a device does
            assert all(a is b for a, b in zip(up[0].sources(), up[1].sources()))
        names = [n for n, _ in adapted.named_parameters()]
        adapters.configure_parameter_read(adapted)
        shown = [n for n, _ in adapted.named_parameters()]
        assert not any("blocks.1" in n and "bias" not in n for n in shown)
        adapters.reset_parameter_read(adapted)
        assert [n for n, _ in adapted.named_parameters()] == names

    def test_layers_under_two_names(self, method):
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).double()
        net.append(net[0])
        adapted = stir(METHODS[method](net))
        assert adapted[0] is adapted[2]
        assert list(adapters.adapted_layers(adapted)) == ["0"]
        assert not adapters.adapted_layers(
            METHODS[method](nn.Sequential(*net, nn.Linear(8, 8)), exclude="2")
        ).get("0")
        for state in (adapted.state_dict(), adapters.adapter_state_dict(adapted)):
            other = copy.deepcopy(net)
            adapters.insert_like(other, state)
            adapters.insert_like(other, state)
            assert other[0] is other[2]
            other.load_state_dict(adapted.state_dict())
            x = values(2, 8)
            with torch.no_grad():
                assert torch.equal(other.eval()(x), adapted.eval()(x))

    def test_ties_to_what_is_not_adapted(self, method):
        net = network(tie_head=True)
        before = snapshot(net)
        for options in (dict(), dict(include="head")):
            with pytest.raises(AdapterError, match=r"head: .*embed \(Embedding\).*exclude head"):
                METHODS[method](net, inplace=True, **options)
        assert unchanged(net, before)
        adapted = METHODS[method](net, exclude="head")
        assert adapted.head.weight is adapted.embed.weight
        net = network(tie_blocks=True)
        with pytest.raises(AdapterError, match=r"blocks\.0\.up: .*blocks\.1\.up \(Lin"):
            METHODS[method](net, include="blocks.0.*")

    def test_attention_with_tied_projections(self, method):
        torch.manual_seed(0)
        net = nn.ModuleDict({n: nn.MultiheadAttention(8, 2) for n in "ab"}).double()
        net["a"].in_proj_weight = net["b"].in_proj_weight
        net["a"].out_proj.weight = net["b"].out_proj.weight
        adapted = stir(METHODS[method](net))
        for part in "q_adapter", "k_adapter", "v_adapter", "out_adapter":
            a, b = (getattr(adapted[n], part) for n in "ab")
            assert a is not b
            assert all(s is t for s, t in zip(a.sources(), b.sources()))
        x = values(3, 2, 8)
        with torch.no_grad():
            expected = [
                m(x, x, x)[0] for m in adapted.values() if isinstance(m, nn.MultiheadAttention)
            ]
            adapters.fuse(adapted)
            assert list(adapted) == ["a", "b"]
            for module, y in zip(adapted.values(), expected):
                assert (module(x, x, x)[0] - y).abs().max() < 1e-13
        assert adapted["a"].in_proj_weight is adapted["b"].in_proj_weight


@both
class TestTranslationModel:
    def adapted(self, method, **options):
        model = build(share_decoder_input_output_embed=True, **options)
        return stir(METHODS[method](model, exclude="decoder.output_projection"))

    def test_tied_output_projection_is_named(self, method):
        with pytest.raises(
            AdapterError, match=r"decoder\.output_projection.*embed_tokens \(Embedding\)"
        ):
            METHODS[method](build(share_decoder_input_output_embed=True))

    def test_every_projection_is_adapted(self, method):
        names = list(adapters.adapted_layers(self.adapted(method)))
        assert len(names) == 2 * 6 + 2 * 10
        assert "encoder.layers.0.self_attn.q_proj" in names
        assert "decoder.layers.1.encoder_attn.v_proj" in names

    def test_step_by_step_decoding_uses_the_adapters(self, method):
        model = self.adapted(method)
        fused = adapters.fuse(copy.deepcopy(model))
        source, _, previous = batch()
        with torch.no_grad():
            memory = model.encoder(source, src_lengths=None)
            whole = model.decoder(previous, memory)[0]
            state = {}
            for i in range(previous.shape[1]):
                step = model.decoder(previous[:, : i + 1], memory, state)[0][:, -1]
                ahead = previous[:, i] != 1
                assert (step - whole[:, i])[ahead].abs().max() < 1e-10
            expected = fused(*batch())[0]
        assert (whole - expected).abs().max() < 1e-12

    def test_a_few_steps_of_training_lower_the_loss(self, method):
        model = self.adapted(method).train()
        source, _, previous = batch()
        before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learned, lr=0.01)
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            logits = model(source, None, previous)[0]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), previous.flatten())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]
        after = dict(model.named_parameters())
        assert all(torch.equal(after[n], before[n]) for n in before)
