"""Training and translation on a GPU, or on a pretended one where there is none.

The results of the pretended one are the CPU's to the last digit; a real one rounds
otherwise, and its sums of gradients are not the same every time.
"""

import contextlib
import io
import re

import pytest
import torch
from fairseq.logging import metrics
from fairseq_cli import train as fairseq_train

from src import generate
from src.adapters import SPLoPA, SPLoRA, adapter_state_dict, fuse, load_adapter_state_dict
from src.connectivity.freeze import Freezer
from src.connectivity.groups import KINDS
from src.sparsity import Pruning, prune_by_pct, to_sparse
from src.trainer import SRPTrainer
from tests.support.freezing import adam, removed
from tests.support.pretended_gpu import CUDA, pretended_gpu
from tests.support.training import RUN, TINY, build, run_training, stage_of, weights_of

ON_GPU = [option for option in RUN if option != "--cpu"] + ["--scoring-batches", "2"]
STAGE = ["--srp", "--compression-rate", "0.4", "--weighted-layernorm", "--max-epoch", "2"]
HALF = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = [*HALF, "amp"]

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's of CUDA calls that fairseq makes
REAL = torch.cuda.is_available()


def on_gpu(monkeypatch):
    return contextlib.nullcontext() if REAL else pretended_gpu(monkeypatch)


def host(tensor):
    return tensor.cpu() if REAL else tensor.inner


def assert_same_weights(found, expected, tolerance):
    """Of two state dicts; where a gradient is zero but for rounding, Adam's step is not."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(value, expected[name], atol=tolerance), name


def in_precision(precision):
    """fairseq's training, in a precision that is set as ``src/train.py`` sets it."""

    def main(cfg):
        cfg.common.tpu = False
        if precision != "float32":
            setattr(cfg.common, precision, True)
        fairseq_train.main(cfg)

    return main


def train_on_gpu(monkeypatch, arguments, precision="float32"):
    with on_gpu(monkeypatch):
        trainer = run_training([*arguments, *ON_GPU], main=in_precision(precision))
    parameters = list(trainer.get_model().parameters())
    assert all(p.device == CUDA for p in parameters)
    assert all(p.dtype == HALF.get(precision, torch.float32) for p in parameters)
    return trainer


# -- the pretended GPU itself -------------------------------------------------------------


@pytest.mark.skipif(REAL, reason="there is a real GPU")
def test_two_devices_do_not_mix(monkeypatch):
    with pretended_gpu(monkeypatch):
        layer, x = torch.nn.Linear(4, 3).to("cuda"), torch.ones(2, 4)
        assert layer.weight.is_cuda and isinstance(layer.weight, torch.nn.Parameter)
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            layer(x)
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            layer.bias.masked_fill(torch.ones(3, dtype=torch.bool), 0)
        with pytest.raises(TypeError, match="numpy"):
            layer.weight.detach().numpy()
        layer(x.cuda()).sum().backward()
        assert layer.weight.grad.is_cuda
        assert torch.equal(layer.weight.grad.cpu(), x.sum(0).expand(3, 4))
        with torch.autocast("cuda"):
            assert layer(x.cuda()).dtype == torch.float16
    assert not torch.cuda.is_available()


@pytest.mark.skipif(REAL, reason="there is a real GPU")
def test_nothing_of_it_is_left(monkeypatch):
    """fairseq's metrics are the process's, and every checkpoint holds them."""
    with pretended_gpu(monkeypatch):
        metrics.log_scalar("loss", torch.ones((), device="cuda"))
    torch.save(metrics.state_dict(), io.BytesIO())


# -- training -----------------------------------------------------------------------------


def test_training_is_that_of_the_cpu(data, tmp_path, monkeypatch):
    options = [data, *TINY, "--dropout", "0", "--max-epoch", "2", "--save-dir"]
    expected = run_training([*options, tmp_path / "cpu", *RUN]).get_model().state_dict()
    trainer = train_on_gpu(monkeypatch, [*options, tmp_path / "gpu"])
    found = {name: host(value) for name, value in trainer.get_model().state_dict().items()}
    # eight updates move a weight by up to 8e-3
    assert_same_weights(found, expected, tolerance=1e-3 if REAL else 1e-5)


class Watcher(SRPTrainer):
    """Notes after every update whether frozen weights are what they were."""

    log = []

    def train_step(self, samples, raise_oom=False):
        result = super().train_step(samples, raise_oom)
        if stage_of(self) is not None and stage_of(self).shrinking:
            for parameter, mask, values in stage_of(self).freezer.frozen:
                Watcher.log.append(torch.equal(parameter[mask], values[mask]))
        return result


def test_freezing_and_clipping_in_one_operator(monkeypatch):
    """Gradients, their norm and weights are those of the CPU, where frozen and elsewhere."""
    results = []
    for device in ("cpu", "cuda"):
        with on_gpu(monkeypatch) if device == "cuda" else contextlib.nullcontext():
            torch.manual_seed(1)
            model = build().float()
            gone = removed(model, KINDS)
            gradients = [torch.randn_like(p) for p in model.parameters()]
            model.to(device)
            optimizer = adam(model)
            freezer = Freezer(model, gone)
            for number, (parameter, gradient) in enumerate(zip(model.parameters(), gradients)):
                parameter.grad = gradient.to(device) if number % 5 else None
            freezer.mask_gradients()
            norm = optimizer.clip_grad_norm(1.0)
            kept = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(100)
            freezer.restore()
            results.append([norm.cpu(), *kept, *(p.detach().cpu() for p in model.parameters())])
    assert len(results[0]) == len(results[1])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)
        assert torch.equal(one == 0, other == 0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_stage_freezes_exactly_and_cuts(data, base, tmp_path, monkeypatch, precision):
    monkeypatch.setattr("src.trainer.SRPTrainer", Watcher)
    Watcher.log = []
    arguments = [data, *TINY, *STAGE, "--pretrained-model", base, "--save-dir", tmp_path]
    arguments += ["--prob-kd", "1", "--attn-kd", "1", "--clip-norm", "0.1", "--update-freq", "2"]
    arguments += ["--keep-decoder-layers", "1"]
    trainer = train_on_gpu(monkeypatch, arguments, precision)
    assert stage_of(trainer).done and len(Watcher.log) > 30 and all(Watcher.log)
    saved = torch.load(tmp_path / "checkpoint_last.pt")["model"]
    assert saved["encoder.embed_tokens.weight"].shape[1] < 16
    assert all(value.device.type == "cpu" for value in saved.values())


@pytest.mark.parametrize(
    "options",
    [
        *(["--importance", name] for name in ("connectivity", "weight", "grad", "taylor")),
        ["--importance", "lrp"],
        ["--importance", "taylor", "--importance-per-example", "--importance-norm", "l2"],
        ["--importance", "random", "--prune-heads"],
        ["--pruning-iter", "2"],
        ["--keep-decoder-layers", "1", "--keep-encoder-layers", "1", "--attn-kd", "1"],
        ["--pruning-stage", "1", "--decreasing", "sg"],
        ["--optimizer", "adam"],
        ["--adapter", "splora", "--adapter-rank", "2"],
    ],
    ids=" ".join,
)
def test_stages_of_all_kinds(data, base, tmp_path, monkeypatch, options):
    arguments = [data, *TINY, "--pretrained-model", base, "--save-dir", tmp_path]
    stage = [option for option in STAGE if option != "--srp" or "--pruning-iter" not in options]
    optimizer = ["--optimizer", "srp_adam"]
    with on_gpu(monkeypatch):
        trainer = run_training([*arguments, *stage, *ON_GPU, *optimizer, *options])
    assert stage_of(trainer).done
    assert next(trainer.get_model().parameters()).device == CUDA


def test_a_run_goes_on(data, base, tmp_path, monkeypatch):
    """Stopped within a stage and gone on, it ends as the one that was not stopped."""
    options = [data, *TINY, *STAGE, "--pretrained-model", base, "--pruning-period", "2"]
    whole = train_on_gpu(monkeypatch, [*options, "--save-dir", tmp_path / "whole"])

    class Stopped(SRPTrainer):
        def train_step(self, samples, raise_oom=False):
            if self.get_num_updates() == 5:
                raise KeyboardInterrupt
            return super().train_step(samples, raise_oom)

    options += ["--save-interval-updates", "3", "--save-dir", tmp_path / "parts"]
    with monkeypatch.context() as patch:
        patch.setattr("src.trainer.SRPTrainer", Stopped)
        with pytest.raises(KeyboardInterrupt):
            train_on_gpu(monkeypatch, options)
    again = train_on_gpu(monkeypatch, options)
    found, expected = (
        {name: host(value) for name, value in run.get_model().state_dict().items()}
        for run in (again, whole)
    )
    if REAL:
        assert_same_weights(found, expected, tolerance=1e-3)
    else:
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_pruned(data, tmp_path, monkeypatch, precision):
    config = tmp_path / "weights.yaml"
    config.write_text(
        "pruning: {approach: {weight_compression_pytorch: {pruners: [{start_step: 1, "
        "end_step: 6, update_frequency_on_step: 2, target_sparsity: 0.5, pattern: 4x1, "
        "prune_type: snip_momentum}]}}}"
    )
    arguments = [data, *TINY, "--max-epoch", "2", "--sparsity-config", config]
    trainer = train_on_gpu(monkeypatch, [*arguments, "--save-dir", tmp_path], precision)
    assert weights_of(trainer).unfinished is False
    assert weights_of(trainer).sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("precision", ["float32", "fp16"])
@pytest.mark.parametrize(
    "adapter",
    [
        ["splora", "--adapter-rank", "2"],
        ["splopa", "--adapter-block-size", "8", "--adapter-prototypes", "4"],
    ],
    ids=["splora", "splopa"],
)
def test_adapters_learn(data, base, tmp_path, monkeypatch, adapter, precision):
    options = ["--pretrained-model", base, "--max-epoch", "1", "--adapter", *adapter]
    arguments = [data, *TINY, *options, "--save-dir", tmp_path]
    with on_gpu(monkeypatch):
        trainer = run_training([*arguments, *ON_GPU], main=in_precision(precision))
    learned = [p for p in trainer.get_model().parameters() if p.requires_grad]
    assert learned and all(p.is_cuda for p in learned)
    # adapters stay in float32 beside half-precision weights
    assert {p.dtype for p in learned} >= {torch.float32}


def test_validation_by_bleu(data, tmp_path, monkeypatch):
    options = ["--max-epoch", "1", "--eval-bleu", "--best-checkpoint-metric", "bleu"]
    options += ["--maximize-best-checkpoint-metric", "--save-dir", tmp_path]
    train_on_gpu(monkeypatch, [data, *TINY, *options])
    assert (tmp_path / "checkpoint_best.pt").is_file()


# -- translation ----------------------------------------------------------------------------


def translations(data, checkpoint, options):
    """Lines of hypotheses, their scores to four digits."""
    output = io.StringIO()
    arguments = [data, "--path", checkpoint, "--max-tokens", "200", "--max-len-b", "16", *options]
    with contextlib.redirect_stdout(output):
        generate.main([str(a) for a in arguments])
    lines = [line for line in output.getvalue().splitlines() if line.startswith("D-")]
    return [re.sub(r"(\d\.\d{4})\d*", r"\1", line) for line in lines]


SEARCHES = [
    [],
    ["--beam", "1"],
    ["--fairseq-search"],
    ["--prefix-size", "2"],
    ["--nbest", "3", "--lenpen", "0.5", "--unkpen", "1"],
    ["--no-repeat-ngram-size", "2"],
    ["--sampling", "--sampling-topk", "3", "--nbest", "5"],
    ["--diverse-beam-groups", "5"],
    ["--score-reference"],
    ["--print-alignment"],
    ["--sparse-inference"],
]


@pytest.mark.parametrize("options", SEARCHES, ids=" ".join)
def test_translations_are_those_of_the_cpu(data, base, monkeypatch, options):
    if REAL and "--sampling" in options:
        pytest.skip("a real GPU draws other numbers")
    expected = translations(data, base, [*options, "--cpu"])
    with on_gpu(monkeypatch):
        found = translations(data, base, options)
    assert len(found) >= 9
    if REAL:
        assert_same_words(found, expected)
    else:
        assert found == expected


def assert_same_words(found, expected):
    """Of nearly all hypotheses: rounding may change a choice."""
    assert len(found) == len(expected)
    pairs = [[line.split("\t")[2:] for line in pair] for pair in zip(found, expected)]
    assert sum(a == b for a, b in pairs) >= 0.75 * len(pairs)


@pytest.mark.parametrize("options", [[], ["--fairseq-search"]], ids=["ours", "fairseq's"])
def test_translation_in_half_precision(data, base, monkeypatch, options):
    expected = translations(data, base, [*options, "--cpu"])
    with on_gpu(monkeypatch):
        found = translations(data, base, [*options, "--fp16"])
    assert len(found) == 9
    assert_same_words(found, expected)


def test_sparse_layers(monkeypatch):
    with on_gpu(monkeypatch):
        network = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU()).to("cuda")
        prune_by_pct(network, 0.9)
        x = torch.randn(5, 32, device="cuda")
        expected, sparse = network(x), to_sparse(network)
        assert torch.allclose(host(sparse(x)), host(expected), atol=1e-5)
        sparse(x).sum().backward()
        assert all(p.grad.is_cuda for p in sparse.parameters())


class OnTwoDevices(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        self.first.to("cuda")

    def forward(self, x):
        return self.second(self.first(x.to("cuda")).cpu())


@pytest.mark.parametrize("domain", ["global", "local"])
def test_layers_on_two_devices_are_pruned_together(monkeypatch, domain):
    settings = {"prune_type": "fisher", "target_sparsity": 0.5, "prune_domain": domain}
    with on_gpu(monkeypatch):
        model = OnTwoDevices()
        pruning = Pruning({"pruners": [{**settings, "pattern": "2x4", "end_step": 1}]})
        pruning.model = model
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 16)).square().sum().backward()
            pruning.on_before_optimizer_step()
            optimizer.step()
            pruning.on_after_optimizer_step(optimizer)
        assert pruning.finished and pruning.sparsity == 0.5
        zeros = sum(int((p == 0).sum()) for n, p in model.named_parameters() if "weight" in n)
    assert zeros == 256


def test_adapters_on_two_devices(monkeypatch):
    with on_gpu(monkeypatch):
        model, x = OnTwoDevices(), torch.randn(4, 16)
        shared = SPLoPA(model, 4, 2, shared_pos_weights=True, init_range=0.1)
        shared(x).sum().backward()
        expected = shared(x)
        torch.testing.assert_close(fuse(shared)(x), expected)
        adapted, kept = SPLoRA(model, rank=2, init_range=0.1), torch.arange(16) < 5
        masks = {"first": {"in_features_mask": kept, "out_features_mask": kept}}
        state = adapter_state_dict(adapted, masks)
        load_adapter_state_dict(model, state)
        expected = host(adapted.first.rows)[:, :5]
        assert torch.equal(host(model.first.rows)[:, :5], expected)
