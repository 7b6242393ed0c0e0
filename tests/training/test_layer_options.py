"""fairseq's options of layers in training: LayerDrop, activations that are computed again."""

import pytest
import torch

from src.connectivity.groups import channel_groups
from tests.support.cuts import logits
from tests.support.importance import samples, scores_of
from tests.support.runs import assert_identical, final_state, stop_at
from tests.support.training import RUN, TINY, batch, build, run_training, stage_of

DROP = {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}
DROPPED = ["--encoder-layerdrop", "0.4", "--decoder-layerdrop", "0.4"]


def test_layers_are_dropped_as_fairseq_drops_them():
    ours, stock = build(**DROP), build("transformer", **DROP)
    state = {k: v for k, v in ours.state_dict().items() if k in stock.state_dict()}
    stock.load_state_dict(state)
    for model in (ours, stock):
        model.train()
    seen = set()
    for seed in range(8):
        results = []
        for model in (ours, stock):
            torch.manual_seed(seed)
            results.append(logits(model))
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
        seen.add(results[0].sum().item())
    assert len(seen) > 4  # of 16 ways to drop four layers
    assert torch.equal(logits(ours.eval()), logits(ours))


def test_checkpoints_of_layerdrop_are_pruned_in_depth(data, tmp_path):
    """Stopped and resumed with the same layers dropped, bit for bit."""
    stock = [data, *TINY, *DROPPED, *RUN, "--arch", "transformer", "--criterion"]
    stock += ["label_smoothed_cross_entropy", "--optimizer", "adam", "--max-epoch", "1"]
    run_training([*stock, "--save-dir", tmp_path / "stock"])
    path = str(tmp_path / "stock" / "checkpoint_last.pt")
    command = [data, *TINY, *DROPPED, *RUN, "--pretrained-model", path, "--max-epoch", "3"]
    command += ["--srp", "--keep-decoder-layers", "1", "--attn-kd", "1", "--pruning-period", "2"]
    command += ["--save-interval-updates", "2", "--no-epoch-checkpoints", "--save-dir"]
    trainer = run_training([*command, tmp_path / "whole"])
    assert stage_of(trainer).done and len(trainer.get_model().decoder.layers) == 1
    for update in (3, 7):
        folder = tmp_path / str(update)
        with pytest.MonkeyPatch.context() as patch:
            stop_at(update, [*command, folder], patch)
        run_training([*command, folder])
        assert_identical(final_state(folder), final_state(tmp_path / "whole"))


def gradients(model, gated):
    """Loss and gradients of a training step, and how many bytes are kept for the second."""
    kept = 0

    def keep(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    model.train()
    torch.manual_seed(3)
    if gated:
        channel_groups(model)["encoder.layers.0.ffn"].shrink(torch.tensor([1, 5]), 0.5)
        channel_groups(model)["decoder.depth"].shrink(torch.tensor([1]), 0.3)
        for layer in model.decoder.depth.layers:
            layer.keep_attention_map = True
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(*batch())[0].logsumexp(-1).sum()
        if gated:
            maps = [layer.attention_map for layer in model.decoder.depth.layers]
            result = result + sum(x.square().sum() for x in maps)
    for layer in model.decoder.depth.layers:  # as the criterion does before the backward pass
        layer.keep_attention_map, layer.attention_map = False, None
    result.backward()
    return result, {n: p.grad for n, p in model.named_parameters()}, kept


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("more", [{}, DROP], ids=["all layers", "LayerDrop"])
def test_activations_computed_again_give_the_same_gradients(gated, more):
    options = {"dropout": 0.3, "attention_dropout": 0.2, **more}
    plain = gradients(build(**options), gated)
    again = gradients(build(**options, checkpoint_activations=True), gated)
    assert torch.equal(again[0], plain[0])
    for name, gradient in plain[1].items():
        assert (gradient is None) == (again[1][name] is None), name
        assert gradient is None or torch.equal(again[1][name], gradient), name
    assert again[2] < 0.5 * plain[2] or more


def test_channels_are_scored_beside_activations_computed_again():
    data = samples()
    found, expected = (
        scores_of(build(checkpoint_activations=again), data, "fisher") for again in (True, False)
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())
