"""Frozen weights stay bit for bit, whatever an optimizer does to them."""

import copy

import pytest
import torch
from fairseq.utils import clip_grad_norm_

from src.connectivity.freeze import Freezer
from src.connectivity.groups import KINDS, channel_groups
from src.connectivity.layers import layers_at
from src.optim import frozen_step
from src.trainer import SRPTrainer
from src.training.channel_pruning import ChannelPruning
from tests.support.freezing import adam, removed
from tests.support.training import RUN, TINY, build, run_training, stage_of


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kinds", [("embedding",), ("qk", "vo", "ffn"), KINDS])
def test_masks_and_values(kinds, dtype):
    torch.manual_seed(1)
    model = build().to(dtype)
    freezer = Freezer(model, removed(model, kinds))
    masks = {id(p): m for p, m, _ in freezer.frozen}
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    gradients = [p.grad.clone() for p in model.parameters()]

    freezer.mask_gradients()
    for parameter, gradient in zip(model.parameters(), gradients):
        mask = masks.get(id(parameter), torch.zeros_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter.grad, gradient.masked_fill(mask, 0))

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9).add_(torch.randn_like(parameter) * 100)
    moved = [p.detach().clone() for p in model.parameters()]
    freezer.restore()
    for parameter, old, new in zip(model.parameters(), before, moved):
        mask = masks.get(id(parameter), torch.zeros_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter, torch.where(mask, old, new))


def test_the_mask_covers_every_tied_slice():
    """A weight is frozen if one of its channels is removed, along any dimension."""
    model = build()
    gone = removed(model, KINDS)
    masks = {id(p): m for p, m, _ in Freezer(model, gone).frozen}
    layers = layers_at(channel_groups(model), gone)
    assert len(layers) == 2
    whole = {id(p) for layer in layers for p in layer.parameters()}
    for name, group in channel_groups(model).items():
        for piece in group.slices:
            mask = masks[id(piece.parameter)]
            assert mask.index_select(piece.dim, gone[name]).all()
            assert mask.all() == (id(piece.parameter) in whole)


class Run:
    """A float32 model that is trained by random gradients, frozen in either way."""

    def __init__(self, masking, kinds=KINDS, seed=1, **options):
        torch.manual_seed(seed)
        self.model = build().float()
        self.freezer = Freezer(self.model, removed(self.model, kinds))
        self.masks = {p: self.freezer.mask(p) for p in self.freezer.parameters}
        self.optimizer = adam(self.model, **options)
        self.masking = masking

    def step(self, number, without=()):
        """One update; parameters at the positions ``without`` have no gradient."""
        torch.manual_seed(number)
        for position, parameter in enumerate(self.model.parameters()):
            gradient = torch.randn_like(parameter)
            parameter.grad = None if position in without else gradient
        if self.masking:
            self.freezer.mask_gradients()
        else:
            assert self.optimizer.freeze(self.freezer)
        self.optimizer.step()
        self.freezer.restore()

    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]

    def moments(self):
        state = sorted(self.optimizer.state_dict()["state"].items())
        return [(s["exp_avg"], s["exp_avg_sq"], s["step"]) for _, s in state]


def assert_same(one, other):
    for a, b in zip(one.weights(), other.weights()):
        assert torch.equal(a, b)
    for a, b in zip(one.moments(), other.moments()):
        assert all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("kinds", [("embedding",), ("qk", "vo", "ffn"), KINDS])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_the_optimizers_freezing_is_masking(kinds, weight_decay, monkeypatch):
    """Weights and moments, while frozen and after; decay in every step, as AdamW's."""
    monkeypatch.setattr(frozen_step, "LARGEST_OUTSTANDING", 0.0)
    masked, frozen = (Run(masking, kinds, weight_decay=weight_decay) for masking in (True, False))
    before = frozen.weights()
    for number in range(5):
        for run in (masked, frozen):
            run.step(number)
    assert_same(masked, frozen)
    for parameter, old in zip(frozen.model.parameters(), before):
        mask = frozen.masks.get(parameter, torch.zeros_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter[mask], old[mask])
        live = parameter[~mask]  # none in a layer that goes
        assert not len(live) or (live != old[~mask]).float().mean() > 0.99
    frozen.optimizer.unfreeze()
    assert_same(masked, frozen)
    for run in (masked, frozen):  # frozen no more
        for parameter in run.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        run.optimizer.step()
    assert_same(masked, frozen)


def test_decay_is_put_off_but_not_lost():
    """Of 45 steps, a part is applied when it has grown, the rest at the end."""
    masked, frozen = (Run(masking, weight_decay=0.1) for masking in (True, False))
    threshold = frozen_step.LARGEST_OUTSTANDING
    lacking = 0
    for number in range(45):
        for run in (masked, frozen):
            run.step(number)
        for a, b in zip(masked.weights(), frozen.weights()):
            assert torch.allclose(a, b, rtol=2 * threshold, atol=1e-5)
            lacking += not torch.equal(a, b)
    assert lacking
    frozen.optimizer.unfreeze()
    for a, b in zip(masked.weights(), frozen.weights()):
        assert torch.allclose(a, b, rtol=1e-5, atol=45e-3 * threshold)
    undecayed = Run(True)
    for number in range(45):
        undecayed.step(number)
    for one, other in zip(frozen.model.parameters(), undecayed.model.parameters()):
        live = ~frozen.masks.get(one, torch.zeros_like(one, dtype=torch.bool))
        if not live.any():  # of a layer that goes
            continue
        one, other = one.detach()[live], other.detach()[live]
        share = (one - other).norm() / other.norm()
        assert share.item() == pytest.approx(1 - (1 - 1e-4) ** 45, rel=0.2)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_saved_frozen_optimizer_goes_on_bit_for_bit(weight_decay):
    """Moments of frozen weights are saved as 0, decay that is put off as it is."""
    straight, stopped = (Run(False, weight_decay=weight_decay) for _ in range(2))
    for number in range(7):
        straight.step(number)
        stopped.step(number)
    saved = copy.deepcopy(stopped.optimizer.state_dict())
    for position, parameter in enumerate(stopped.model.parameters()):
        state = saved["state"][position]
        assert state["exp_avg"].shape == parameter.shape
        if parameter in stopped.masks:
            mask = stopped.masks[parameter]
            assert (state["exp_avg"][mask] == 0).all()
            assert (state["exp_avg_sq"][mask] == 0).all()
            assert (state["exp_avg_sq"][~mask] > 0).all()
    weights = stopped.weights()
    resumed = Run(False, weight_decay=weight_decay)
    for number in range(100, 103):
        stopped.step(number)  # and is taken back to where it was
    for run in (resumed, stopped):
        for parameter, weight in zip(run.model.parameters(), weights):
            parameter.data.copy_(weight)
        run.optimizer.load_state_dict(copy.deepcopy(saved))
    for number in range(7, 20):  # decay is applied once among them
        for run in (straight, resumed, stopped):
            run.step(number)
    for _ in range(2):
        assert_same(straight, resumed)
        assert_same(straight, stopped)
        for run in (straight, resumed, stopped):
            run.optimizer.unfreeze()


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_the_norm_is_of_live_gradients(limit):
    run = Run(False)
    run.step(1)
    parameters = list(run.model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    parameters[3].grad = None
    masked = copy.deepcopy(parameters)
    for parameter, twin in zip(parameters, masked):
        if parameter.grad is not None:
            mask = run.masks.get(parameter, torch.zeros(()).bool())
            twin.grad = parameter.grad.masked_fill(mask, 0)
    expected = clip_grad_norm_(masked, limit)
    assert run.optimizer.clip_grad_norm(limit).item() == pytest.approx(expected.item())
    for parameter, twin in zip(parameters, masked):
        if parameter.grad is not None:
            mask = run.masks.get(parameter, torch.zeros(()).bool())
            assert torch.allclose(parameter.grad.masked_fill(mask, 0), twin.grad)


def test_the_norm_is_that_of_all_processes():
    """Where each has a part of the parameters."""
    whole, shared = Run(False), Run(False)
    for run in (whole, shared):
        run.step(1)
        for parameter in run.model.parameters():
            parameter.grad = torch.ones_like(parameter)
    norm = whole.optimizer.clip_grad_norm(0.5)
    assert shared.optimizer.clip_grad_norm(0.5, lambda part: 2 * part) == 2 * norm
    for one, half in zip(whole.model.parameters(), shared.model.parameters()):
        assert torch.allclose(one.grad, 2 * half.grad)


def test_a_step_with_a_closure_and_a_scale():
    masked, frozen = Run(True), Run(False)

    def closure(run):
        torch.manual_seed(1)
        (4 * sum((torch.randn_like(p) * p).sum() for p in run.model.parameters())).backward()

    closure(masked)
    masked.freezer.mask_gradients()
    masked.optimizer.step(scale=4.0)
    masked.freezer.restore()
    assert frozen.optimizer.freeze(frozen.freezer)
    with torch.no_grad():
        frozen.optimizer.step(lambda: closure(frozen), scale=4.0)
    assert_same(masked, frozen)
    assert frozen.moments()[0][0].norm() == masked.moments()[0][0].norm() > 0


def test_a_parameter_without_a_gradient_is_not_stepped():
    """Which ones have none may change from step to step."""
    masked, frozen = Run(True), Run(False)
    for number, without in enumerate(((), (0, 5), (5,), ())):
        for run in (masked, frozen):
            run.step(number, without)
    assert_same(masked, frozen)
    assert {float(step) for *_, step in frozen.moments()} == {2, 3, 4}


def test_a_gradient_that_is_not_finite_is_noticed():
    """Of a frozen weight too: it could make the weight NaN."""
    run = Run(False)
    run.step(1)
    for parameter, mask in run.masks.items():
        for value in (float("inf"), float("nan")):
            for other in run.model.parameters():
                other.grad = torch.ones_like(other)
            assert run.optimizer.clip_grad_norm(0.0).isfinite()
            parameter.grad[tuple(mask.nonzero()[0])] = value
            assert not run.optimizer.clip_grad_norm(0.0).isfinite()


def test_who_cannot_be_frozen_by_the_optimizer():
    half = Run(False)
    half.model.bfloat16()
    assert not half.optimizer.freeze(half.freezer)
    assert not adam(build()).freeze(half.freezer)  # float64
    assert not Run(False, adam_betas="(0.9, 0)").optimizer.freeze(half.freezer)


class Counting(SRPTrainer):
    """Counts updates with weights frozen by the optimizer and by masking."""

    by_optimizer = by_masking = 0

    def train_step(self, samples, raise_oom=False):
        shrinking = stage_of(self).shrinking
        result = super().train_step(samples, raise_oom)
        if shrinking and stage_of(self).shrinking:
            masked = stage_of(self).freezer._values is not None
            Counting.by_masking += masked
            Counting.by_optimizer += not masked
        return result


def test_a_stage_frozen_by_the_optimizer_ends_as_one_by_masking(data, base, tmp_path, monkeypatch):
    monkeypatch.setattr("src.trainer.SRPTrainer", Counting)
    Counting.by_optimizer = Counting.by_masking = 0
    states = []
    for masking in (False, True):
        if masking:
            monkeypatch.setattr(ChannelPruning, "_optimizer_freezes", lambda self, trainer: False)
        folder = tmp_path / str(masking)
        run_training(
            [data, *TINY, *RUN, "--pretrained-model", base, "--save-dir", folder]
            + ["--srp", "--compression-rate", "0.4", "--pruning-iter", "2"]
            + ["--pruning-period", "3", "--max-epoch", "7", "--weight-decay", "0"]
        )
        states.append(torch.load(folder / "checkpoint_last.pt"))
    assert Counting.by_optimizer == Counting.by_masking > 20
    optimizers = [s["last_optimizer_state"]["state"] for s in states]
    for key, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][key]), key
    assert optimizers[0].keys() == optimizers[1].keys()
    for position, state in optimizers[0].items():
        for key, value in state.items():
            assert torch.equal(value, optimizers[1][position][key]), (position, key)
