"""Bad input: one clear line that names it, exit status 2, nothing written."""

import argparse
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from types import SimpleNamespace

import numpy
import pytest
import torch
from fairseq import options as fairseq_options
from fairseq.checkpoint_utils import load_model_ensemble_and_task

from src import generate
from src.checkpoint_utils import load_checkpoint
from src.checks.fairseq_options import (
    ALIGNED,
    check_not_overwritten,
    check_parts,
    check_start,
    warn_of_other_start,
)
from src.commandline import parsing as cli
from src.errors import UserError, ending_program
from src.options import SRPTranslationConfig
from src.trainer import SRPTrainer
from src.training import command as training
from src.training.channel_pruning import ChannelPruning
from tests.support.training import ROOT, RUN, TINY, run_training, stage_of, write_corpus

PRUNE = ["--srp", "--compression-rate", "0.4"]
SMOOTHED = "label_smoothed_cross_entropy"


def refused(capsys, arguments, folder, *words):
    """The error's line; checks its form and that nothing was written."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, ending_program():
        run_training([*arguments, "--save-dir", folder / "out"])
    assert stop.value.code == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0], lines[0]
    saved = folder / "out"
    assert not saved.exists() or not os.listdir(saved)
    return lines[0]


@pytest.fixture
def prune(data, base):
    return [data, *TINY, *RUN, "--pretrained-model", base, *PRUNE]


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--compression-rate", "0", ["(0, 1]"]),
        ("--compression-rate", "1.5", ["(0, 1]"]),
        ("--compression-rate", "nan", ["(0, 1]"]),
        ("--compression-rate", "0.001", ["at least", "larger rate"]),
        ("--compression-rate", "half", ["invalid"]),
        ("--compression-rate", "1", ["--srp", "below 1"]),
        ("--decreasing", "linear", ["sa, sg, sc, ea, eg, ec"]),
        ("--pruning-stage", "3", ["0, 1 or 2"]),
        ("--embedding-ratio", "0", ["above 0"]),
        ("--embedding-ratio", "nan", ["above 0"]),
        ("--embedding-ratio", "1e-320", ["above 0"]),
        ("--pruning-iter", "0", ["at least 1"]),
        ("--pruning-period", "0", ["at least 1"]),
        ("--warming-up", "-1", ["at least 0"]),
        ("--scoring-batches", "0", ["at least 1"]),
        ("--scoring-tokens", "0", ["at least 1"]),
        ("--importance", "magic", ["connectivity", "fisher"]),
        ("--prob-kd", "-1", ["at least 0"]),
        ("--T", "0", ["positive"]),
        ("--adam-betas", "nonsense", ["(0.9, 0.98)"]),
        ("--teacher-model", "missing.pt", ["no such file"]),
    ],
)
def test_option_values(capsys, prune, tmp_path, option, value, words):
    extra = ["--prob-kd", "1", "--max-epoch", "1"] if "teacher" in option else []
    line = refused(capsys, [*prune, *extra, option, value], tmp_path, *words)
    assert option in line


def test_embedding_ratio_where_no_embedding_is_cut(capsys, prune, tmp_path):
    refused(
        capsys, [*prune, "--embedding-ratio", "2", "--pruning-stage", "2"], tmp_path,
        "--embedding-ratio 2", "--pruning-stage 0 or 1",
    )  # fmt: skip


def test_period_longer_than_the_run(capsys, prune, tmp_path):
    line = refused(capsys, [*prune, "--pruning-period", "4", "--max-epoch", "3"], tmp_path)
    assert "--pruning-period 4" in line and "--max-epoch is 3" in line
    refused(
        capsys,
        [*prune, "--pruning-period", "4", "--max-update", "3"],
        tmp_path,
        "--max-update 3",
    )


@pytest.mark.parametrize(
    "options, updates",
    [
        (["--srp", "--warming-up", "3", "--max-update", "3"], 16),
        (["--warming-up", "3", "--max-update", "3"], 13),
        (["--warming-up", "1", "--max-update", "4"], 5),
        (["--srp", "--pruning-iter", "2", "--max-update", "7"], 8),
    ],
)
def test_updates_that_end_before_the_last_cut(
    capsys, prune, tmp_path, monkeypatch, options, updates
):
    """Ahead of any training or scoring; epochs of 4 updates."""
    monkeypatch.setattr(SRPTrainer, "train_step", lambda *_: pytest.fail("it trained"))
    command = [o for o in prune if o != "--srp"]
    words = [f"--max-update {options[-1]}:", f"takes {updates} updates"]
    refused(capsys, [*command, *options], tmp_path, *words)


def test_just_enough_updates(prune, tmp_path):
    one_shot = ["--warming-up", "1", "--max-update", "5"]
    for options in (["--srp", "--max-update", "4"], one_shot):
        command = [o for o in prune if o != "--srp"]
        trainer = run_training([*command, *options, "--no-save", "--save-dir", tmp_path])
        assert stage_of(trainer).done


@pytest.mark.parametrize(
    "options",
    [
        *(["--pruning-stage", "1"], ["--pruning-iter", "2"], ["--warming-up", "1"]),
        *(["--pruning-period", "2"], ["--importance", "taylor"], ["--decreasing", "sg"]),
        ["--importance-norm", "l1"],
    ],
)
def test_options_that_would_do_nothing(capsys, data, tmp_path, options):
    refused(capsys, [data, *TINY, *RUN, *options], tmp_path, " ".join(options), "needs")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--update-freq", "2,0"], ["--update-freq 2,0", "at least 1"]),
        (["--dropout", "1.5"], ["--dropout 1.5", "[0, 1)"]),
        (["--attention-dropout", "-1"], ["--attention-dropout -1", "[0, 1)"]),
        (["--relu-dropout", "1"], ["--relu-dropout 1", "[0, 1)"]),
        (["--label-smoothing", "2"], ["--label-smoothing 2", "[0, 1)"]),
        (["--weight-decay", "-1"], ["--weight-decay -1", "at least 0"]),
        (["--adam-eps", "nan"], ["--adam-eps nan", "above 0"]),
        (["--adam-eps", "0"], ["--adam-eps 0", "above 0"]),
        (["--ignore-prefix-size", "-1"], ["--ignore-prefix-size -1", "at least 0"]),
        (["--lr", "-1"], ["--lr -1", "at least 0"]),
        (["--decoder-layers", "0"], ["--decoder-layers 0", "at least 1"]),
        (["--encoder-attention-heads", "0"], ["--encoder-attention-heads 0", "at least 1"]),
        (["--share-all-embeddings"], ["--share-all-embeddings", "44", "40", "--joined"]),
        (
            ["--share-all-embeddings", "--decoder-embed-dim", "20"],
            ["--share-all-embeddings", "16", "20", "equal"],
        ),
        (["--max-tokens", "3"], ["--max-tokens 3", "empty"]),
        (["--max-tokens", "8"], ["--valid-subset valid", "max_tokens=8"]),
        (["--finetune-from-model", "no.pt"], ["--finetune-from-model no.pt", "no such file"]),
        (["--finetune-from-model", "x", "--reset-meters"], ["leave out --reset-meters"]),
        (["--finetune-from-model", "x", "--restore-file", "y"], ["leave out --restore-file"]),
        (["--finetune-from-model", "x", "--pretrained-model", "y"], ["x: would replace", "y;"]),
        (["--restore-file", "no.pt"], ["--restore-file no.pt", "no such file"]),
        (["--lr", "1e30", "--max-update", "9"], ["--lr: ", "of update 2", "diverged"]),
        (["--lr-scheduler", "tri_stage"], ["--lr-scheduler tri_stage: please specify steps"]),
        (["--max-source-positions", "5"], ["--valid-subset valid", "invalid", "(5, 1024)"]),
        (["--best-checkpoint-metric", "bleu"], ["bleu", "needs --eval-bleu"]),
        (["--best-checkpoint-metric", "bleu", "--eval-bleu"], ["bleu", "add --maximize-best"]),
        (["--best-checkpoint-metric", "accuracy"], ["accuracy", "needs --report-accuracy"]),
        (["--best-checkpoint-metric", "acc"], ["acc", "loss, nll_loss, ppl, bleu, accuracy"]),
        (["--maximize-best-checkpoint-metric"], ["metric loss", "leave out --maximize-best"]),
        (["--required-batch-size-multiple", "0"], ["batch-size-multiple 0", "at least 1"]),
        (["--save-interval", "0"], ["--save-interval 0", "at least 1"]),
        (["--num-workers", "-1"], ["--num-workers -1", "at least 0"]),
        (["--max-tokens", "0"], ["--max-tokens 0", "at least 1"]),
        (["--batch-size", "0"], ["--batch-size 0", "at least 1"]),
        (["--max-tokens-valid", "-5"], ["--max-tokens-valid -5", "at least 1"]),
        (["--batch-size-valid", "-1"], ["--batch-size-valid -1", "at least 1"]),
        (["--batch-size-valid", "1.5"], ["--batch-size-valid 1.5", "whole number"]),
        (["--keep-interval-updates-pattern", "0"], ["updates-pattern 0", "at least 1"]),
        (["--skip-remainder-batch", "--update-freq", "99"], ["--skip-remainder", "freq 99"]),
        (["--eval-bleu", "--eval-bleu-args", "{bad"], ["--eval-bleu-args {bad", "JSON"]),
        (["--eval-bleu", "--eval-bleu-detok-args", "[]"], ["--eval-bleu-detok-args []"]),
        (["--eval-bleu", "--eval-bleu-args", '{"beem": 1}'], ["beem", "not in", "fairseq-gen"]),
        (["--eval-bleu", "--eval-bleu-args", '{"beam": "x"}'], ["Integer", "fairseq-gen"]),
        (["--eval-bleu", "--eval-bleu-args", '{"beam": 0}'], ["the beam must be at least 1"]),
        (["--eval-bleu", "--eval-bleu-remove-bpe", "nosuch"], ["-remove-bpe nosuch", "know"]),
        (["--eval-bleu", "--eval-bleu-detok", "nosuch"], ["nosuch", "moses"]),
        (["--user-dir", "/nosuch"], ["--user-dir", "/nosuch"]),
        (
            ["--update-ordered-indices-seed", "--max-update", "1"],
            ["indices-seed", "--update-epoch-batch-itr True"],
        ),
        (["--upsample-primary", "0"], ["--upsample-primary 0", "at least 1"]),
        (["--continue-once", "no.pt"], ["--continue-once no.pt", "no such file"]),
        (["--optimizer-overrides", "lr=1"], ["overrides lr=1", "{'weight_decay': 0.01}"]),
        (["--optimizer", "adam", "--adam-betas", "x"], ["--optimizer adam", "name 'x' is not"]),
        (["--criterion", f"{SMOOTHED}_with_ctc"], ["_ctc: is for other models", SMOOTHED]),
        (["--criterion", ALIGNED], [f"--criterion {ALIGNED}", "needs --load-alignments"]),
        (["--load-alignments"], ["--load-alignments: --criterion srp", ALIGNED]),
        (
            ["--load-alignments", "--criterion", ALIGNED],
            ["--load-alignments", "train.align.de-en.idx", "--align-suffix"],
        ),
        (["--model-parallel-size", "2"], ["--model-parallel-size 2", "leave it out"]),
        (["--cpu-offload"], ["--cpu-offload", "fully_sharded"]),
        (["--store-ema", "--ema-decay", "2"], ["--ema-decay 2", "from 0 to 1"]),
        (["--store-ema", "--ema-seed-model", "no.pt"], ["-seed-model no.pt", "no such file"]),
        (["--ema-seed-model", "no.pt"], ["--ema-seed-model no.pt", "needs --store-ema"]),
    ],
)
def test_what_would_end_in_a_traceback(capsys, data, tmp_path, options, words):
    ends = ["--max-update", "1"]  # where it is not refused
    refused(capsys, [data, *TINY, *RUN, *ends, *options], tmp_path, *words)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(tpu=True), "--tpu: needs package torch_xla"),
        (dict(tpu=True, bf16=True), "--bf16: .*; run src/train.py"),
        (dict(ddp_backend="fully_sharded"), "--ddp-backend fully_sharded: needs package fairscale"),
        (dict(optimizer="composite"), "--optimizer composite: .*hydra"),
    ],
)
def test_parts_that_are_not_there(monkeypatch, options, words):
    monkeypatch.setattr("src.checks.fairseq_options.find_spec", lambda package: None)
    with pytest.raises(UserError, match=words):
        check_parts(SRPTranslationConfig(), argparse.Namespace(**options))


def test_buckets_that_fairseq_cannot_make(capsys, data, tmp_path, monkeypatch):
    monkeypatch.delattr(numpy, "compat", raising=False)  # as of numpy 2.4
    words = "--num-batch-buckets 3", f"numpy {numpy.__version__} no longer has"
    refused(capsys, [data, *TINY, *RUN, "--num-batch-buckets", "3"], tmp_path, *words)


EMBEDDINGS = {
    "missing": (None, "no such file"),
    "empty": (b"", "StopIteration"),
    "narrow": (b"1 2\nde1 0.1 0.2\n", "must match"),
    "words": (b"1 16\nde1 a" + b" 0" * 15, "could not convert string to float: 'a'"),
    "bytes": (b"1 16\n\xff\xfe", "UnicodeDecodeError"),
}


@pytest.mark.parametrize("side, dictionary", [("encoder", "de"), ("decoder", "en")])
@pytest.mark.parametrize("case", EMBEDDINGS)
def test_embeddings_that_cannot_be_read(capsys, data, tmp_path, case, side, dictionary):
    content, problem = EMBEDDINGS[case]
    path, option = tmp_path / "embeddings.txt", f"--{side}-embed-path"
    if content is not None:
        path.write_bytes(content.replace(b"de", dictionary.encode()))
    words = [f"{option} {path}: ", problem, "text"]
    refused(capsys, [data, *TINY, *RUN, option, path], tmp_path, *words)


def test_one_table_begins_with_one_file(capsys, tmp_path):
    data = write_corpus(tmp_path)
    for language in ("de", "en"):  # one table is of one dictionary
        (tmp_path / f"dict.{language}.txt").write_bytes((tmp_path / "dict.de.txt").read_bytes())
    path = tmp_path / "embeddings.txt"
    path.write_text("1 16\nde1 " + " ".join(["0.25"] * 16) + "\n")
    options = [o for o in TINY if o != "--share-decoder-input-output-embed"]
    options += ["--share-all-embeddings", "--max-update", "1", "--decoder-embed-path", path]
    words = f"--decoder-embed-path {path}: --share-all-embeddings", "--encoder-embed-path"
    refused(capsys, [data, *options, *RUN], tmp_path / "run", *words)


def test_embeddings_are_needed_by_the_training_alone(data, tmp_path):
    """Their file may be gone when the trained model is translated with."""
    path = tmp_path / "embeddings.txt"
    path.write_text("1 16\nde1 " + " ".join(["0.25"] * 16) + "\n")
    command = [data, *TINY, *RUN, "--max-epoch", "1", "--save-dir", tmp_path / "run"]
    trainer = run_training([*command, "--lr", "1e-30", "--encoder-embed-path", path])
    row = trainer.task.source_dictionary.index("de1")
    trained = trainer.get_model().encoder.embed_tokens.weight
    torch.testing.assert_close(trained[row], torch.full((16,), 0.25))
    path.unlink()
    saved = str(tmp_path / "run" / "checkpoint_last.pt")
    (model,), _, _ = load_model_ensemble_and_task([saved])
    torch.testing.assert_close(model.encoder.embed_tokens.weight, trained, rtol=0, atol=0)


def checked_options(**changes):
    """Options that pass, but for those that are given."""
    given = {"max_tokens": 9, "batch_size": None, "optimizer": "adam", "seed": 1}
    given.update(lr_scheduler="fixed", log_file=None)
    given.update(distributed_world_size=1, pipeline_model_parallel=False)
    return argparse.Namespace(**{**given, **changes})


def test_save_dir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("/proc/nope", str(tmp_path / "file")):
        args = checked_options(save_dir=folder)
        with pytest.raises(UserError, match=f"--save-dir {folder}: "):
            training.check_training(args, {"--lr"})


def test_log_file_that_cannot_be_written(tmp_path):
    """It may lie in the folder of the run, which is not there yet."""
    run = tmp_path / "run"
    args = checked_options(save_dir=str(run), log_file=str(run / "log"))
    training.check_training(args, {"--lr"})
    args.log_file = str(tmp_path / "nowhere" / "log")
    with pytest.raises(UserError, match="--log-file .*: there is no folder"):
        training.check_training(args, {"--lr"})


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("seed", -1, "must be from 0"),  # numpy takes no other
        ("seed", 2**32, "must be from 0"),
        ("distributed_world_size", 0, "must be at least 1"),
        ("pipeline_model_parallel", True, "leave it out"),
    ],
)
def test_what_fairseq_stumbles_over_before_it_builds_anything(tmp_path, name, value, words):
    args = checked_options(save_dir=str(tmp_path / "run"), **{name: value})
    option = f"--{name.replace('_', '-')}( {value})?"
    with pytest.raises(UserError, match=f"{option}: .*{words}"):
        training.check_training(args, {"--lr"})
    assert not (tmp_path / "run").exists()


def test_what_a_run_began_with_may_be_gone_when_it_goes_on(tmp_path):
    run = argparse.Namespace(finetune_from_model="gone.pt", save_dir=str(tmp_path))
    with pytest.raises(UserError):
        check_start(run)
    (tmp_path / "checkpoint_last.pt").write_text("")
    check_start(run)


@pytest.mark.parametrize("flag", ["--fp16", "--bf16", "--amp"])
def test_half_precision_on_a_cpu(capsys, data, tmp_path, flag):
    refused(capsys, [data, *TINY, *RUN, flag], tmp_path, flag, "needs a GPU")


def test_precisions_exclude_each_other(data):
    refused_script("train.py", data, "--arch", "srp", "--fp16", "--bf16", words="--bf16 --fp16")


def test_memory_efficient_half_precision(capsys, data, tmp_path):
    """fairseq's wrapper takes optimizers with a float32 step of their own only."""
    flag = "--memory-efficient-fp16"
    command = [data, *TINY, *RUN, "--optimizer", "srp_adam", flag]
    refused(capsys, command, tmp_path, flag, "--optimizer adam", "--fp16 instead")
    command[-2:] = ["adam", flag]
    refused(capsys, command, tmp_path, flag, "needs a GPU")


def test_a_period_of_one_shot(capsys, prune, tmp_path):
    command = [o for o in prune if o != "--srp"]
    words = "--pruning-period 2: needs --srp or a --pruning-iter above 1"
    refused(capsys, [*command, "--pruning-period", "2"], tmp_path, words)


def test_pruning_nothing(capsys, data, tmp_path):
    refused(capsys, [data, *TINY, *RUN, *PRUNE], tmp_path, "--pretrained-model")


def test_distillation_without_teacher(capsys, data, tmp_path):
    command = [data, *TINY, *RUN, "--prob-kd", "1"]
    refused(capsys, command, tmp_path, "--teacher-model")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--teacher-model", "teacher.pt"], ["--teacher-model teacher.pt", "--prob-kd"]),
        (["--T", "2"], ["--T 2", "--prob-kd"]),
    ],
)
def test_distillation_that_is_not_asked_for(capsys, data, tmp_path, options, words):
    refused(capsys, [data, *TINY, *RUN, *options], tmp_path, *words)


@pytest.fixture(scope="module")
def teachers(data, base, tmp_path_factory):
    """Checkpoints that can't teach, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("teachers")
    tiny = [*("--encoder-embed-dim", "8"), *("--decoder-embed-dim", "8")]
    layers = [*("--encoder-layers", "1"), *("--decoder-layers", "1")]
    ffn = [*("--encoder-ffn-embed-dim", "8"), *("--decoder-ffn-embed-dim", "8")]
    heads = [*("--encoder-attention-heads", "2"), *("--decoder-attention-heads", "2")]
    adaptive = [*("--arch", "transformer"), *("--adaptive-softmax-cutoff", "10,20")]
    adaptive += [*tiny, *layers, *ffn, *heads, "--criterion", "adaptive_loss"]
    adaptive += ["--ddp-backend", "legacy_ddp"]
    architectures = {
        "lstm": ["--arch", "lstm", *tiny, *layers, "--decoder-out-embed-dim", "8"],
        "1 layer": ["--arch", "srp", *tiny, *layers, *ffn, *heads],
        "adaptive": adaptive,
    }
    found = {"missing": "nowhere.pt", "nan": str(folder / "nan.pt")}
    state = torch.load(base)
    state["model"]["encoder.layers.0.fc1.weight"][0, 0] = float("nan")
    torch.save(state, found["nan"])
    found["shrinking"] = str(folder / "shrinking.pt")
    state = torch.load(base)
    state["model"]["encoder.embedding.connectivity"][2] = 0.5
    torch.save(state, found["shrinking"])
    for name, options in architectures.items():
        unknown = {"--label-smoothing", "0.1"} if name == "adaptive" else ()
        run = [data, *(o for o in RUN if o not in unknown), *options]
        run_training([*run, "--max-update", "1", "--save-dir", folder / name])
        found[name] = str(folder / name / "checkpoint_last.pt")
    return found


@pytest.mark.parametrize(
    "name, loss, words",
    [
        ("missing", "--prob-kd", ["--teacher-model", "no such file"]),
        ("nan", "--prob-kd", ["--teacher-model", "encoder.layers.0.fc1.weight", "NaN"]),
        ("adaptive", "--prob-kd", ["--teacher-model", "adaptive softmax"]),
        ("shrinking", "--prob-kd", ["--teacher-model", "a pruning stage is under way"]),
        ("lstm", "--attn-kd", ["--attn-kd 1", "LSTMModel"]),
        (
            "1 layer",
            "--attn-kd",
            ["--attn-kd 1", "has 1 decoder layers before any cut, the model 2"],
        ),
    ],
)
def test_teachers_that_cannot_teach(
    capsys, prune, teachers, tmp_path, monkeypatch, name, loss, words
):
    """Ahead of scoring."""
    monkeypatch.setattr(SRPTrainer, "begin_epoch", lambda *_: pytest.fail("it began"))
    command = [*prune, "--teacher-model", teachers[name], loss, "1"]
    refused(capsys, command, tmp_path, *words)


def test_teachers_of_other_kinds(data, teachers, tmp_path):
    for name in ("lstm", "1 layer"):
        options = ["--teacher-model", teachers[name], "--prob-kd", "1", "--max-update", "2"]
        run_training([data, *TINY, *RUN, *options, "--no-save", "--save-dir", tmp_path])


def test_an_lstm_to_prune(capsys, data, teachers, tmp_path):
    """It has some of a Transformer's options: no others would make it one."""
    command = [data, *TINY, *RUN, *PRUNE, "--pretrained-model", teachers["lstm"]]
    refused(capsys, command, tmp_path, teachers["lstm"], "is no SRP model or fairseq Transf")


@pytest.mark.parametrize("name", ["lstm", "adaptive"])
def test_models_without_a_count_of_flops(data, teachers, tmp_path, capsys, name):
    """Ahead of the translation."""
    report = tmp_path / "report.json"
    with pytest.raises(UserError, match=f"--report {report}: .*leave it out"):
        generate.main([data, "--path", teachers[name], "--report", str(report), "--cpu"])
    assert "S-0" not in capsys.readouterr().out and not report.exists()


def test_missing_data(capsys, tmp_path):
    command = [str(tmp_path / "nowhere"), *TINY, *RUN]
    refused(capsys, command, tmp_path, "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(capsys, [str(tmp_path / "empty"), *TINY, *RUN], tmp_path, "--source-lang")


def damaged(base, path, how):
    content = open(base, "rb").read()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("hello")
    elif how == "other archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "b")
    elif how == "a list":
        torch.save([1, 2], path)
    elif how == "names":  # of the archive's parts, no UTF-8 any more
        path.write_bytes(content.replace(b"data.pkl", b"data.p\xe9\xe9"))
    elif how == "compression":  # an unknown method, in every entry of the directory
        entry = content.index(b"PK\x01\x02") + 10
        path.write_bytes(content[:entry] + b"\x63" + content[entry + 1 :])
    elif how == "no model":
        torch.save({"weights": 1}, path)
    return path


def test_a_missing_part_of_the_data(capsys, data, tmp_path):
    command = [data, *TINY, *RUN, "--valid-subset", "valid,dev"]
    refused(capsys, command, tmp_path, data, "Dataset not found: dev")


@pytest.mark.parametrize(
    "options, interval, last",
    [
        (["--srp", "--pruning-period", "3"], 2, 3),
        (["--srp", "--pruning-period", "3", "--max-epoch", "5"], 6, 5),
        (["--warming-up", "2", "--max-epoch", "3"], 2, 3),
    ],
)
def test_a_cut_model_that_would_not_be_saved(capsys, data, base, tmp_path, options, interval, last):
    command = [data, *TINY, *RUN, "--pretrained-model", base, "--compression-rate", "0.4"]
    command += [*options, "--save-interval", interval]
    words = f"the last cut comes in epoch 3, the run ends with epoch {last}, and none"
    refused(capsys, command, tmp_path, f"--save-interval {interval}", words)


@pytest.mark.parametrize("named", ["valid", "valid,valid1"])
def test_validation_sets_that_would_lie_unused(capsys, tmp_path, named):
    sizes = (("train", 60), ("valid", 11), ("valid1", 5))
    command = [write_corpus(tmp_path, sizes), *TINY, *RUN, "--valid-subset", named]
    words = ("valid1", "--combine-valid-subsets", "--ignore-unused-valid-subsets")
    refused(capsys, command, tmp_path, *words)


def test_another_run_in_the_same_folder(data, base, tmp_path):
    shutil.copyfile(base, tmp_path / "checkpoint_last.pt")
    words = "checkpoint_last.pt: Optimizer does not match.*another --save-dir"
    command = [data, *TINY, *RUN, "--optimizer", "adam", "--max-epoch", "9"]
    with pytest.raises(UserError, match=words):
        run_training([*command, "--save-dir", tmp_path])
    assert os.listdir(tmp_path) == ["checkpoint_last.pt"]


@pytest.mark.parametrize("option", ["--finetune-from-model", "--restore-file"])
def test_starting_from_another_model(capsys, data, base, tmp_path, option):
    command = [data, *TINY, *RUN, "--arch", "transformer", option, base]
    words = "Cannot load model parameters", f"match. Give the options of its run, or {option}"
    refused(capsys, command, tmp_path, *words)


def test_an_average_that_nothing_was_kept_of(capsys, data, base, tmp_path):
    command = [data, *TINY, *RUN, "--store-ema", "--finetune-from-model", base]
    refused(capsys, command, tmp_path, f"--store-ema: checkpoint {base}", "--pretrained-model")


def test_an_average_that_begins_with_no_average_or_another_models(capsys, data, base, tmp_path):
    seed = ["--store-ema", "--ema-seed-model"]
    command = [data, *TINY, *RUN, "--max-update", "1"]
    words = f"--ema-seed-model {base}: has no average", "--store-ema"
    refused(capsys, [*command, *seed, base], tmp_path, *words)
    run_training([*command, "--store-ema", "--save-dir", tmp_path / "average"])
    seed.append(tmp_path / "average" / "checkpoint_last.pt")
    run_training([*command, *seed, "--no-save", "--save-dir", tmp_path])
    for option, weight in (
        (["--encoder-ffn-embed-dim", "12"], "fc1.weight"),
        (["--encoder-layers", "1"], "encoder.depth"),
    ):
        refused(capsys, [*command, *option, *seed], tmp_path, f"{seed[-1]}: ", weight)


def test_a_loss_that_cannot_be_scaled_further_down(capsys, data, tmp_path, monkeypatch):
    def least_scale(*args):
        raise FloatingPointError("Minimum loss scale reached (0.0001).")

    monkeypatch.setattr("fairseq.trainer.Trainer.clip_grad_norm", least_scale)
    command = [data, *TINY, *RUN, "--max-update", "1"]
    refused(capsys, command, tmp_path, "--fp16: Minimum loss scale reached")


@pytest.mark.parametrize("option", ["decoder-ffn-embed-dim", "encoder-embed-dim"])
def test_a_run_with_other_widths_in_the_same_folder(capsys, data, base, tmp_path, option):
    shutil.copyfile(base, tmp_path / "checkpoint_last.pt")
    with pytest.raises(UserError, match=f"--{option} 32: .*checkpoint_last.pt has [0-9]+; "):
        run_training([data, *TINY, *RUN, f"--{option}", "32", "--save-dir", tmp_path])
    assert os.listdir(tmp_path) == ["checkpoint_last.pt"]


def test_a_model_that_a_run_did_not_begin_with(data, base, tmp_path, caplog):
    other = shutil.copyfile(base, tmp_path / "other.pt")
    command = [data, *TINY, *RUN, "--save-dir", tmp_path, "--max-epoch"]
    for last, given in (("1", base), ("2", base), ("3", os.path.relpath(base))):
        run_training([*command, last, "--pretrained-model", given])
    assert "has no part" not in caplog.text
    run_training([*command, "4", "--pretrained-model", other])
    assert f"--pretrained-model {other}: has no part in this run" in caplog.text
    assert f"checkpoint_last.pt and began with {os.path.relpath(base)}; to" in caplog.text


@pytest.mark.parametrize(
    "restored, cfg, words",
    [
        ("checkpoint_last.pt", {"task": {"pretrained_model": "a.pt"}}, "began with a.pt"),
        ("checkpoint_last.pt", {"task": {}}, "began with no other model"),
        ("average.pt", {"task": {"pretrained_model": "a.pt"}}, None),  # asked for by name
        ("checkpoint_last.pt", {"task": None}, None),  # nothing is known
        ("checkpoint_last.pt", None, None),
    ],
)
def test_what_is_said_of_a_model_that_a_run_did_not_begin_with(restored, cfg, words, caplog):
    run = SimpleNamespace(
        task=SimpleNamespace(pretrained_model="b.pt"),
        checkpoint=SimpleNamespace(restore_file=restored),
    )
    warn_of_other_start(run, cfg, "last.pt")
    assert words in caplog.text if words else not caplog.records


@pytest.mark.parametrize("option", ["--pretrained-model", "--teacher-model"])
@pytest.mark.parametrize("name", ["checkpoint_best.pt", "checkpoint3.pt"])
def test_a_run_that_would_write_over_its_beginning(data, base, tmp_path, option, name):
    shutil.copyfile(base, tmp_path / name)
    command = [data, *TINY, *RUN, "--prob-kd", "1", "--pretrained-model", base]
    command += [option, tmp_path / name, "--max-epoch", "1", "--save-dir"]
    with pytest.raises(UserError, match=f"{option} .*{name}: lies in --save-dir"):
        run_training([*command, tmp_path])
    assert os.listdir(tmp_path) == [name]
    run_training([*command, tmp_path / "out"])


@pytest.mark.parametrize(
    "name, written",
    [
        *[(f"checkpoint{x}.pt", True) for x in ("_last", "_2_50", ".best_loss_4.1")],
        *[(f"{x}.pt", False) for x in ("average", "checkpoint_average", "checkpoint3.pt.old")],
    ],
)
def test_names_that_a_run_gives_to_checkpoints(tmp_path, name, written):
    run = argparse.Namespace(save_dir=str(tmp_path), pretrained_model=str(tmp_path / name))
    with pytest.raises(UserError, match="in --save-dir") if written else nullcontext():
        check_not_overwritten(run)


@pytest.mark.parametrize("start", ["--restore-file", "--finetune-from-model"])
@pytest.mark.parametrize(
    "options, words",
    [
        (["--activation-fn", "gelu"], "--activation-fn gelu: .* has relu;"),
        (["--no-scale-embedding"], "--no-scale-embedding True: .* has False;"),
        (["--no-token-positional-embeddings"], "-embeddings True: .* has False;"),
    ],
)
def test_going_on_with_another_function(data, base, tmp_path, start, options, words):
    command = [data, *TINY, *RUN, *options, "--max-epoch", "4", "--save-dir", tmp_path]
    with pytest.raises(UserError, match=words):
        run_training([*command, start, base])


def test_going_on_with_another_table(data, base, tmp_path):
    untied = [option for option in TINY if option != "--share-decoder-input-output-embed"]
    command = [data, *untied, *RUN, "--max-epoch", "4", "--save-dir", tmp_path]
    with pytest.raises(UserError, match="--share-decoder-input-output-embed False: .* True;"):
        run_training([*command, "--restore-file", base])


@pytest.fixture(scope="module")
def stage_1(data, base, tmp_path_factory):
    """Checkpoint of a stage 1 that was stopped in its second epoch of two."""
    folder = tmp_path_factory.mktemp("stage1")
    command = [data, *TINY, *RUN, *PRUNE, "--pruning-stage", "1", "--pruning-period", "2"]
    command += ["--pretrained-model", base, "--save-dir", folder]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChannelPruning, "cut", lambda self, trainer: self.stage.check())
        run_training([*command, "--save-interval-updates", "5"])
    return str(folder / "checkpoint_2_5.pt")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--pruning-stage", "2"], "--pruning-stage 2: .* has 1"),
        (["--compression-rate", "0.3"], "--compression-rate 0.3: .* has 0.4"),
        (["--pruning-period", "3"], "--pruning-period 3: .* has 2"),
        (["--decreasing", "sg"], "--decreasing sg: .* has sa"),
        (["--importance", "weight"], "--importance weight: .* has fisher"),
        (["--importance-norm", "l2"], "--importance-norm l2: .* has none"),
    ],
)
def test_another_stage_in_the_same_folder(data, base, stage_1, tmp_path, options, words):
    shutil.copyfile(stage_1, tmp_path / "checkpoint_last.pt")
    command = [data, *TINY, *RUN, *PRUNE, "--pruning-stage", "1", "--pruning-period", "2"]
    command += ["--pretrained-model", base, "--save-dir", tmp_path]
    with pytest.raises(UserError, match=f"{words}; .*another --save-dir"):
        run_training([*command, *options])
    assert os.listdir(tmp_path) == ["checkpoint_last.pt"]


def test_a_stage_whose_plan_was_not_saved_goes_on(data, base, stage_1, tmp_path):
    state = torch.load(stage_1)
    del state["extra_state"]["SRPTranslationTask"]["stage"]["plan"]
    torch.save(state, tmp_path / "checkpoint_last.pt")
    command = [data, *TINY, *RUN, *PRUNE, "--pruning-stage", "1", "--pruning-period", "2"]
    command += ["--pretrained-model", base, "--save-dir", tmp_path]
    assert stage_of(run_training(command)).done


def test_pruning_in_the_folder_of_another_run(prune, base, tmp_path):
    shutil.copyfile(base, tmp_path / "checkpoint_last.pt")
    with pytest.raises(UserError, match="prunes no channels.*another --save-dir"):
        run_training([*prune, "--max-epoch", "9", "--save-dir", tmp_path])
    assert os.listdir(tmp_path) == ["checkpoint_last.pt"]


def test_going_on_without_the_stage(data, stage_1, tmp_path):
    shutil.copyfile(stage_1, tmp_path / "checkpoint_last.pt")
    with pytest.raises(UserError, match="checkpoint_last.pt: a pruning stage is under way"):
        run_training([data, *TINY, *RUN, "--save-dir", tmp_path])
    assert os.listdir(tmp_path) == ["checkpoint_last.pt"]


def test_a_model_that_is_shrinking(capsys, data, base, tmp_path):
    state = torch.load(base)
    state["model"]["encoder.embedding.connectivity"][2] = 0.5
    torch.save(state, tmp_path / "half.pt")
    command = [data, *TINY, *RUN, *PRUNE, "--pretrained-model", tmp_path / "half.pt"]
    words = ("half.pt", "encoder.embedding are shrinking")
    refused(capsys, command, tmp_path / "run", *words)


def test_what_pruning_channels_excludes(capsys, data, prune, base, tmp_path):
    at = prune.index("--adam-betas")
    command = [*prune[:at], *prune[at + 2 :], "--optimizer", "adafactor"]
    refused(capsys, command, tmp_path, "--optimizer adafactor", "srp_adam, adam,")
    words = ["--srp: ", f"{data}:{data}", "one folder"]
    refused(capsys, [f"{data}:{data}", *prune[1:]], tmp_path, *words)
    command = [*prune, "--finetune-from-model", base]
    refused(capsys, command, tmp_path, "--finetune-from-model", "--pretrained-model")


def test_a_loss_that_says_nothing_of_channels(capsys, prune, tmp_path):
    """The first ones would stay."""
    command = [*prune, "--ignore-prefix-size", "999"]
    refused(capsys, command, tmp_path, "--importance fisher: every channel's is 0")


@pytest.mark.parametrize("flag", ["--use-bmuf", "--zero-sharding=os"])
def test_what_cannot_follow_a_cut(capsys, prune, tmp_path, flag):
    refused(capsys, [*prune, flag], tmp_path, flag.partition("=")[0])


@pytest.mark.parametrize(
    "how",
    ["truncated", "empty", "text", "other archive", "no model", "a list", "names"]
    + ["compression"],
)
def test_corrupt_pretrained_model(capsys, data, base, tmp_path, how):
    path = damaged(base, tmp_path / "bad.pt", how)
    command = [data, *TINY, *RUN, *PRUNE, "--pretrained-model", path]
    refused(capsys, command, tmp_path, f"--pretrained-model {path}")


def test_an_unreadable_checkpoint(base, tmp_path, monkeypatch):
    path = shutil.copy(base, tmp_path / "copy.pt")  # one that nothing has read yet

    def denied(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", denied)  # the tests may run as root
    with pytest.raises(UserError, match=r"--path .*can't be read \(Permission denied\)"):
        load_checkpoint(str(path), "--path")


def test_a_truncated_old_format_needs_no_more_trust(base, tmp_path):
    path = str(tmp_path / "old.pt")
    torch.save(torch.load(base), path, _use_new_zipfile_serialization=False)
    with open(path, "r+b") as stream:
        stream.truncate(2000)
    with pytest.raises(UserError, match="can't be read as a fairseq checkpoint") as error:
        load_checkpoint(path, "--path", trust=True)
    assert "--trust-checkpoint" not in str(error.value)


def test_missing_pretrained_model(capsys, data, tmp_path):
    command = [data, *TINY, *RUN, *PRUNE, "--pretrained-model", "nowhere.pt"]
    refused(capsys, command, tmp_path, "--pretrained-model nowhere.pt", "no such file")


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("harm-was-done",))


def test_pickled_code_needs_an_opt_in(capsys, data, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.load(base)
    state["surprise"] = Harmful()
    torch.save(state, tmp_path / "harmful.pt", pickle_module=pickle)
    command = [data, *TINY, *RUN, "--pretrained-model", tmp_path / "harmful.pt"]
    refused(capsys, command, tmp_path, "--trust-checkpoint", "could run code")
    assert not os.path.exists("harm-was-done")
    run_training([*command, "--trust-checkpoint", "--max-update", "1", "--no-save"])
    assert os.path.exists("harm-was-done")


@pytest.mark.parametrize("option", ["--restore-file", "--finetune-from-model"])
def test_a_run_unpickles_nothing_of_what_it_goes_on_from(
    capsys, data, base, tmp_path, monkeypatch, option
):
    monkeypatch.chdir(tmp_path)
    state = torch.load(base)
    state["surprise"] = Harmful()
    torch.save(state, tmp_path / "harmful.pt", pickle_module=pickle)
    command = [data, *TINY, *RUN, option, tmp_path / "harmful.pt"]
    error = refused(capsys, command, tmp_path, "could run code", "mkdir", "harmful.pt")
    assert "weights_only" not in error and not os.path.exists("harm-was-done")


def test_nan_weights(capsys, data, base, tmp_path):
    state = torch.load(base)
    state["model"]["encoder.layers.0.fc1.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    command = [data, *TINY, *RUN, *PRUNE, "--pretrained-model", tmp_path / "nan.pt"]
    refused(capsys, command, tmp_path, "encoder.layers.0.fc1.weight", "NaN")


@pytest.mark.parametrize(
    "option, value",
    [
        ("--encoder-embed-dim", "32"),
        ("--decoder-ffn-embed-dim", "32"),
        ("--encoder-layers", "1"),
        ("--decoder-attention-heads", "4"),
        ("--encoder-normalize-before", None),
        ("--share-all-embeddings", None),
    ],
)
def test_dimensions_that_do_not_match(capsys, prune, tmp_path, option, value):
    if option == "--share-all-embeddings":
        prune = [o for o in prune if o != "--share-decoder-input-output-embed"]
        option, value = "--decoder-learned-pos", None
    command = [*prune, option] + ([value] if value else [])
    refused(capsys, command, tmp_path, option, "has")


def test_all_dimensions_that_do_not_match_are_named(capsys, data, base, tmp_path):
    """One try tells what a model of fairseq's is made of, however many options it takes."""
    command = [data, "--arch", "srp_demo_de_en", *RUN, *PRUNE, "--pretrained-model", base]
    line = refused(capsys, [*command, "--encoder-learned-pos"], tmp_path)
    for part in (
        *("--encoder-embed-dim 16 (not 128)", "--decoder-ffn-embed-dim 24 (not 256)"),
        *("has --", "no --encoder-learned-pos", ", --share-decoder-input-output-embed;"),
    ):
        assert part in line
    assert "--encoder-layers" not in line  # the same


def test_another_kind_of_model(capsys, data, base, tmp_path):
    state = torch.load(base)
    for name in list(state["model"]):
        if name.startswith("encoder"):
            del state["model"][name]
    torch.save(state, tmp_path / "lm.pt")
    command = [data, *TINY, *RUN, *PRUNE, "--pretrained-model", tmp_path / "lm.pt"]
    refused(capsys, command, tmp_path, "lm.pt", "no SRP model")


def test_dictionaries_that_do_not_match(capsys, prune, tmp_path):
    other = tmp_path / "data"
    other.mkdir()
    write_corpus(other)
    with open(other / "dict.en.txt", "a") as stream:
        stream.write("surplus 1\n")
    command = [str(other), *prune[1:]]
    refused(capsys, command, tmp_path, "target dictionary", "40", "41")


@pytest.mark.parametrize("stage", ["0", "1"])
def test_a_rate_that_is_met_already(capsys, data, base, tmp_path, stage):
    """Of the uncut model, so that 0.5 means nothing to one of a fifth."""
    command = [data, *TINY, *RUN, *PRUNE, "--max-epoch", "1", "--pruning-stage", stage]
    save = tmp_path / "small"
    run_training(
        [*command, "--pretrained-model", base, "--compression-rate", "0.4", "--save-dir", save]
    )
    command += ["--pretrained-model", save / "checkpoint_last.pt", "--compression-rate", "0.6"]
    refused(capsys, command, tmp_path, "--compression-rate 0.6", "nothing is left to cut")


def test_stage_2_without_stage_1_warns(data, base, tmp_path, caplog):
    run_training(
        [data, *TINY, *RUN, *PRUNE, "--pretrained-model", base, "--pruning-stage", "2"]
        + ["--compression-rate", "0.8", "--save-dir", tmp_path]
    )
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any("no stage 1 made it" in text for text in warnings)


@pytest.mark.parametrize(
    "option",
    [
        ["--encoder-layerdrop", "1"],
        ["--offload-activations"],
        ["--adaptive-softmax-cutoff", "[10]"],
        ["--quant-noise-pq", "0.1"],
        ["--encoder-layers-to-keep", "0"],
        ["--decoder-layers-to-keep", "0,1"],
        ["--no-cross-attention"],
        ["--encoder-embed-dim", "15"],
        ["--decoder-output-dim", "8"],
    ],
)
def test_unsupported_models(capsys, data, tmp_path, option):
    refused(capsys, [data, *TINY, *RUN, *option], tmp_path, option[0])


def run_script(name, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "src" / name), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "script, arguments, words",
    [
        ("pruning.py", ["DATA"], "--pretrained-model"),
        ("pruning.py", ["DATA", "--pretrained-model", "x.pt"], "--compression-rate"),
        ("finetuning.py", ["DATA"], "--pretrained-model"),
        ("finetuning.py", ["DATA", "--pretrained-model", "x", "--srp"], "pruning.py"),
        ("train.py", ["DATA", "--no-such-option"], "--no-such-option"),
    ],
)
def test_entry_points(data, script, arguments, words):
    arguments = [data if a == "DATA" else a for a in arguments]
    refused_script(script, *arguments, "--arch", "srp", words=words)


@pytest.mark.parametrize(
    "options, words",
    [
        (
            ["--arch", "transformer", "--weighted-layernorm"],
            "needs an --arch of this plug-in: srp,",
        ),
        (["--arch", "srp", "--criterion", "cross_entropy", "--prob-kd=1"], "needs --criterion srp"),
        (["--arch", "srp", "--task", "translation", "--srp"], "needs --task SRPtranslation"),
        (["--arch", "srp", "--no-such-option"], "--help lists all"),
    ],
)
def test_options_of_a_part_that_was_not_chosen(capsys, data, options, words):
    with pytest.raises(UserError) as stop:
        cli.parse(fairseq_options.get_training_parser("SRPtranslation"), [data, *options])
    assert words in str(stop.value)


@pytest.mark.parametrize(
    "options, words",
    [
        ([], "--arch: missing"),
        (["-a", "srp"], "--max-tokens: missing"),
        (["--arch=srp", "--batch-size", "8"], "--optimizer: missing"),
        (["--arch", "srp", "--max-tokens", "99", "--optimizer=srp_adam"], "--lr: missing"),
        (
            ["--arch=srp", "--batch-size=8", "--optimizer=srp_adam", "--lr=1e-3"]
            + ["--lr-scheduler", "polynomial_decay"],
            "--total-num-update None: --lr-scheduler polynomial_decay needs the updates",
        ),
    ],
)
def test_what_no_training_can_do_without(data, options, words):
    refused_script("train.py", data, *options, words=words)


@pytest.mark.parametrize("text, valid", [("20", True), ("x", False), ("0", False), (None, False)])
def test_the_updates_of_a_schedule_come_as_text(data, tmp_path, text, valid):
    command = [data, *TINY, *RUN, "--lr-scheduler", "polynomial_decay"]
    command += ["--save-dir", str(tmp_path)] + (["--total-num-update", text] if text else [])
    args = cli.parse(fairseq_options.get_training_parser("SRPtranslation"), command)
    with nullcontext() if valid else pytest.raises(UserError, match="--total-num-update"):
        training.check_training(args, {"--lr"})


def test_a_schedule_that_falls_from_the_end_of_its_warmup(data, tmp_path):
    command = [data, *TINY, *RUN, "--lr-scheduler", "inverse_sqrt", "--save-dir", str(tmp_path)]
    for updates, valid in (("0", False), ("1", True)):
        parser = fairseq_options.get_training_parser("SRPtranslation")
        args = cli.parse(parser, [*command, "--warmup-updates", updates])
        with nullcontext() if valid else pytest.raises(UserError, match="--warmup-updates 0"):
            training.check_training(args, {"--lr"})


def test_checkpoints_without_the_package_that_would_write_them(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    command = [data, *TINY, *RUN, "--write-checkpoints-asynchronously", "--save-dir", tmp_path]
    parser = fairseq_options.get_training_parser("SRPtranslation")
    args = cli.parse(parser, list(map(str, command)))
    with pytest.raises(UserError, match="asynchronously: needs package iopath"):
        training.check_training(args, {"--lr"})


def test_sentences_that_a_teacher_has_no_positions_for(capsys, data, tmp_path):
    short = ["--encoder-learned-pos", "--decoder-learned-pos", "--max-source-positions", "9"]
    run = [data, *TINY, *RUN, "--max-update", "1", "--skip-invalid-size-inputs-valid-test"]
    run_training([*run, *short, "--save-dir", tmp_path / "teacher"])
    run += ["--prob-kd", "1", "--teacher-model", tmp_path / "teacher" / "checkpoint_last.pt"]
    words = "has 9 learned positions, a training sentence has 13 source tokens"
    refused(capsys, run, tmp_path, "--teacher-model", words)
    run_training([*run, "--max-source-positions", "9", "--save-dir", tmp_path / "short"])


def test_layers_that_would_be_quantized(capsys, data, tmp_path):
    (tmp_path / "pq.yaml").write_text("n_centroids: {}\n")
    command = [data, *TINY, *RUN, "--max-update", "1"]
    command += ["--quantization-config-path", str(tmp_path / "pq.yaml")]
    refused(capsys, command, tmp_path, "--quantization-config-path", "export.py")


def test_a_level_of_the_log_that_is_none(monkeypatch):
    monkeypatch.setenv("LOGLEVEL", "loud")
    refused_script("report.py", "x", words="LOGLEVEL=loud: must be DEBUG, INFO")


def refused_script(script, *arguments, words):
    done = run_script(script, *arguments)
    assert done.returncode == 2
    lines = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1 and words in lines[0]
    assert "Traceback" not in done.stderr + done.stdout
