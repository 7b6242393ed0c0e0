"""Tatoeba's pairs: which are training, validation and test data, and the script."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import tatoeba_split  # noqa: E402

WORDS = st.sampled_from("a b c d".split())
SENTENCES = st.lists(WORDS, min_size=3, max_size=7).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCES, SENTENCES), max_size=60, unique=True)


def archive(path, pairs):
    with zipfile.ZipFile(path, "w") as packed:
        lines = (f"{en}\t{de}\tCC-BY 2.0 (France)\n" for de, en in pairs)
        packed.writestr("deu.txt", "".join(lines))
    return path


@given(PAIRS, st.integers(1, 4))
def test_no_sentence_is_in_two_splits(pairs, held_out):
    try:
        splits = tatoeba_split.split(pairs, held_out)
    except tatoeba_split.UserError as error:
        assert f"--held-out {held_out}" in str(error)
        return
    assert sorted(pair for part in splits for pair in part) == sorted(pairs)
    assert [len(part) for part in splits[1:]] == [held_out] * 2
    for side in (0, 1):
        sentences = [{pair[side] for pair in part} for part in splits]
        assert not any(a & b for i, a in enumerate(sentences) for b in sentences[:i])
    assert all(len(s.split()) >= 5 for part in splits[1:] for pair in part for s in pair)
    # the order of what is not held out stays, and the archive's order decides nothing
    assert splits[0] == [pair for pair in pairs if pair in set(splits[0])]
    assert tatoeba_split.split(pairs[::-1], held_out)[1:] == splits[1:]


def test_reading_an_archive(tmp_path):
    path = archive(tmp_path / "x.zip", [("Geh .", "Go  ."), ("Geh .", "Go ."), ("Lauf", "Run")])
    assert tatoeba_split.read_pairs(path) == [("Geh .", "Go ."), ("Lauf", "Run")]


@pytest.mark.parametrize("content", [b"no archive", None, "Go.", "Go.\t \tx"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "x.zip"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("deu.txt", content)
    with pytest.raises(tatoeba_split.UserError, match="x.zip"):
        tatoeba_split.read_pairs(path)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_from_archive_to_binary(tmp_path):
    home = tmp_path / "project"
    shutil.copytree(
        ROOT / "scripts", home / "scripts", ignore=shutil.ignore_patterns("__pycache__")
    )
    pairs = [
        (f"Das ist der Satz Nummer {i}.", f"This is sentence number {i}.") for i in range(4100)
    ]
    path = archive(tmp_path / "deu-eng.zip", pairs)

    def run(url):
        return subprocess.run(
            ["bash", home / "scripts/tatoeba_preprocess.sh"],
            env={**os.environ, "PYTHON": sys.executable, "TATOEBA_URL": url},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    broken = run(path.as_uri())
    assert broken.returncode == 1 and "nothing was kept" in broken.stderr
    path.write_bytes(whole)
    done = run(path.as_uri())
    assert done.returncode == 0, done.stderr
    assert "100 training, 2,000 validation, 2,000 test pairs" in done.stdout
    binary = home / "data-bin/tatoeba.de-en"
    assert {"dict.de.txt", "train.de-en.de.bin", "test.de-en.en.idx"} <= set(os.listdir(binary))
    references = (binary / "raw.test.en").read_text().splitlines()
    assert len(references) == 2000 and references[0].startswith("This is sentence number ")
    path.unlink()  # what is there is not downloaded again
    again = run(path.as_uri())
    assert again.returncode == 0 and "tatoeba.de-en is up to date" in again.stdout
