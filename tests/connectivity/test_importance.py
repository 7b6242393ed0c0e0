"""Criteria of importance against routes of their own."""

import copy

import pytest
import torch

from src.adapters import SPLoRA, fuse
from src.connectivity.groups import channel_groups
from tests.support.importance import (
    MODELS,
    SITES,
    close,
    loss_of,
    make,
    samples,
    scores_of,
    tokens_of,
)

# -- gradients at sites ----------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_taylor_is_the_gradient_by_connectivity(name):
    model, data = make(name), samples()
    taylor, gates = (scores_of(model, data, n) for n in ("taylor", "connectivity"))
    for group in channel_groups(model).values():
        if group.kind != "embedding":
            assert gates[group.name].abs().max() > 1e-2
            close(taylor[group.name], gates[group.name].abs() / tokens_of(data))


class Probes:
    """A zero added to, and a one multiplied with, what passes a site."""

    def __init__(self):
        self.pairs = []

    def __call__(self, width):
        plus = torch.zeros(width, dtype=torch.float64, requires_grad=True)
        times = torch.ones(width, dtype=torch.float64, requires_grad=True)
        self.pairs.append((plus, times))
        return lambda x: x * times + plus

    def on_output(self, module, width):
        probe = self(width)
        module.register_forward_hook(lambda m, args, out: probe(out))

    def on_input(self, module, width):
        probe = self(width)
        module.register_forward_pre_hook(lambda m, args: (probe(args[0]), *args[1:]))

    def gradients(self, model, data, kind):
        """Sum over batches and sites of the sites' absolute sums."""
        index = {"grad": 0, "taylor": 1}[kind]
        wanted = [pair[index] for pair in self.pairs]
        total = [torch.zeros_like(p) for p in wanted]
        for inputs, target in data:
            found = torch.autograd.grad(loss_of(model, inputs, target), wanted)
            total = [a + b for a, b in zip(total, found)]
        return sum(t.abs() for t in total) / tokens_of(data)


def probe_stream(probes, side, width):
    """Every state of the residual stream of an encoder or decoder."""
    probes.on_output(side.dropout_module, width)
    for layer in side.layers:
        if layer.normalize_before:
            probe = probes  # one for each residual sum
            adds = [probe(width) for _ in range(2 + hasattr(layer, "encoder_attn"))]
            original, calls = layer.residual_connection, []

            def add(x, residual, adds=adds, original=original, calls=calls):
                calls.append(None)
                return adds[(len(calls) - 1) % len(adds)](original(x, residual))

            layer.residual_connection = add
        else:
            for norm in ("self_attn", "encoder_attn", "final"):
                if hasattr(layer, f"{norm}_layer_norm"):
                    probes.on_output(getattr(layer, f"{norm}_layer_norm"), width)
    if side.layer_norm is not None:
        probes.on_output(side.layer_norm, width)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["grad", "taylor"])
def test_grad_and_taylor_against_probes(name, kind):
    model, data = make(name), samples()
    found = scores_of(model, data, kind)
    groups = channel_groups(model)

    layer = "decoder.layers.1"
    parts = {
        f"{layer}.ffn": lambda m, p: p.on_input(m.fc2, 24),
        f"{layer}.self_attn.vo": lambda m, p: p.on_input(m.self_attn.out_proj, 16),
        f"{layer}.encoder_attn.vo": lambda m, p: p.on_input(m.encoder_attn.out_proj, 16),
        f"{layer}.encoder_attn.qk": lambda m, p: p.on_output(m.encoder_attn.q_proj, 16),
    }
    for group_name, attach in parts.items():
        probed, probes = copy.deepcopy(model), Probes()
        attach(probed.decoder.layers[1], probes)
        close(found[group_name], probes.gradients(probed, data, kind))

    for side in ("encoder", "decoder"):
        group_name = f"{side}.embedding"
        if group_name not in groups:
            continue
        probed, probes = copy.deepcopy(model), Probes()
        probe_stream(probes, getattr(probed, side), 16)
        if name == "shared":  # one group of channels
            probe_stream(probes, probed.decoder, 16)
        close(found[group_name], probes.gradients(probed, data, kind))


def test_keys_have_no_gradient_sum_and_values_have_that_of_the_output():
    model, data = make("post"), samples(1)
    inputs, target = data[0]
    for attention in (model.encoder.layers[0].self_attn, model.decoder.layers[1].encoder_attn):
        seen = {}
        hooks = [
            getattr(attention, f"{n}_proj").register_forward_hook(
                lambda m, args, out, n=n: seen.update({n: out})
            )
            for n in "qkv"
        ]
        hooks.append(
            attention.out_proj.register_forward_pre_hook(lambda m, args: seen.update(heads=args[0]))
        )
        gradients = torch.autograd.grad(loss_of(model, inputs, target), list(seen.values()))
        for hook in hooks:
            hook.remove()
        by = {name: g.sum(0) for name, g in zip(seen, gradients)}  # by sentence
        assert by["k"].abs().max() < 1e-13 < 1e-6 < by["q"].abs().max()
        close(by["v"], by["heads"])
        taylor = {n: (g * seen[n]).sum(0) for n, g in zip(seen, gradients)}
        close(taylor["v"], taylor["heads"])


@pytest.mark.parametrize("kind", SITES)
def test_per_example_is_the_average_of_single_sentences(kind):
    model, data = make("pre"), samples()
    found = scores_of(model, data, kind, per_example=True)
    together = scores_of(model, data, kind)
    expected = dict.fromkeys(found, 0.0)
    for inputs, target in data:
        for b in range(len(target)):
            piece = {k: v if v is None else v[b : b + 1] for k, v in inputs.items()}
            one = [(piece, target[b : b + 1])]
            # grad and taylor are means over tokens, lrp is a sum
            share = 1 if kind == "lrp" else tokens_of(one) / tokens_of(data)
            for name, scores in scores_of(model, one, kind, per_example=True).items():
                expected[name] = expected[name] + share * scores
    for name in found:
        close(found[name], expected[name])
        assert not torch.allclose(found[name], together[name], rtol=1e-3)
        if kind != "lrp":
            assert (found[name] >= together[name] - 1e-12).all()  # triangle inequality


# -- weights ---------------------------------------------------------------------------


def test_weight_against_hand_written_norms():
    model = make("post", share_decoder_input_output_embed=True)
    found = scores_of(model, [], "weight")
    layer = model.decoder.layers[0]

    def rows(module):
        return module.weight.norm(dim=1)

    def columns(module):
        return module.weight.norm(dim=0)

    ffn = rows(layer.fc1) + layer.fc1.bias.abs() + columns(layer.fc2)
    close(found["decoder.layers.0.ffn"], ffn.detach())
    attention = layer.encoder_attn
    vo = rows(attention.v_proj) + attention.v_proj.bias.abs() + columns(attention.out_proj)
    close(found["decoder.layers.0.encoder_attn.vo"], vo.detach())
    qk = rows(attention.q_proj) * rows(attention.k_proj)
    close(found["decoder.layers.0.encoder_attn.qk"], qk.detach())

    embedding = columns(model.decoder.embed_tokens)  # the output projection is the same
    for layer in model.decoder.layers:
        own, cross = layer.self_attn, layer.encoder_attn
        for reader in (own.q_proj, own.k_proj, own.v_proj, cross.q_proj, layer.fc1):
            embedding = embedding + columns(reader)
        for writer in (own.out_proj, cross.out_proj, layer.fc2):
            embedding = embedding + rows(writer) + writer.bias.abs()
        for norm in ("self_attn", "encoder_attn", "final"):
            norm = getattr(layer, f"{norm}_layer_norm")
            embedding = embedding + norm.weight.abs() + norm.bias.abs()
    close(found["decoder.embedding"], embedding.detach())
    embedding = columns(model.encoder.embed_tokens)
    for layer in model.encoder.layers:
        own = layer.self_attn
        for reader in (own.q_proj, own.k_proj, own.v_proj, layer.fc1):
            embedding = embedding + columns(reader)
        for writer in (own.out_proj, layer.fc2):
            embedding = embedding + rows(writer) + writer.bias.abs()
        for norm in (layer.self_attn_layer_norm, layer.final_layer_norm):
            embedding = embedding + norm.weight.abs() + norm.bias.abs()
    for layer in model.decoder.layers:  # cross-attention reads the encoder's channels
        cross = layer.encoder_attn
        embedding = embedding + columns(cross.k_proj) + columns(cross.v_proj)
    close(found["encoder.embedding"], embedding.detach())


def test_weight_does_not_depend_on_the_order_of_the_declaration():
    model = make("shared")
    expected = scores_of(model, [], "weight")
    for group in channel_groups(model).values():
        group.slices.reverse()
    for name, scores in scores_of(model, [], "weight").items():
        close(scores, expected[name])


def test_weight_reads_adapted_weights():
    model = make("post")
    plain = scores_of(model, [], "weight")
    SPLoRA(model, rank=2, init_range=0.3, inplace=True, exclude="decoder.output_projection")
    adapted = scores_of(model, [], "weight")
    fuse(model)
    for name, scores in scores_of(model, [], "weight").items():
        torch.testing.assert_close(adapted[name], scores, rtol=1e-6, atol=0)
        assert not torch.allclose(adapted[name], plain[name], rtol=1e-3)


@pytest.mark.parametrize("name", SITES)
def test_sites_behind_frozen_weights_are_measured(name):
    model, data = make("post"), samples()
    expected = scores_of(model, data, name)
    for group, scores in scores_of(model.requires_grad_(False), data, name).items():
        close(scores, expected[group])
