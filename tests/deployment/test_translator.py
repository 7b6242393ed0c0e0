"""Exported models translate raw text, without PyTorch, as generate.py translates their data."""

import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace

import pytest
from fairseq.data import encoders
from sentencepiece import SentencePieceTrainer

import src
from src import export
from src.commandline.parsing import ArgumentParser
from src.deployment import text as exported_text
from src.deployment.translator import Text
from src.errors import UserError
from tests.support.training import ROOT
from tests.support.translation import ARCH, detokenized, make_checkpoints, run_tool, translate
from tests.support.vocabulary import Corpus

LINES = ["Der Hund (von nebenan) rennt -- schnell-lebig & froh .", "haus, baum's Ende!", ""]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Data split by codes, a model, and its export with them."""
    folder = tmp_path_factory.mktemp("raw")
    corpus = Corpus(folder / "data", joined=False)
    checkpoint = make_checkpoints(corpus.folder, folder, ARCH).cut
    output = str(folder / "exported")
    command = [corpus.folder, "--path", checkpoint, "--output", output]
    command += ["--tokenizer", "moses", "--bpe-codes", corpus.codes, "--lowercase"]
    run_tool(lambda: export.main(command), command)
    return corpus, checkpoint, output


def test_text_is_translated_as_the_data_are(raw):
    corpus, checkpoint, output = raw
    search = ["--engine", "ctranslate2", "--ctranslate2-model", output, "--max-len-a", "0"]
    search += ["--max-len-b", "200", "--min-len", "1", "--beam", "3", "--source-lang", "de"]
    expected = detokenized(translate(corpus.folder, checkpoint, *search, "--target-lang", "en"))
    sentences = [line.title() for line in corpus.text["test", "de"]]
    assert src.load(output).translate([*sentences, " "], beam=3) == [*expected, ""]


def test_in_an_environment_without_pytorch(raw, tmp_path):
    corpus, _, output = raw
    sentences = corpus.text["test", "de"]
    expected = src.load(output).translate(sentences)
    alone = shutil.copytree(output, tmp_path / "alone")
    hidden = "import sys; sys.modules.update(dict.fromkeys(['torch', 'fairseq', 'omegaconf'])); "
    program = "import runpy; runpy.run_path('translator.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", hidden + program],
        **{"cwd": alone, "input": "\n".join(sentences), "capture_output": True, "text": True},
        timeout=120,
    )
    assert done.stdout.splitlines() == expected, done.stderr
    program = f"import src; print(src.load({output!r}).translate({sentences!r}))"
    done = subprocess.run(
        [sys.executable, "-c", hidden + program],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120},
    )
    assert done.stdout == f"{expected}\n", done.stderr


@pytest.mark.parametrize("bpe", ["subword_nmt", "sentencepiece", None])
@pytest.mark.parametrize("dashes", [True, False])
def test_text_becomes_tokens_as_in_fairseq(raw, tmp_path, bpe, dashes):
    corpus, options = raw[0], {"bpe": bpe, "bpe_codes": raw[0].codes}
    if bpe == "sentencepiece":
        file = tmp_path / "text"
        file.write_text("\n".join([*LINES, *corpus.text["train", "de"]]))
        SentencePieceTrainer.train(
            input=str(file), model_prefix=str(tmp_path / "m"), vocab_size=60, minloglevel=2
        )
        options = {"bpe": bpe, "sentencepiece_model": str(tmp_path / "m.model")}
    parser = argparse_of(exported_text.add_options)
    words = [] if bpe is None else exported_words(options)
    words += ["--tokenizer", "moses"] + ([] if dashes else ["--moses-no-dash-splits"])
    args = parser.parse_args(words)
    exported_text.check(args)
    os.makedirs(tmp_path / "out")
    exported_text.write(str(tmp_path / "out"), args, str(tmp_path), ("de", "en"))
    found = Text(str(tmp_path / "out"), json.loads((tmp_path / "out/text.json").read_text()))

    values = {"source_lang": "de", "target_lang": "en", "moses_no_dash_splits": not dashes}
    moses = encoders.build_tokenizer(namespace("tokenizer", "moses", **values))
    splitter = encoders.build_bpe(namespace("bpe", bpe, **options)) if bpe else None
    for line in LINES:
        tokens = moses.encode(line)
        tokens = splitter.encode(tokens) if splitter else tokens
        assert found.encode(line) == tokens.split()
        plain = splitter.decode(tokens) if splitter else tokens
        assert found.decode(tokens.split()) == moses.decode(plain)


def argparse_of(add_options):
    parser = ArgumentParser()
    add_options(parser)
    return parser


def exported_words(options):
    names = ("bpe_codes", "sentencepiece_model")
    return [w for n in names if n in options for w in (f"--{n.replace('_', '-')}", options[n])]


def namespace(kind, name, **values):
    return Namespace(**{**values, kind: name})


def test_types_that_were_trimmed_are_not_made(raw, tmp_path):
    """trim_vocabulary.py leaves what codes may make beside the data."""
    corpus = raw[0]
    parser = argparse_of(exported_text.add_options)
    args = parser.parse_args(["--bpe-codes", corpus.codes])
    exported_text.check(args)
    whole = make_text(tmp_path / "whole", args, tmp_path)
    pieces = {piece for line in corpus.text["test", "de"] for piece in whole.encode(line)}
    longest = max(pieces, key=len)
    kept = sorted(pieces - {longest}) + [f"{c}{end}" for c in longest for end in ("", "@@")]
    (tmp_path / "vocabulary.de").write_text("".join(f"{piece} 1\n" for piece in kept))
    restricted = make_text(tmp_path / "restricted", args, tmp_path)
    for line in corpus.text["test", "de"]:
        assert longest not in restricted.encode(line)
        assert restricted.decode(restricted.encode(line)) == line


def make_text(folder, args, data):
    folder.mkdir()
    exported_text.write(str(folder), args, str(data), ("de", "en"))
    return Text(str(folder), json.loads((folder / "text.json").read_text()))


@pytest.mark.parametrize("name", ["model.bin", "bpe.codes", "text.json"])
def test_a_damaged_folder_is_refused(raw, tmp_path, name):
    folder = shutil.copytree(raw[2], tmp_path / "copy")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: is damaged"):
        src.load(str(folder))


def test_what_is_refused(raw, tmp_path):
    model = src.load(raw[2])
    with pytest.raises(ValueError, match="give a list of them, not one string"):
        model.translate("haus")
    with pytest.raises(ValueError, match="sentence 1 has 3000 tokens, the model takes 1023"):
        model.translate(["haus", "w " * 3000])
    with pytest.raises(UserError, match="holds no compressed model"):
        src.load(str(tmp_path))


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--bpe", "subword_nmt"], "--bpe subword_nmt: needs --bpe-codes"),
        (["--bpe-codes", "nowhere"], "--bpe-codes nowhere: no such file"),
        (["--bpe-codes", "x", "--sentencepiece-model", "y"], "exclude each other"),
        (["--moses-no-dash-splits"], "needs --tokenizer moses"),
    ],
)
def test_options_of_text_that_are_refused(words, problem):
    with pytest.raises(UserError, match=problem):
        exported_text.check(argparse_of(exported_text.add_options).parse_args(words))
