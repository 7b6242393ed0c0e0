"""compress.py: one command from a trained model to a compressed one."""

import gzip
import json
import os
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import src
from src import distill_data
from src.checkpoints.rebuild import load_model
from src.commandline import parsing as cli
from src.connectivity.budget import ParameterCount
from src.deployment import loading
from src.errors import UserError
from src.pipeline import command
from src.pipeline.base import CODES, PIECES, WORDS, splitting
from src.pipeline.goal import Goal, Plan
from src.pipeline.reading import read_base
from src.pipeline.recipe import Recipe, schedule
from src.pipeline.runner import Pipeline
from tests.support.training import ROOT, make_dictionary
from tests.support.translation import run_tool

RAW = ["--train", "x", "--valid", "y", "--test", "z"]


def arguments(data, path, output, *more):
    return [data, "--path", path, "--output", str(output), *more]


def compress(*args):
    return command.compress(command.parse(arguments(*args)))


@pytest.fixture
def in_process(monkeypatch):
    """Steps run in this process: a program's start takes longer than a tiny step."""
    started = []

    def execute(self, step):
        started.append(step.name)
        name = Path(step.command[0]).stem
        said = run_tool(import_module(f"src.{name}").main, list(step.command[1:]))
        if step.output:
            Path(self.path(step, step.output)).write_text(said)

    monkeypatch.setattr(Pipeline, "_execute", execute)
    return started


def test_the_whole_way(data, base, tmp_path, in_process, capsys, monkeypatch):
    """One run; what is done is not done again."""
    out = tmp_path / "out"
    options = ["--compression-rate", "0.4", "--quick", "--", "--cpu"]
    import_module("src.compress")  # its module takes the place of the function, and is one
    headline = src.compress(data, base, out, ["--cpu"], compression_rate=0.4, quick=True)
    said = capsys.readouterr().out
    assert in_process == [
        *("1-plan", "2-translate", "3-prune-embeddings", "4-prune-rest", "5-finetune"),
        *("6-model", "7-export", "8-test-base", "9-test", "10-speed", "11-report"),
    ]
    assert "BLEU" in said and "times smaller" in said
    count = ParameterCount(load_model(str(out / "6-model/model.pt")))
    assert count.share == pytest.approx(0.4, abs=0.01)
    assert headline.parameters == (count.uncut, count(count.current))
    assert headline.bleu[1] == pytest.approx(
        json.loads((out / "9-test/report.json").read_text())["bleu"], abs=1e-3
    )
    assert 0 < headline.scores["BLEU"][2] <= 1  # p
    page = (out / "11-report/report.html").read_text()
    assert "5-finetune" in page  # a curve

    sentences = ["de1 de2 de3", "", "de4"]
    texts = src.load(str(out)).translate(sentences)
    assert len(texts) == 3 and texts[1] == ""
    monkeypatch.setattr("src.deployment.loading.find_spec", lambda name: None)
    assert [bool(t) for t in src.load(str(out)).translate(sentences)] == [bool(t) for t in texts]

    in_process.clear()
    compress(data, base, out, *options)
    assert not in_process
    assert capsys.readouterr().out.splitlines()[-3:] == said.splitlines()[-3:]

    compress(data, base, out, "--quantization", "float32", *options)
    assert in_process == ["1-plan", "7-export", "9-test", "10-speed", "11-report"]

    other = str(shutil.copy(base, tmp_path / "other.pt"))
    state = torch.load(other)
    state["model"]["encoder.embed_tokens.weight"] += 1
    torch.save(state, other)
    with pytest.raises(UserError, match="holds the compression of another model"):
        compress(data, other, out, "--compression-rate", "0.4")


def test_raw_text_is_split_first(data, base, tmp_path, capsys, monkeypatch):
    """compress.py --train, --valid, --test, with the dictionaries of the model."""
    dictionaries = tmp_path / "dictionaries"
    dictionaries.mkdir()
    merges = "".join(f"{a} {b}\n{a}{b} {n}</w>\n" for a, b in ("de", "en") for n in range(1, 9))
    (tmp_path / "code").write_text(f"#version: 0.2\n{merges}")
    for language in ("de", "en"):
        shutil.copy(f"{data}/dict.{language}.txt", dictionaries)
        for split, lines in (("train", 70), ("valid", 9), ("test", 8)):
            opened, end = (gzip.open, ".gz") if (split, language) == ("train", "de") else (open, "")
            with opened(tmp_path / f"{split}.{language}{end}", "wt") as stream:
                stream.writelines(f"{language}{n % 7 + 1}  {language}3\n" for n in range(lines))
    out = tmp_path / "out"
    raw = [word for s in ("train", "valid", "test") for word in (f"--{s}", str(tmp_path / s))]
    options = [*raw, "--bpe-codes", str(tmp_path / "code"), "--compression-rate", "0.4"]
    words = arguments(str(dictionaries), base, out, *options)
    monkeypatch.setattr(command, "check_base", lambda args, base: None)  # whole words here
    real = Pipeline._execute

    def execute(self, step):
        if step.name == "0-data":
            real(self, step)
        else:
            Path(self.path(step, "plan.json")).write_text('{"rows": [], "conditions": {}}')

    monkeypatch.setattr(Pipeline, "_execute", execute)
    args = command.parse(words)
    compression, pipeline = command.Compression(args), Pipeline(str(out))
    command.mark_ours(args)
    steps = compression.steps()
    pipeline.do(next(steps))
    pipeline.do(next(steps))
    train = compression.base.train
    assert len(train) == 70 and compression.base.data == f"{out}/0-data/data"
    assert train.src_dict.string(train[0]["source"]) == "de1 de3"
    capsys.readouterr()

    assert compress(*words[:1], base, out, *options, "--dry-run") is None
    said = capsys.readouterr().out
    assert "0-data: done before" in said and "1-plan: done before" in said
    assert f"--data-bin {out}/0-data/data -- --srcdict {dictionaries}/dict.de.txt" in said
    assert f"2-translate: python src/distill_data.py {out}/0-data/data" in said
    assert f"--reference {out}/0-data/data/raw.test.en" in said

    os.remove(tmp_path / "valid.en")
    with pytest.raises(UserError, match="--valid .*there is no .*valid.en .or .*valid.en.gz."):
        compress(*words[:1], base, out, *options)


def test_a_dry_run_writes_nothing(data, base, tmp_path, capsys, in_process):
    out = tmp_path / "out"
    assert compress(data, base, out, "--compression-rate", "0.1", "--dry-run") is None
    said = capsys.readouterr().out
    assert "3-prune: python src/pruning.py" in said and "--pruning-iter 4" in said
    assert "--max-epoch 10" in said.partition("4-finetune")[2]  # each sentence twice: 20 of 30
    assert not out.exists()


@pytest.mark.parametrize(
    "options, words",
    [
        ([], "no target; give one of --speed-up, --compression-rate"),
        (["--compression-rate", "1.5"], r"--compression-rate 1.5: must be in \(0, 1\)"),
        (["--compression-rate", "0.001"], "at least 0.[0-9]+ .* parameters. stay"),
        (["--compression-rate", "0.4", "--epochs", "1"], "--epochs 1: must be at least 2"),
        (["--keep-decoder-layers", "0"], "--keep-decoder-layers 0: must be at least 1"),
        (["--megabytes", "2", "--max-types", "9"], "--max-types 9: --megabytes is measured before"),
        (["--speed-up", "2", "--quantization", "int16"], "--quantization int16: speed and size"),
        (["--compression-rate", "0.4", "--epochs", "9", "--quick"], "has no part in --quick"),
        (["--compression-rate", "0.4", "--gen-subset", "test1"], "no set test1; name another"),
        (["--compression-rate", "0.4", "--reference", "x"], "--reference x: no such file"),
        (["--compression-rate", "0.4", "--bpe-codes", "pyproject.toml"], "no types of subword_nmt"),
        (["--compression-rate", "0.4", "--max-types", "9"], "whole words, which can't be split"),
        (["--speed-up", "2", "--keep-decoder-layers", "1"], "--speed-up chooses layers by itself"),
        (["--speed-up", "0.5"], "--speed-up 0.5: must be above 1"),
        (["--speed-up", "2", "--megabytes", "1"], "--speed-up --megabytes: exclude each other"),
        (["--compression-rate", "0.4", "--train", "x"], "raw text needs --valid and --test too"),
        (["--compression-rate", "0.4", *RAW], "--train x: add --bpe-codes or --sentencepiece"),
        (["--compression-rate", "0.4", *RAW, "--bpe-codes", "setup.py"], "there is no x.de"),
        (["--compression-rate", "0.4", "--", "--max-tokens", "x"], "--max-tokens x: must be a"),
        (["--compression-rate", "0.4", "--", "--no-such-thing"], "--no-such-thing"),
    ],
)
def test_what_is_refused(data, base, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        compress(data, base, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else(data, base, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="holds something else than a compression"):
        compress(data, base, tmp_path, "--compression-rate", "0.4")


def test_another_kind_of_model(data, base, tmp_path):
    state = torch.load(base)
    del state["model"]["encoder.embed_tokens.weight"]
    other = str(tmp_path / "other.pt")
    torch.save(state, other)
    with pytest.raises(UserError, match="is no SRP model or fairseq Transformer with encoder and"):
        compress(data, other, tmp_path / "out", "--compression-rate", "0.4")


def test_too_little_disk(data, base, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="GB are needed there and 0.0 GB are free"):
        compress(data, base, tmp_path / "out", "--compression-rate", "0.4")


@pytest.mark.parametrize("rate", [0.5, 0.2, 0.1])
def test_the_recipe_follows_the_size(rate):
    parts = schedule(Goal(rate), dropout=0.3, epochs=10)
    assert [p.name for p in parts] == (
        ["prune"] if rate < 0.15 else ["prune-embeddings", "prune-rest"]
    )
    assert sum(p.epochs for p in parts) == 10
    dropouts = {0.5: [0.3, 0.3], 0.2: [0.2, 0.1], 0.1: [0.2]}[rate]
    assert [p.dropout for p in parts] == pytest.approx(dropouts)


def test_layers_go_little_by_little():
    (part,) = schedule(Goal(0.5, decoder_layers=1), dropout=0.3, epochs=10)
    assert {"--keep-decoder-layers", "--pruning-iter"} <= set(part.options)


@pytest.fixture
def plan(tmp_path):
    """What plan.py wrote of a model of 2+2 layers."""
    rows = [
        {
            **{"engine": engine, "encoder_layers": 2, "decoder_layers": 2, "rate": rate},
            **{"share": rate, "export_bytes": size * 10**6, "checkpoint_bytes": 4 * size * 10**6},
            **{"speed_up": 1 / rate, "times_fairseq": 3 / rate},
        }
        for engine, more in (("ctranslate2-int8", 0), ("ctranslate2-int8-vmap", 1))
        for rate, size in ((1.0, 9 + more), (0.5, 5 + more), (0.1, 1 + more))
    ]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"rows": rows, "conditions": {}}))
    return path


def test_a_size_lies_between_those_that_were_measured(plan, base):
    measured = Plan(str(plan), "ctranslate2-int8")
    model = SimpleNamespace(depths=(2, 2), share=1.0)

    def goal(megabytes):
        return measured.goal(SimpleNamespace(megabytes=megabytes), model)

    assert goal(4.0) == Goal(0.3)  # half way from 2 to 6 MB, with the map
    assert goal(6.0) == Goal(0.5)
    words = r"out of reach; .* has 10.00 MB as it is, and 2.00 with 10.0% of the uncut"
    for megabytes in (1.9, 10.0):
        with pytest.raises(UserError, match=words):
            goal(megabytes)
    model.share = 0.5  # it was cut before: the uncut one is out of reach
    with pytest.raises(UserError, match="has 6.00 MB as it is"):
        goal(6.5)
    assert len(measured.expected(Goal(0.5), model)) == 2
    assert "6.00 MB, 2.00 times as fast as the uncut" in measured.expected(Goal(0.5), model)[1]


def test_the_choice_of_a_speed(plan):
    content = json.loads(plan.read_text())
    row = {"encoder_layers": 2, "decoder_layers": 1, "rate": 0.35}
    plan.write_text(json.dumps({**content, "chosen": row}))
    found = Plan(str(plan), "pytorch").goal(SimpleNamespace(), SimpleNamespace(depths=(2, 2)))
    assert found == Goal(0.35, decoder_layers=1)


def test_trimmed_data_are_what_trainings_read(data, base, tmp_path):
    words = arguments(data, base, tmp_path, "--compression-rate", "0.4", "--max-types", "9")
    args = command.parse(words)
    steps = {s.name: s for s in Recipe(args, read_base(data, base)).build(Goal(0.4))}
    trimmed = [f"{tmp_path}/3-trim/{name}" for name in ("data", "model.pt")]
    assert steps["3-trim"].after == ("2-translate",)
    for name in ("4-prune-embeddings", "6-finetune", "8-export", "10-test"):
        assert steps[name].command[1] == trimmed[0] and "3-trim" in steps[name].after
    words = steps["4-prune-embeddings"].command
    assert words[words.index("--pretrained-model") + 1] == trimmed[1]
    assert words[words.index("--max-epoch") + 1] == "2"  # each sentence twice: 5 of 10 in all
    assert steps["9-test-base"].command[1] == data


def test_further_text_is_translated_too(data, base, tmp_path):
    (tmp_path / "more").write_text("de1 de2\n" * 30)
    with gzip.open(tmp_path / "more.gz", "wt") as stream:
        stream.write("de3\n" * 30)
    files = [str(tmp_path / "more"), str(tmp_path / "more.gz")]
    updates = []
    for more in ([], ["--source-text", *files]):
        words = arguments(data, base, tmp_path, "--compression-rate", "0.4", *more)
        found = Recipe(command.parse(words), read_base(data, base)).build(Goal(0.4))
        steps = {step.name: step for step in found}
        words = steps["5-finetune"].command
        updates.append(int(words[words.index("--total-num-update") + 1]))
    assert updates[1] == updates[0] * 3 / 2  # 60 pairs twice, and 60 lines more
    translation = steps["2-translate"]
    assert set(files) < set(translation.files)
    parsed = cli.parse(distill_data.get_parser(), list(translation.command[1:]))
    assert parsed.source_text == files


def test_an_ensemble_may_teach(data, base, tmp_path):
    other = str(shutil.copy(base, tmp_path / "other.pt"))
    words = ["--compression-rate", "0.4", "--teacher", f"{base}:{other}"]
    args = command.parse(arguments(data, base, tmp_path / "out", *words))
    translation = Recipe(args, read_base(data, base, teachers=[base, other])).build(Goal(0.4))[1]
    parsed = cli.parse(distill_data.get_parser(), list(translation.command[1:]))
    assert parsed.path == f"{base}:{other}" and parsed.engine == "pytorch"
    assert {base, other} <= set(translation.files)
    with pytest.raises(UserError, match="--teacher no.pt: no such file"):
        compress(data, base, tmp_path / "out", *words[:3], f"{base}:no.pt")


def test_how_text_was_split():
    dictionary = make_dictionary("de")
    assert splitting(dictionary) == WORDS
    for mark, kind in (("a@@", CODES), ("\u2581a", PIECES)):
        marked = make_dictionary("de")
        marked.add_symbol(mark)
        assert splitting(dictionary, marked) == kind


def test_the_documented_example(monkeypatch):
    """docs/compress.md: its Python runs, and asks for what it says."""
    text = (ROOT / "docs/compress.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    called = []
    monkeypatch.setattr(
        command, "compress", lambda args: called.append(args) or SimpleNamespace(bleu=1, faster=2)
    )
    monkeypatch.setattr(loading, "load", lambda folder, threads: FakeModel(folder))
    exec(example.replace("import srp ", "import src as srp "), {})
    (args,) = called
    command.check(args)
    assert (args.speed_up, args.training) == (3.0, ["--cpu-bf16"])


class FakeModel:
    def __init__(self, folder):
        assert folder == "checkpoints/multi30k/compressed"

    def translate(self, sentences):
        return [line.upper() for line in sentences]


def test_the_documented_commands():
    text = (ROOT / "docs/compress.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^python src/compress.py (.*)$", text, re.M)
    assert len(commands) == 3
    for line in commands:
        command.parse(shlex.split(line))


def test_sentences_that_fill_no_batch_are_left_out_as_in_trainings(data, base):
    found = read_base(data, base)
    sizes = found.train.sizes.max(1)
    limit = int(sizes.max()) - 1
    kept = {int(i) for batch in found.batches(limit, None) for i in batch}
    short = {i for i, size in enumerate(sizes) if size <= limit}
    # fairseq leaves an incomplete last batch out
    assert kept <= short and len(short) - 8 < len(kept) < len(sizes) - 1
