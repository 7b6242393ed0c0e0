"""What generate.py refuses: one line, exit status 2, before any translation."""
# ruff: noqa: F811  (fixtures are imported)

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from src import export_adapters, export_sparse, flops_counter, generate, train
from src import sparsity_report as report_on_sparsity
from src.commandline import parsing as cli
from src.errors import UserError, ending_program
from tests.support.translation import (
    SEARCH,
    SENTENCES,
    hypotheses,
    quiet_logging,
    random_pairs,
    translate,
    write_data,
)


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


def damaged(checkpoints, folder):
    path = folder / "truncated.pt"
    path.write_bytes(Path(checkpoints.cut).read_bytes()[:-5000])
    return str(path)


def unsafe(checkpoints, folder):
    state = torch.load(checkpoints.cut)
    state["extra_state"]["payload"] = Payload()
    path = folder / "unsafe.pt"
    torch.save(state, path)
    return str(path)


def other_data(folder):
    data = folder / "other"
    data.mkdir()
    write_data(data, random_pairs(3))
    with open(data / "dict.de.txt", "a", encoding="utf-8") as stream:
        stream.write("".join(f"neu{n} 1\n" for n in range(8)))
    return str(data)


def not_finite(checkpoints, folder):
    state = torch.load(checkpoints.cut)
    state["model"]["decoder.layers.0.fc1.weight"][0, 0] = float("nan")
    torch.save(state, folder / "nan.pt")
    return str(folder / "nan.pt")


def source_only(corpus, folder):
    data = folder / "source"
    shutil.copytree(corpus, data, ignore=shutil.ignore_patterns("test.de-en.en.*"))
    return str(data)


def raw_reference(folder):
    (folder / "raw.en").write_text("a dog\n" * SENTENCES)
    return str(folder / "raw.en")


SOURCE_ONLY = ["data={source_only}", "--path", "{cut}", "-s", "de", "-t", "en"]
REFUSALS = {
    "no path": ([], ["--path: missing"]),
    "missing checkpoint": (["--path", "no.pt"], ["--path no.pt", "no such file"]),
    "folder as checkpoint": (["--path", "{corpus}"], ["--path", "no such file"]),
    "truncated": (["--path", "{damaged}"], ["--path", "truncated"]),
    "unsafe pickle": (["--path", "{unsafe}"], ["--path", "--trust-checkpoint"]),
    "no data": (["data=no-folder", "--path", "{cut}"], ["no-folder", "no such folder"]),
    "empty data": (["data={folder}", "--path", "{cut}"], ["{folder}", "--source-lang"]),
    "no subset": (["--path", "{cut}", "--gen-subset", "test7"], ["test7"]),
    "two subsets": (["--path", "{cut}", "--gen-subset", "test,valid"], ["one set after the"]),
    "dictionary": (["data={other}", "--path", "{cut}"], ["source dictionary", "21", "29"]),
    "no reference": (["--path", "{cut}", "--reference", "no.en"], ["--reference no.en"]),
    "short reference": (
        ["--path", "{cut}", "--reference", "{corpus}/dict.en.txt"],
        ["--reference", "17 lines", "11 sentences"],
    ),
    "report's folder": (
        ["--path", "{cut}", "--report", "no-folder/report.json"],
        ["--report no-folder/report.json", "no folder"],
    ),
    "report of two": (["--path", "{cut}:{cut}", "--report", "{folder}/r"], ["--report"]),
    "report is the checkpoint": (
        ["--path", "{cut}", "--report", "{cut}"],
        ["--report {cut}", "is --path"],
    ),
    "report is the reference": (
        ["--path", "{cut}", "--reference", "{raw}", "--report", "{raw}"],
        ["--report {raw}", "is --reference"],
    ),
    "report below a file": (
        ["--path", "{cut}", "--report", "{raw}/report.json"],
        ["--report {raw}/report.json", "no folder"],
    ),
    "results in a file": (
        ["--path", "{cut}", "--results-path", "{raw}/results"],
        ["--results-path {raw}/results", "{raw} is no folder"],
    ),
    "results in a folder that can't be made": (
        ["--path", "{cut}", "--results-path", "{folder}/" + "x" * 300],
        ["--results-path {folder}/xxx", "can't be made"],
    ),
    "unknown arch": (["--path", "{cut}", "--arch", "srp_new"], ["srp_new", "srp_demo_de_en"]),
    "other arch": (
        ["--path", "{cut}", "--arch", "srp_multi30k_de_en"],
        ["--arch srp_multi30k_de_en", "--encoder-embed-dim 256", "128"],
    ),
    "other dimension": (
        ["--path", "{cut}", "--arch", "srp_demo_de_en", "--decoder-layers", "3"],
        ["--decoder-layers 3", "has 2"],
    ),
    "other norm": (
        ["--path", "{cut}", "--arch", "srp_demo_de_en", "--encoder-normalize-before"],
        ["--encoder-normalize-before True", "has False"],
    ),
    "beam": (["--path", "{cut}", "--beam", "0"], ["--beam 0", "at least 1"]),
    "length": (["--path", "{cut}", "--flops-source-length", "0"], ["at least 1"]),
    "length without report": (
        ["--path", "{cut}", "--flops-target-length", "9"],
        ["--flops-target-length 9: needs --report"],
    ),
    "max tokens": (["--path", "{cut}", "--max-tokens", "5"], ["--max-tokens 5", "raise it"]),
    "shards": (
        ["--path", "{cut}", "--distributed-world-size", "2"],
        ["--distributed-world-size 2"],
    ),
    "unknown option": (["--path", "{cut}", "--beams", "2"], ["--beams"]),
    "nan": (["--path", "{nan}"], ["--path {nan}", "decoder.layers.0.fc1.weight", "NaN"]),
    "tokens of no target": (
        [*SOURCE_ONLY, "--tokenized-bleu", "--reference", "{raw}"],
        ["--tokenized-bleu", "no target side"],
    ),
    "prefix of no target": (
        [*SOURCE_ONLY, "--prefix-size", "1"],
        ["--prefix-size", "no target side"],
    ),
    "score of no target": (
        [*SOURCE_ONLY, "--score-reference"],
        ["--score-reference", "no target side"],
    ),
    "no language model": (["--path", "{cut}", "--lm-path", "no.pt"], ["--lm-path no.pt"]),
    "translation as language model": (
        ["--path", "{cut}", "--lm-path", "{cut}"],
        ["--lm-path {cut}", "is a translation model"],
    ),
    "tokenizer": (["--path", "{cut}", "--tokenizer", "moses"], ["--tokenizer moses"]),
    "bpe without codes": (["--path", "{cut}", "--bpe", "subword_nmt"], ["subword_nmt: can't"]),
}
# Options of the search that are refused before anything is read.
for _options, _message in {
    "--nbest 0": "--nbest 0: must be at least 1",
    "--truncate-source --max-source-positions 0": "--max-source-positions 0: must be at",
    "--num-workers -1": "--num-workers -1: must be at least 0",
    "--batch-size 0": "--batch-size 0: must be at least 1",
    "--required-batch-size-multiple 0": "--required-batch-size-multiple 0: must be",
    "--temperature 0": "--temperature 0: must be above 0",
    "--max-len-a 0 --max-len-b 0": "--max-len-b 0: leaves no room",
    "--max-len-a 0 --min-len 300": "leaves no room for the 300 tokens of --min-len",
    "--lm-weight 0.3": "--lm-weight 0.3: needs --lm-path",
    "--sampling-topk 3": "--sampling-topk 3: needs --sampling",
    "--sampling-topp 0.5": "--sampling-topp 0.5: needs --sampling",
    "--sampling --nbest 2 --match-source-len": "--sampling --match-source-len: exclude",
    "--diverse-beam-groups 3": "--diverse-beam-groups 3: must divide --beam",
    "--beam 4 --diverse-beam-groups 2 --fairseq-search": "leave --fairseq-search out",
    "--constraints": "--constraints: binarized data hold none",
    "--dataset-impl raw --replace-unk": "--replace-unk: fairseq's own code fails",
    "--post-process bpe": "--post-process bpe: is unknown; give subword_nmt",
    "--print-step": "--print-step: is for models that refine",
    "--retain-iter-history": "--retain-iter-history: is for models that refine",
    "--iter-decode-max-iter 3": "--iter-decode-max-iter 3: is for models that refine",
    "--decoding-format vote": "--decoding-format vote: is for models that refine",
    "--eos-token a": "--eos-token a: is for models of speech",
    "--lenpen-mt 2": "--lenpen-mt 2.0: is for models of speech",
    "--diverse-beam-strength 0.3": "--diverse-beam-strength 0.3: needs --diverse-beam-groups",
    "--retain-dropout-modules A": "--retain-dropout-modules: needs --retain-dropout",
    "--score-reference --report {folder}/r.json": "--report: is about translations",
    "--num-batch-buckets 2": "--num-batch-buckets 2: fairseq's code for it calls what numpy",
    "--log-file {folder}/none/log": "--log-file {folder}/none/log: there is no folder",
    "--seed -1": "--seed -1: must be from 0 to 4294967295",
    "--lenpen nan": "--lenpen nan: must be a finite number",
    "--max-len-a inf": "--max-len-a inf: must be a finite number",
    "--num-shards 2 --shard-id 1": "--num-shards 2: BLEU is of the whole test set",
    "--checkpoint-suffix=-shard0": "--checkpoint-suffix: --path names whole checkpoints",
    "--bf16": "--bf16: is for training",
    "--sampling --nbest 2 --sampling-topk 22": "--sampling-topk 22: the target dictionary has 21",
    "--scoring bert_score": "--scoring bert_score: can't be set up",
    "--bpe characters": "--bpe characters: is not among those that fairseq-generate can set up",
    "--model-overrides {{'encoder_embed_dim':64}}": "{cut}: its weights don't fit its options",
    "--model-overrides {{'max_target_position':9}}": "--model-overrides max_target_position: "
    "{cut} has no such option; similar names are max_target_positions, max_source_positions",
    "--model-overrides {{'encoder-embed-dim':64}}": "similar names are encoder_embed_dim, ",
    "--model-overrides {{'zzzzz':64}}": "--model-overrides zzzzz: {cut} has no such option",
    "--model-overrides {{'model':{{'dropout':0}}}}": "--model-overrides model: {cut} has no",
    "--model-overrides {{'task':{{'langs':0}}}}": "--model-overrides langs: {cut} has no such",
    "--model-overrides {{64:64}}": "--model-overrides 64: {cut} has no such option",
    "--model-overrides {{": "--model-overrides {{: must be a dictionary",
    "--model-overrides 3": "--model-overrides 3: must be a dictionary",
    "--min-len 1024": "--min-len 1024: the model can write 1023 tokens",
}.items():
    REFUSALS[_options] = (["--path", "{cut}", *_options.split()], [_message])


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_in_one_line_before_any_work(
    case, corpus, checkpoints, tmp_path, capsys, monkeypatch
):
    def no_work(*args, **kwargs):
        raise AssertionError("translation has begun")

    monkeypatch.setattr(generate, "translate", no_work)
    given, expected = REFUSALS[case]
    places = {"corpus": corpus, "cut": checkpoints.cut, "folder": str(tmp_path)}
    for name, make in (
        ("damaged", lambda: damaged(checkpoints, tmp_path)),
        ("unsafe", lambda: unsafe(checkpoints, tmp_path)),
        ("other", lambda: other_data(tmp_path)),
        ("nan", lambda: not_finite(checkpoints, tmp_path)),
        ("source_only", lambda: source_only(corpus, tmp_path)),
        ("raw", lambda: raw_reference(tmp_path)),
    ):
        if any("{" + name + "}" in text for text in given):
            places[name] = make()
    given = [argument.format(**places) for argument in given]
    data = [a[5:] for a in given if a.startswith("data=")] or [corpus]
    arguments = data + SEARCH + [a for a in given if not a.startswith("data=")]
    with pytest.raises(SystemExit) as stopped, ending_program(), quiet_logging():
        generate.main(arguments)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err.strip().split("\n")
    messages = [line for line in errors if line.startswith("error: ")]
    assert len(messages) == 1 and errors[-1] == messages[0]
    for part in expected:
        assert part.format(**places) in messages[0]


def test_a_trusted_pickle_is_translated_with(corpus, checkpoints, tmp_path):
    output = translate(corpus, unsafe(checkpoints, tmp_path), "--trust-checkpoint")
    assert hypotheses(output) == hypotheses(translate(corpus, checkpoints.cut))


def test_the_other_direction(corpus, checkpoints):
    """Of the same data; with a joined dictionary the model would fit."""
    words = "translates de to en, the data is read as en to de; give --source-lang de"
    with pytest.raises(UserError, match=words):
        generate.main([corpus, "--path", checkpoints.dense, "-s", "en", "-t", "de", "--cpu"])


@pytest.mark.parametrize("tool", [generate.main, train.main])
def test_a_user_dir_that_is_not_there(tool, monkeypatch, capsys):
    """fairseq imports it from the process's own command line before anything is parsed."""
    command = ["tool", "data", "--arch", "srp", "--user-dir", "/nosuch"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped, ending_program(), quiet_logging():
        tool()
    assert stopped.value.code == 2
    assert "error: --user-dir: no such folder (/nosuch)" in capsys.readouterr().err


def cut_short(path, size):
    path.write_bytes(path.read_bytes()[:size])


def no_sentences(folder):
    write_data(folder, [])


def longer_source(folder):
    other = folder / "longer"
    other.mkdir()
    write_data(other, random_pairs(1, SENTENCES + 2))
    for kind in ("idx", "bin"):
        shutil.copy(other / f"test.de-en.de.{kind}", folder)


DAMAGES = {
    "no sentences": (no_sentences, "test: has no sentences"),
    "longer source": (longer_source, "test: has 13 source and 11 target sentences"),
    "short index": (lambda f: cut_short(f / "test.de-en.en.idx", -7), "idx is truncated"),
    "headless index": (lambda f: cut_short(f / "test.de-en.de.idx", 12), "is truncated"),
    "empty index": (lambda f: cut_short(f / "test.de-en.de.idx", 0), "idx is truncated"),
    "short data": (lambda f: cut_short(f / "test.de-en.de.bin", -3), "de.bin has .* bytes"),
    "empty data": (lambda f: cut_short(f / "test.de-en.en.bin", 0), "en.bin has 0 bytes"),
    "other index": (
        lambda f: (f / "test.de-en.de.idx").write_bytes(b"x" * 99),
        "idx is damaged, or no index of fairseq's",
    ),
    "latin-1": (
        lambda f: (f / "dict.de.txt").write_bytes(b"M\xe4nner 5\n"),
        r"dict.de.txt: can't be read as a dictionary.*encoding",
    ),
    "dictionary": (lambda f: (f / "dict.en.txt").write_text("a\n"), "dict.en.txt: can't be read"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_data(case, corpus, checkpoints, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    damage, message = DAMAGES[case]
    damage(data)
    with pytest.raises(UserError, match=message) as error:
        translate(str(data), checkpoints.cut)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [["-s", "en"], ["-t", "de"], ["--source-lang", "fr"]])
def test_one_language_that_is_not_the_datas(corpus, checkpoints, given):
    side = "target" if given[0] == "-t" else "source"
    with pytest.raises(UserError, match=f"--{side}-lang {given[1]}: alone .* say de-en; give"):
        translate(corpus, checkpoints.cut, *given)
    assert translate(corpus, checkpoints.cut, "-s", "de") == translate(
        corpus, checkpoints.cut, "-s", "de", "-t", "en"
    )


def test_data_of_several_pairs(corpus, checkpoints, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    for kind in ("idx", "bin"):
        shutil.copy(data / f"valid.de-en.de.{kind}", data / f"valid.en-de.de.{kind}")
    with pytest.raises(UserError, match="several pairs of languages, de-en, en-de; give"):
        translate(str(data), checkpoints.cut)
    translate(str(data), checkpoints.cut, "-s", "de", "-t", "en")


def test_places_that_cannot_be_written_to(corpus, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for option in ("--report", "--results-path"):
        with pytest.raises(UserError, match=f"{option} .* can't be written to"):
            translate(corpus, checkpoints.cut, option, str(tmp_path / "new"))


def test_scores_that_are_no_numbers(corpus, checkpoints, tmp_path):
    """Finite weights, so large that numbers overflow."""
    state = torch.load(checkpoints.cut)
    state["model"]["decoder.layers.0.fc1.weight"] *= 1e30
    state["model"]["decoder.layers.0.fc2.weight"] *= 1e30
    torch.save(state, tmp_path / "large.pt")
    for beam in ("1", "4"):
        with pytest.raises(UserError, match="scores are NaN"):
            translate(corpus, str(tmp_path / "large.pt"), "--beam", beam)


def test_a_closed_pipe_ends_it_quietly(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(SystemExit) as stopped, ending_program(), cli.ending_quietly("nothing"):
            print("a line")
    assert stopped.value.code == 141


@pytest.mark.parametrize(
    "tool", [export_adapters, export_sparse, flops_counter, report_on_sparsity]
)
def test_an_interruption_ends_other_tools_quietly(tool, tmp_path, monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    reader = "load_model" if tool is flops_counter else "load_checkpoint"
    monkeypatch.setattr(tool, reader, stop)
    command = ["--path", "model.pt", "--output", str(tmp_path / "out")]
    command = ["model.pt"] if tool is flops_counter else command
    with pytest.raises(SystemExit) as stopped, ending_program(), quiet_logging():
        tool.main(command)
    assert stopped.value.code == 130 and "interrupted" in capsys.readouterr().err
