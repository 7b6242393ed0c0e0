"""Sparse models that are trained further: their zeros stay, unless --release-zeros."""

import logging

import pandas as pd
import pytest
import torch

from src import export_adapters
from src.errors import UserError
from tests.support.runs import assert_identical, final_state, in_precision
from tests.support.training import RUN, TINY, run_named, run_training

CONFIG = """
pruning:
  approach:
    weight_compression_pytorch:
      pruners:
        - !Pruner
            {pattern: "PATTERN", prune_type: magnitude, target_sparsity: 0.5, end_step: 1,
             update_frequency_on_step: 1}
"""


def command(data, folder, *options, epochs=3):
    return [data, *TINY, *RUN, "--save-dir", folder, "--max-epoch", epochs, *options]


def prune(data, folder, pattern="4x1", epochs=1) -> str:
    config = folder / "sparsity.yaml"
    config.write_text(CONFIG.replace("PATTERN", pattern))
    run_training(command(data, folder, "--sparsity-config", config, epochs=epochs))
    return str(folder / "checkpoint_last.pt")


@pytest.fixture(scope="module")
def sparse(data, tmp_path_factory):
    """By pattern, the checkpoint of a run that has removed half of the weights."""
    return {p: prune(data, tmp_path_factory.mktemp("sparse"), p) for p in ("4x1", "2:4")}


def matrices(path) -> dict:
    weights = torch.load(path)["model"]
    return {n: w for n, w in weights.items() if w.dim() == 2 and w.is_floating_point()}


def share(path) -> float:
    """Zeros among the weights of matrices."""
    weights = matrices(path).values()
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def assert_zeros_kept(before, after) -> None:
    """The same matrices are zero in the same places, the others have learned."""
    old, new = matrices(before), matrices(after)
    assert old.keys() == new.keys() and share(before) > 0.4
    for name, weight in old.items():
        zero = weight == 0
        assert (new[name][zero] == 0).all(), name
        if zero.any():
            assert (new[name][~zero] != 0).all(), name
    assert any(not torch.equal(w, new[n]) for n, w in old.items())


@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
@pytest.mark.parametrize("option", ["--pretrained-model", "--finetune-from-model"])
def test_finetuning_keeps_zeros(data, sparse, tmp_path, option, pattern):
    """Those of an embedding that is also the output layer, too."""
    trainer = run_training(command(data, tmp_path, option, sparse[pattern]))
    assert trainer.get_num_updates() == 12
    assert_zeros_kept(sparse[pattern], tmp_path / "checkpoint_last.pt")
    rows = pd.read_csv(tmp_path / "results.csv")
    assert rows["sparsity"].between(0.49, 0.51).all()


def test_float32_copies_keep_zeros_too(data, sparse, tmp_path):
    arguments = command(data, tmp_path, "--pretrained-model", sparse["4x1"])
    trainer = run_training(arguments, main=in_precision("bf16"))
    old, new = matrices(sparse["4x1"]), matrices(tmp_path / "checkpoint_last.pt")
    assert all((new[name][weight == 0] == 0).all() for name, weight in old.items())
    copies = zip(trainer.optimizer.fp16_params, trainer.optimizer.fp32_params)
    assert all((copy[parameter == 0] == 0).all() for parameter, copy in copies)


def test_zeros_are_released_on_request(data, sparse, tmp_path):
    options = ["--pretrained-model", sparse["4x1"], "--release-zeros"]
    run_training(command(data, tmp_path, *options))
    assert share(tmp_path / "checkpoint_last.pt") < 0.05
    with pytest.raises(UserError, match="--release-zeros: --sparsity-config decides"):
        config = tmp_path / "sparsity.yaml"
        run_training(command(data, tmp_path, *options, "--sparsity-config", config))


def test_a_run_is_not_continued_without_its_pruning(data, tmp_path):
    path = prune(data, tmp_path)
    before = final_state(tmp_path)
    for options in ([], ["--release-zeros"]):
        with pytest.raises(UserError) as refusal:
            run_training(command(data, tmp_path, *options))
        assert f"checkpoint {path}: its run removes weights; give its" in str(refusal.value)
    assert_identical(final_state(tmp_path), before)
    with pytest.raises(UserError, match="removes weights"):
        run_training(command(data, tmp_path / "other", "--restore-file", path))
    resets = [f"--reset-{p}" for p in ("optimizer", "lr-scheduler", "dataloader", "meters")]
    run_training(command(data, tmp_path / "other", "--restore-file", path, *resets))
    assert_zeros_kept(path, tmp_path / "other" / "checkpoint_last.pt")


@pytest.mark.parametrize("options", [[], ["--release-zeros"]])
def test_a_continued_run_equals_an_uninterrupted_one(data, sparse, tmp_path, options):
    options = ["--pretrained-model", sparse["2:4"], *options]
    run_training(command(data, tmp_path / "whole", *options))
    run_training(command(data, tmp_path / "parts", *options, epochs=1))
    run_training(command(data, tmp_path / "parts", *options))
    assert_identical(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
    # without the model to begin with, as many give the command again
    run_training(command(data, tmp_path / "parts", *options[2:], epochs=4))
    assert (share(tmp_path / "parts" / "checkpoint_last.pt") > 0.4) == (len(options) == 2)


def test_dense_models_have_no_zeros_to_keep(data, base, tmp_path):
    trainer = run_training(command(data, tmp_path, "--pretrained-model", base, epochs=1))
    assert trainer.pruning_runs == []


def test_channels_are_cut_of_a_sparse_model(data, sparse, tmp_path):
    options = ["--pretrained-model", sparse["4x1"], "--compression-rate", "0.6", "--srp"]
    trainer = run_training(command(data, tmp_path, *options, "--pruning-period", "2"))
    kept = run_named(trainer, "kept_zeros")
    assert not run_named(trainer, "stage").unfinished and kept.sparsity > 0.3
    parameters = {id(weight) for weight in trainer.get_model().parameters()}
    assert all(id(weight) in parameters for weight, _ in kept._masks)
    assert all((weight[~mask.kept] == 0).all() for weight, mask in kept._masks)
    assert sum(int((~mask.kept).sum()) for _, mask in kept._masks) > 1000


def test_adapters_that_fill_zeros_say_so(data, sparse, tmp_path, caplog):
    options = ["--pretrained-model", sparse["4x1"], "--adapter", "splora", "--adapter-rank", "2"]
    trainer = run_training(command(data, tmp_path, *options))
    assert trainer.pruning_runs == []  # the base is frozen
    path = str(tmp_path / "checkpoint_last.pt")
    assert "fused with" not in caplog.text
    with caplog.at_level(logging.WARNING):
        options = ["--path", path, "--output", f"{path}.fused", "--fuse"]
        export_adapters.run(export_adapters.get_parser().parse_args(options))
        assert f"--path {path}: its adapters, fused with sparse weights, fill" in caplog.text
        assert share(f"{path}.fused") < 0.4
        run_training(command(data, tmp_path / "next", "--pretrained-model", path, epochs=1))
    lines = [line for line in caplog.text.splitlines() if "fused with sparse weights" in line]
    assert len(lines) == 2
