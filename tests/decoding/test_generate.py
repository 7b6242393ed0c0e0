"""Translation: generate.py against fairseq's own tools, BLEU, report."""
# ruff: noqa: F811  (fixtures are imported)

import argparse
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from fairseq_cli import generate as fairseq_generate
from fairseq_cli import interactive as fairseq_interactive
from sacrebleu import corpus_bleu, corpus_chrf
from sacremoses import MosesDetokenizer

from src.checkpoints.rebuild import load_model
from src.errors import ending_program
from src.evaluation import bleu
from src.evaluation import measures as evaluation
from src.evaluation.flops import count_flops
from tests.support.training import DictionaryTask
from tests.support.translation import (
    ARCH,
    EMPTY,
    SEARCH,
    SENTENCES,
    USER_DIR,
    detokenized,
    hypotheses,
    make_checkpoints,
    make_trainer,
    random_pairs,
    run_tool,
    save,
    score_of,
    sentence_lines,
    stock_loss,
    translate,
    without_bpe,
    write_data,
)


@pytest.fixture(scope="module")
def translated(corpus, checkpoints):
    """What generate.py prints for the cut model."""
    return translate(corpus, checkpoints.cut)


# -- the same hypotheses everywhere ----------------------------------------------------------


def stock_generate(corpus, path):
    arguments = [corpus, "--path", path, *SEARCH, "--remove-bpe", "--user-dir", USER_DIR]
    arguments += ["--required-batch-size-multiple", "1", "--task", "SRPtranslation"]
    return run_tool(fairseq_generate.cli_main, arguments)


@pytest.mark.parametrize("kind", ["dense", "gated", "cut"])
def test_lines_are_those_of_stock_fairseq_generate(corpus, checkpoints, kind):
    path = getattr(checkpoints, kind)
    ours, stock = translate(corpus, path), stock_generate(corpus, path)
    assert sentence_lines(ours) == sentence_lines(stock)
    assert len(sentence_lines(ours, "H")) == SENTENCES
    line = re.compile("^Generate test with beam=2: .*$", re.MULTILINE)
    assert line.findall(ours) == line.findall(stock)


def test_cut_model_translates_as_the_gated_one(corpus, checkpoints):
    gated, cut = (stock_generate(corpus, path) for path in (checkpoints.gated, checkpoints.cut))
    assert hypotheses(gated) == hypotheses(cut)
    assert len(set(hypotheses(cut).values())) > SENTENCES / 2
    assert hypotheses(cut) != hypotheses(stock_generate(corpus, checkpoints.dense))


@pytest.mark.parametrize("search", [[], ["--diverse-beam-groups", "2"]], ids=["beam", "diverse"])
def test_stock_interactive_translates_the_same(corpus, checkpoints, tmp_path, search):
    """Its samples carry no numbers of sentences."""
    lines = [source for source, _ in random_pairs(1)]
    text = tmp_path / "input.de"
    text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    arguments = [corpus, "--path", checkpoints.cut, *SEARCH, "--remove-bpe"]
    arguments += ["--input", str(text), "--buffer-size", "20"]
    arguments += ["--user-dir", USER_DIR, "--task", "SRPtranslation"]
    output = run_tool(fairseq_interactive.cli_main, [*arguments, *search])
    assert hypotheses(output) == hypotheses(translate(corpus, checkpoints.cut, *search))


def test_stock_validate_gives_gated_and_cut_the_same_loss(corpus, checkpoints):
    gated, cut = stock_loss(corpus, checkpoints.gated), stock_loss(corpus, checkpoints.cut)
    assert gated == pytest.approx(cut, abs=1e-5)
    assert stock_loss(corpus, checkpoints.dense) != pytest.approx(cut, abs=1e-3)


def test_plain_transformer_checkpoints_too(corpus, tmp_path):
    options = ["--arch", "transformer", "--encoder-layers", "1", "--decoder-layers", "1"]
    for side in ("encoder", "decoder"):
        options += [f"--{side}-embed-dim", "16", f"--{side}-attention-heads", "2"]
        options += [f"--{side}-ffn-embed-dim", "16"]
    path = save(make_trainer(corpus, options), tmp_path / "plain.pt")
    report = tmp_path / "report.json"
    ours = translate(corpus, path, "--report", str(report))
    assert sentence_lines(ours) == sentence_lines(stock_generate(corpus, path))
    facts = json.loads(report.read_text())
    assert facts["widths"] == {}
    assert facts["parameters"] == facts["uncut_parameters"]


# -- BLEU ------------------------------------------------------------------------------------


def test_an_empty_source_line_keeps_the_numbers(translated):
    sources = {}
    for line in sentence_lines(translated, "S"):
        number, text = line[2:].split("\t", 1)
        sources[int(number)] = text
    plain = [without_bpe(source) for source, _ in random_pairs(1)]
    assert [sources[n] for n in range(SENTENCES)] == plain
    assert sources[EMPTY] == ""
    assert sorted(hypotheses(translated)) == list(range(SENTENCES))


def test_bleu_is_sacrebleus_of_detokenized_text(translated):
    moses = MosesDetokenizer("en")
    references = [moses.detokenize(without_bpe(target).split()) for _, target in random_pairs(1)]
    expected = corpus_bleu(detokenized(translated), [references])
    assert f"= {expected.score:.2f} " in translated.split("BLEU|")[1]
    assert "BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in translated
    chrf = corpus_chrf(detokenized(translated), [references])
    line = re.search(r"^chrF2\|nrefs:1\|case:mixed\|\S+ = ([\d.]+)$", translated, re.MULTILINE)
    assert float(line[1]) == pytest.approx(chrf.score, abs=0.05)


def test_references_are_matched_by_number_not_by_order(corpus, checkpoints, translated, tmp_path):
    order = [int(line[2:].split("\t")[0]) for line in sentence_lines(translated, "H")]
    assert order != sorted(order)  # fairseq prints in the order of batches
    reference = tmp_path / "reference.en"
    lines = detokenized(translated)
    reference.write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = translate(corpus, checkpoints.cut, "--reference", str(reference))
    assert score_of(output) == pytest.approx(100)

    upper = tmp_path / "upper.en"
    upper.write_text("\n".join(line.upper() for line in lines), encoding="utf-8")
    arguments = ["--reference", str(upper), "--quiet"]
    strict = translate(corpus, checkpoints.cut, *arguments)
    assert score_of(strict) < 50
    lenient = translate(corpus, checkpoints.cut, *arguments, "--sacrebleu-lowercase")
    assert score_of(lenient) == pytest.approx(100)
    assert "|case:lc|" in lenient
    assert not sentence_lines(lenient)  # --quiet


def test_tokenized_bleu_stands_beside(corpus, checkpoints, translated):
    output = translate(corpus, checkpoints.cut, "--tokenized-bleu", "--detok", "none")
    targets = [without_bpe(target) for _, target in random_pairs(1)]
    found = hypotheses(translated)
    tokens = [found[n] for n in range(SENTENCES)]
    for tokenize, force in (("13a", False), ("none", True)):
        expected = corpus_bleu(tokens, [targets], tokenize=tokenize, force=force)
        line = re.search(rf"^BLEU\|\S+tok:{tokenize}\S+ = ([\d.]+)", output, re.MULTILINE)
        assert float(line[1]) == pytest.approx(expected.score, abs=0.005)


def test_words_outside_the_dictionary_match_nothing():
    words = DictionaryTask().target_dictionary
    task = argparse.Namespace(
        target_dictionary=words,
        dataset=lambda name: argparse.Namespace(tgt=[torch.tensor([5, words.unk(), 2])]),
        build_bpe=lambda part: None,
        build_tokenizer=lambda part: None,
    )
    cfg = argparse.Namespace(
        dataset=argparse.Namespace(gen_subset="test"),
        common_eval=argparse.Namespace(post_process=None),
        bpe=None,
        tokenizer=None,
    )
    (line,) = bleu.target_side(cfg, task)
    assert line == f"{words[5]} <<unk>>" and words.unk_word not in line.split()


def test_too_long_sentences_count_as_empty(corpus, checkpoints, tmp_path, capsys):
    pairs = random_pairs(1)
    pairs[5] = (" ".join(["Hund"] * 40), "a dog")
    write_data(tmp_path, pairs)
    limit = ["--max-source-positions", "30"]
    with pytest.raises(SystemExit) as stopped, ending_program():
        translate(str(tmp_path), checkpoints.cut, *limit)
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip().split("\n")[-1]
    for part in ("sentence 5 (line 6)", "41 tokens", "30", "--skip-invalid-size-inputs"):
        assert part in message

    limit += ["--skip-invalid-size-inputs-valid-test"]
    output = translate(str(tmp_path), checkpoints.cut, *limit)
    found = hypotheses(output)
    assert sorted(found) == [n for n in range(SENTENCES) if n != 5]
    assert "left out 1 too long" in output
    report = tmp_path / "report.json"
    translate(str(tmp_path), checkpoints.cut, *limit, "--report", str(report))
    lengths = [len(source.split()) + 1 for n, (source, _) in enumerate(pairs) if n != 5]
    length = json.loads(report.read_text())["flops_source_length"]
    assert abs(length - sum(lengths) / len(lengths)) <= 0.5
    reference = tmp_path / "reference.en"
    moses = MosesDetokenizer("en")
    lines = [moses.detokenize(found.get(n, "a the").split()) for n in range(SENTENCES)]
    reference.write_text("\n".join(lines), encoding="utf-8")
    scored = score_of(
        translate(str(tmp_path), checkpoints.cut, *limit, "--reference", str(reference))
    )
    lacking = [line if n != 5 else "" for n, line in enumerate(lines)]
    expected = corpus_bleu(lacking, [lines]).score
    assert scored == pytest.approx(expected, abs=0.005)
    assert scored < 100


def test_overrides_of_the_model_count_for_lengths(corpus, checkpoints, capsys):
    overrides = "{'max_source_positions': 8}"
    with pytest.raises(SystemExit), ending_program():
        translate(corpus, checkpoints.cut, "--model-overrides", overrides)
    assert "the limit is 8" in capsys.readouterr().err


def test_sources_are_truncated_at_the_models_limit(corpus, checkpoints):
    options = ["--truncate-source", "--model-overrides", "{'max_source_positions': 8}"]
    output = translate(corpus, checkpoints.cut, *options)
    told = translate(corpus, checkpoints.cut, *options, "--max-source-positions", "8")
    assert sentence_lines(output) == sentence_lines(told)
    lengths = [len(line.split("\t")[1].split()) for line in sentence_lines(output, "S")]
    assert max(lengths) == 7  # and the end of sentence


# -- report ----------------------------------------------------------------------------------


def test_report_holds_what_can_be_checked(corpus, checkpoints, translated, tmp_path):
    path = tmp_path / "report.json"
    lengths = ["--flops-source-length", "9", "--flops-target-length", "7"]
    output = translate(corpus, checkpoints.cut, "--report", str(path), *lengths)
    report = json.loads(path.read_text())
    model = load_model(checkpoints.cut)
    assert report["bleu"] == pytest.approx(score_of(output), abs=0.005)
    assert report["bleu_signature"] in output and report["chrf_signature"] in output
    assert 0 < report["chrf"] < 100
    assert len(report["bleu_references_sha256"]) == 64 and report["engine"] == "pytorch"
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    dense = load_model(checkpoints.dense)
    assert report["uncut_parameters"] == sum(p.numel() for p in dense.parameters())
    assert report["flops"] == count_flops(model, 9, 7)["total"]
    assert sum(report["flops_parts"].values()) == report["flops"]
    file_size = Path(checkpoints.cut).stat().st_size
    assert report["checkpoint_bytes"] == file_size
    assert 4 * report["parameters"] < report["model_bytes"] < file_size
    printed = [len(line.split("\t")[1].split()) for line in sentence_lines(output, "P")]
    assert report["tokens"] == sum(printed)
    assert report["sentences"] == SENTENCES
    assert report["warm_up_batches"] == 1
    assert report["tokens_per_second"] > 0
    assert report["beam"] == 2
    uncut = {name: group[1] for name, group in report["widths"].items()}
    assert uncut["encoder.embedding"] == 128 and uncut["decoder.layers.1.ffn"] == 256
    depths = [report["widths"].pop(f"{side}.depth") for side in ("encoder", "decoder")]
    assert all(layers == whole for layers, whole in depths)  # random_cut leaves them
    assert all(0 < width < whole for width, whole in report["widths"].values())
    assert not list(tmp_path.glob("*.tmp"))


def test_speed_is_without_the_warm_up():
    steps = [evaluation.Step(7.0, 4, 10), evaluation.Step(2.0, 4, 30), evaluation.Step(3.0, 2, 20)]
    found = evaluation.speed(steps)
    assert found["tokens_per_second"] == 10 and found["warm_up_batches"] == 1
    assert (found["sentences"], found["tokens"], found["seconds"]) == (10, 60, 12)
    alone = evaluation.speed(steps[:1])
    assert alone["tokens_per_second"] == 1.43 and alone["warm_up_batches"] == 0


def test_flops_are_of_the_mean_sentence_by_default(corpus, checkpoints, tmp_path):
    path = tmp_path / "report.json"
    translate(corpus, checkpoints.cut, "--report", str(path))
    report = json.loads(path.read_text())
    for side, name in ((0, "source"), (1, "target")):
        lengths = [len(pair[side].split()) + 1 for pair in random_pairs(1)]
        mean = sum(lengths) / len(lengths)
        assert abs(report[f"flops_{name}_length"] - mean) <= 0.5


def test_results_path_and_ensembles(corpus, checkpoints, tmp_path):
    both = f"{checkpoints.cut}:{checkpoints.dense}"
    folder = tmp_path / "results"
    printed = translate(corpus, both, "--results-path", str(folder))
    written = (folder / "generate-test.txt").read_text(encoding="utf-8")
    assert len(hypotheses(written)) == SENTENCES
    assert not sentence_lines(printed)
    assert score_of(written) == score_of(printed)


def test_log_file_has_the_lines_of_the_log(corpus, checkpoints, tmp_path):
    log = tmp_path / "log"
    printed = translate(corpus, checkpoints.cut, "--log-file", str(log))
    lines = log.read_text(encoding="utf-8").splitlines()
    assert any(re.fullmatch(r"[-\d: ]+ \| INFO \| \S+ \| .*", line) for line in lines)
    assert sentence_lines(printed)


# -- the README's command ----------------------------------------------------------------------


def test_arch_and_weighted_layernorm_as_in_the_readme(
    corpus, checkpoints, translated, tmp_path, capsys
):
    readme = ["--user-dir", USER_DIR, "--arch", "srp_demo_de_en", "--task"]
    readme += ["SRPtranslation", "--weighted-layernorm"]
    output = translate(corpus, checkpoints.cut, *readme)
    assert hypotheses(output) == hypotheses(translated)
    assert "was cut without it" not in capsys.readouterr().err
    assert "--share-decoder-input-output-embed" in ARCH  # which the command leaves out

    plain = make_checkpoints(corpus, tmp_path, ARCH)
    asked = translate(corpus, plain.cut, *readme)
    assert "was cut without it" in capsys.readouterr().err
    assert hypotheses(asked) == hypotheses(translate(corpus, plain.cut))
    translate(corpus, plain.dense, *readme)  # uncut: both compute the same
    assert "was cut without it" not in capsys.readouterr().err


def test_a_model_that_is_shrinking_is_translated_with_a_warning(corpus, checkpoints, capsys):
    for path in (checkpoints.gated, checkpoints.cut):
        translate(corpus, path)
        said = capsys.readouterr().err
        assert "error:" not in said
        assert (f"--path {path}: a pruning stage is" in said) == (path == checkpoints.gated)


def test_data_without_a_target_side(corpus, checkpoints, tmp_path):
    for name in Path(corpus).iterdir():
        if not name.name.startswith("test.de-en.en"):
            shutil.copy(name, tmp_path)
    languages = ["-s", "de", "-t", "en"]
    output = translate(str(tmp_path), checkpoints.cut, *languages)
    assert "no BLEU" in output
    reference = tmp_path / "reference.en"
    reference.write_text("\n".join(detokenized(output)), encoding="utf-8")
    report = tmp_path / "report.json"
    extra = ["--reference", str(reference), "--report", str(report)]
    translate(str(tmp_path), checkpoints.cut, *languages, *extra)
    assert json.loads(report.read_text())["bleu"] == pytest.approx(100)
