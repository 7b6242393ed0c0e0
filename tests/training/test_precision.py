"""Pruning in bfloat16 and with float32 copies of half-precision weights."""

import time
from types import SimpleNamespace

import pytest
import torch
from fairseq import optim
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer, MemoryEfficientFP16Optimizer

from src.acceleration.bfloat16 import bfloat16_gain
from src.connectivity.cut import cut
from src.connectivity.freeze import Freezer
from src.errors import UserError
from src.modules.torch_private import has_avx512_bf16
from src.optim.half_precision import prepare, unscale_once
from src.optim.state import _memory, clear_moments, cut_optimizer
from src.trainer import SRPTrainer
from tests.support.cuts import random_keep
from tests.support.runs import in_precision
from tests.support.training import RUN, TINY, run_training, stage_of

STAGE = ["--srp", "--compression-rate", "0.4", "--max-epoch", "2"]


class Watcher(SRPTrainer):
    log, expected = [], None

    def train_step(self, samples, raise_oom=False):
        result = super().train_step(samples, raise_oom)
        if stage_of(self) is not None and stage_of(self).shrinking:
            for parameter, mask, values in stage_of(self).freezer.frozen:
                assert parameter.dtype == Watcher.expected
                Watcher.log.append(torch.equal(parameter[mask], values[mask]))
        return result


@pytest.mark.parametrize(
    "option, dtype, kind",
    [
        ("bf16", torch.bfloat16, FP16Optimizer),
        ("fp16", torch.float16, FP16Optimizer),
        ("memory_efficient_fp16", torch.float16, MemoryEfficientFP16Optimizer),
        ("amp", torch.float32, AMPOptimizer),
    ],
)
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_stage_in_half_precision(data, base, tmp_path, monkeypatch, option, dtype, kind):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)  # a key, no more
    monkeypatch.setattr("src.trainer.SRPTrainer", Watcher)
    Watcher.log, Watcher.expected = [], dtype
    trainer = run_training(
        [data, *TINY, *RUN, *STAGE, "--pretrained-model", base, "--save-dir", tmp_path]
        + ["--weighted-layernorm", "--warming-up", "0"]
        + ["--optimizer", "adam" if "efficient" in option else "srp_adam"]
        # relevance is that of a float32 copy
        + ["--importance", "lrp" if option == "bf16" else "fisher"],
        main=in_precision(option),
    )
    assert stage_of(trainer).done and len(Watcher.log) > 100 and all(Watcher.log)
    optimizer = trainer.optimizer
    assert isinstance(optimizer, kind)
    if kind is FP16Optimizer:
        shapes = [p.shape for p in optimizer.fp16_params]
        parameters = {id(p): p for p in optimizer.fp16_params}
        memory = [item for item in _memory(optimizer, shapes) if item[1] == "float32 copy"]
        assert len(memory) == len(parameters)
        for parameter, _, copy in memory:
            assert torch.equal(parameters[id(parameter)], copy.to(dtype))
    saved = torch.load(tmp_path / "checkpoint_last.pt")
    # with which fairseq's own training, too, goes on
    assert saved["optimizer_history"][-1]["optimizer_name"] == kind.__name__
    state = saved["model"]
    assert state["encoder.embed_tokens.weight"].shape[1] < 16
    # a schedule by validation loss has its learning rate in the optimizer alone
    optimizer.set_lr(3e-4)
    assert trainer._rebuild_optimizer().get_lr() == 3e-4


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_the_learning_rate_of_an_epoch_stays_after_a_cut_at_its_start(
    data, base, tmp_path, monkeypatch
):
    """The float32 copies of a cut model need another optimizer, and that a schedule."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    rates = []

    class Rates(SRPTrainer):
        def train_step(self, samples, raise_oom=False):
            rates[-1].append(self.get_lr())
            return super().train_step(samples, raise_oom)

    monkeypatch.setattr("src.trainer.SRPTrainer", Rates)
    options = ["--compression-rate", "0.4", "--warming-up", "1", "--max-epoch", "3"]
    options += ["--lr", "1e-3,1e-4,1e-5", "--no-save", "--disable-validation"]
    for main in (None, in_precision("bf16")):
        rates.append([])
        run_training(
            [data, *TINY, *RUN, *options, "--pretrained-model", base] + ["--save-dir", tmp_path],
            main=main,
        )
    assert rates[0] == rates[1] == [1e-3] * 4 + [1e-4] * 4 + [1e-5] * 4


def test_amp_unscales_gradients_once(data, tmp_path):
    """The scale is a power of two: without half precision in it, amp changes nothing."""

    weights = []
    for main in (None, in_precision("amp")):
        folder = tmp_path / str(len(weights))
        options = ["--max-update", "6", "--adam-eps", "1e-3", "--save-dir", folder]
        trainer = run_training([data, *TINY, *RUN, *options], main=main)
        weights.append(trainer.get_model().state_dict())
    assert isinstance(trainer.optimizer, AMPOptimizer)
    assert trainer.optimizer.scaler.get_scale() == 128
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_step_that_amp_repeats_counts_once(data, base, tmp_path, monkeypatch):
    """Overflows of the first update: fairseq makes it again from inside it."""
    attempts, counted = [], set()

    class Counting(SRPTrainer):
        def train_step(self, samples, raise_oom=False):
            if not attempts:
                self.optimizer.scaler._init_scale = 2.0**127  # half of what float32 has
            attempts.append(None)
            output = super().train_step(samples, raise_oom)
            counted.add((self.get_num_updates(), stage_of(self).step))
            return output

    monkeypatch.setattr("src.trainer.SRPTrainer", Counting)
    options = [*STAGE, "--max-epoch", "1", "--no-save", "--pretrained-model", base]
    options += ["--amp-batch-retries", "20", "--save-dir", tmp_path]
    trainer = run_training([data, *TINY, *RUN, *options], main=in_precision("amp"))
    assert len(attempts) > 4 and counted == {(n, n) for n in range(1, 5)}
    assert stage_of(trainer).done


@pytest.mark.parametrize("window, expected", [(None, 2000), (7, 7)])
def test_amp_scales_by_its_options(window, expected):
    optimizer = SimpleNamespace(fp32_optimizer=None)
    unscale_once(optimizer, SimpleNamespace(amp_scale_window=window, fp16_init_scale=4), "cpu")
    scaler = optimizer._grad_scaler
    assert (scaler.get_scale(), scaler.get_growth_interval()) == (4, expected)


def half_optimizer(model, flat):
    """An FP16Optimizer over a model as fairseq builds it, without a GPU."""
    params = list(model.parameters())
    if flat:
        copy = torch.nn.Parameter(torch.cat([p.detach().float().view(-1) for p in params]))
        copies, listed = {params[0].device.index: copy}, [copy]
    else:
        copies = listed = [torch.nn.Parameter(p.detach().float()) for p in params]
    optimizer = FP16Optimizer.__new__(FP16Optimizer)
    optimizer.fp16_params, optimizer.fp32_params = params, copies
    optimizer.scaler = None
    inner = torch.optim.AdamW(listed, lr=1e-2)

    class Inner(optim.FairseqOptimizer):
        def __init__(self):
            self._optimizer = inner

    optimizer.fp32_optimizer = Inner()
    return optimizer


@pytest.mark.parametrize("flat", [True, False])
def test_copying_at_once_is_fairseqs_copying(flat):
    """Gradients and weights, of parameters without a gradient as well; update by update."""
    from tests.support.training import build

    found = []
    for at_once in (False, True):
        torch.manual_seed(1)
        model = build().to(torch.bfloat16)
        optimizer = half_optimizer(model, flat)
        listed = list(optimizer.fp32_params.values() if flat else optimizer.fp32_params)
        for copy in listed:
            copy.grad = torch.full_like(copy, 7)  # left from before
        optimizer._multiply_factor = 1.0
        if at_once:
            prepare(optimizer, None, "cpu")
            assert type(optimizer) is not FP16Optimizer
        for update in range(3):
            if update != 1:
                optimizer.zero_grad()
            for number, parameter in enumerate(model.parameters()):
                there = (number + update) % 3
                parameter.grad = torch.randn_like(parameter) if there else None
            optimizer._needs_sync = update < 2  # the last has no backward pass
            optimizer.step()
            for copy in listed:
                found.append(copy.grad.clone())
        found += [p.detach().clone() for p in [*model.parameters(), *listed]]
    half = len(found) // 2
    assert all(torch.equal(a, b) for a, b in zip(found[:half], found[half:]))


@pytest.mark.parametrize("flat", [True, False])
def test_copies_and_moments_follow_a_cut(flat):
    from src.connectivity.groups import KINDS, channel_groups
    from tests.support.training import build

    model = build().to(torch.bfloat16)
    optimizer = half_optimizer(model, flat)
    listed = list(optimizer.fp32_params.values() if flat else optimizer.fp32_params)
    for _ in range(2):
        for copy in listed:
            copy.grad = torch.randn_like(copy)
        optimizer.optimizer.step()
    shapes = [p.shape for p in optimizer.fp16_params]
    before = {(id(p), n): v.clone() for p, n, v in _memory(optimizer, shapes)}
    assert {n for _, n in before} == {"float32 copy", "exp_avg", "exp_avg_sq"}

    keep = random_keep(model, KINDS)
    removed = {}
    for name, kept in keep.items():
        gone = torch.ones(channel_groups(model)[name].width, dtype=torch.bool)
        gone[kept] = False
        removed[name] = gone.nonzero().squeeze(1)
    freezer = Freezer(model, removed)
    clear_moments(optimizer, freezer)
    masks = {id(p): m for p, m, _ in freezer.frozen}
    for parameter, name, view in _memory(optimizer, shapes):
        mask = masks.get(id(parameter), torch.zeros_like(view, dtype=torch.bool))
        old = before[id(parameter), name]
        assert torch.equal(view[~mask], old[~mask])
        assert torch.equal(view, old) if name == "float32 copy" else (view[mask] == 0).all()

    cuts = cut(model, keep)
    made, optimizer.scaler = [], object()  # the scale of the loss goes on

    def rebuild():
        made.append(half_optimizer(model, flat))
        return made[0]

    cut_optimizer(optimizer, cuts, rebuild)
    assert made[0].scaler is optimizer.scaler
    taken = {id(p): kept for p, _, kept in cuts}
    for parameter, name, view in _memory(made[0], [p.shape for p in model.parameters()]):
        expected = before[id(parameter), name]
        for dim, kept in taken.get(id(parameter), {}).items():
            expected = expected.index_select(dim, kept)
        assert view.shape == parameter.shape and torch.equal(view, expected)
    steps = [s["step"] for s in made[0].optimizer.state.values()]
    assert steps and all(s == 2 for s in steps)
    for copy in made[0].optimizer.state:
        copy.grad = torch.randn_like(copy)
    made[0].optimizer.step()
    assert all(s["step"] == 3 for s in made[0].optimizer.state.values())


needs_bf16 = pytest.mark.skipif(
    not has_avx512_bf16(),
    reason="this processor multiplies no bfloat16",
)


@needs_bf16
def test_cpu_bf16_trains_nearly_the_same(data, base, tmp_path):
    """Weights stay float32; the loss is that of float32 to bfloat16's accuracy."""
    losses = []
    for flag in ([], ["--cpu-bf16"]):
        folder = tmp_path / str(len(losses))
        trainer = run_training(
            [data, *TINY, *RUN, *STAGE, "--pretrained-model", base, *flag]
            + ["--weighted-layernorm", "--dropout", "0", "--save-dir", folder]
        )
        assert all(p.dtype == torch.float32 for p in trainer.get_model().parameters())
        rows = (folder / "results.csv").read_text().splitlines()
        losses.append(float(rows[-1].split(",")[3]))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_cpu_bf16_needs_the_processor(data, tmp_path, monkeypatch):

    monkeypatch.setattr("src.checks.training.has_avx512_bf16", lambda: False)
    with pytest.raises(UserError, match="--cpu-bf16"):
        run_training([data, *TINY, *RUN, "--cpu-bf16", "--save-dir", tmp_path])


@needs_bf16
@pytest.mark.parametrize("gain, warns", [(0.54, True), (1.9, False)])
def test_cpu_bf16_that_gains_nothing_is_told(data, tmp_path, monkeypatch, caplog, gain, warns):
    monkeypatch.setattr("src.checks.training.bfloat16_gain", lambda: gain)
    options = ["--cpu-bf16", "--max-update", "1", "--save-dir", tmp_path]
    run_training([data, *TINY, *RUN, *options])
    assert ("at 0.54 times the speed of float32" in caplog.text) is warns


def test_the_gain_of_bfloat16_is_measured(monkeypatch):
    """A product that takes three times as long in float32 gains three times."""

    def product(x, weight):
        time.sleep(0.01 if x.dtype == weight.dtype == torch.bfloat16 else 0.03)

    monkeypatch.setattr("src.acceleration.bfloat16.linear", product)
    assert 2 < bfloat16_gain.__wrapped__() < 4


@needs_bf16
def test_cpu_bf16_needs_the_criterion(data, tmp_path):
    criterion = "label_smoothed_cross_entropy"
    options = ["--cpu-bf16", "--criterion", criterion, "--save-dir", tmp_path]
    with pytest.raises(UserError, match=f"--cpu-bf16: --criterion {criterion}"):
        run_training([data, *TINY, *RUN, *options])


def test_checkpoints_of_pruning_runs_load_anywhere(data, base, tmp_path, monkeypatch):
    """Their task is rebuilt without what only the run needed: the base, the processor."""
    from fairseq import checkpoint_utils

    run_training([data, *TINY, *RUN, *STAGE, "--pretrained-model", base, "--save-dir", tmp_path])
    path = str(tmp_path / "checkpoint_last.pt")
    state = torch.load(path)
    state["cfg"]["task"]["cpu_bf16"] = True
    state["cfg"]["task"]["pretrained_model"] = None
    torch.save(state, path)
    monkeypatch.setattr("src.checks.training.has_avx512_bf16", lambda: False)
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([path])
    assert models[0].encoder.embedding.width < 16
