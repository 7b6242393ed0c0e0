"""Set-up, downloads, preprocessing and the resumable steps of ``scripts/``.

No network, no compiler: environments, servers and archives are small stand-ins.
"""

import gzip
import hashlib
import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import check_env  # noqa: E402
import preprocess  # noqa: E402
import show_samples  # noqa: E402

from src.pipeline import options as compress_options  # noqa: E402

SCRIPTS = sorted(p for p in (ROOT / "scripts").glob("*.sh") if p.name != "common.sh")
BASH = shutil.which("bash")


@pytest.fixture
def project(tmp_path):
    """A copy of what the scripts need of the project, to write into."""
    home = tmp_path / "project"
    shutil.copytree(
        ROOT / "scripts", home / "scripts", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(ROOT / "requirements", home / "requirements")
    shutil.copy(ROOT / "Makefile", home)
    return home


def run(*command, cwd=ROOT, timeout=600, **environment):
    """Run a command; its environment is the caller's, with ``environment`` on top."""
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("VENV", "PYTHON", "DATA", "DEPTH", "RAW_DIR", "MAKEFLAGS", "MAKELEVEL")
    }
    env.update(environment)
    return subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# --- every script ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", SCRIPTS + [ROOT / "scripts/common.sh", ROOT / ".ci/run"], ids=lambda p: p.name
)
def test_bash_accepts_script(script):
    assert run(BASH, "-n", script).stderr == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_help_needs_nothing_and_does_nothing(script, tmp_path):
    done = run(BASH, script, "--help", cwd=tmp_path, PYTHON="/nowhere/python")
    assert done.returncode == 0 and done.stderr == ""
    assert f"Usage: {script.name}" in done.stdout or "Usage: scripts/" in done.stdout
    assert "set -" not in done.stdout and "source" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_scripts_without_an_environment_say_what_to_do(tmp_path):
    done = run(BASH, ROOT / "scripts/iwslt_srp.sh", cwd=tmp_path, PYTHON="/nowhere/python")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "make setup" in done.stderr


# --- preprocess.py -----------------------------------------------------------------------


def test_training_tags():
    lines = [
        "<url>http://x</url>",
        "<keywords>a, b</keywords>",
        "<talkid>1</talkid>",
        "<title>A talk: on <i>x</i></title>",
        "<description>TED: what</description>",
        " Plain  text . ",
    ]
    assert preprocess.strip_train_tags(lines) == [
        "A talk: on <i>x</i>",
        "TED: what",
        "Plain text .",
    ]


def test_segments_of_xml():
    lines = [
        "<doc docid='1'>",
        '<seg id="1"> That’s it. </seg>',
        "<description>no</description>",
        '<seg id="22"></seg>',
    ]
    assert preprocess.segments(lines) == ["That's it.", ""]


@pytest.mark.parametrize(
    "lang, line, tokens",
    [
        (
            "en",
            "It's a woman's hat, isn't it?",
            "It &apos;s a woman &apos;s hat , isn &apos;t it ?",
        ),
        ("de", "Er sagt: „Ja“ & geht (z.B. heim).", "Er sagt : „ Ja “ &amp; geht ( z.B. heim ) ."),
        ("en", "3.5% of $1,000 [sic] a|b", "3.5 % of $ 1,000 &#91; sic &#93; a &#124; b"),
        ("en", "", ""),
    ],
)
def test_moses_tokens(lang, line, tokens):
    assert preprocess.tokenize(lang, line) == tokens


@pytest.mark.parametrize(
    "line", ["It's a woman's hat, isn't it?", "He paid $1,000 (in cash).", '"No," she said; A & B.']
)
def test_tokens_detokenize_to_the_sentence(line):
    from sacremoses import MosesDetokenizer

    assert MosesDetokenizer("en").detokenize(preprocess.tokenize("en", line).split()) == line


@given(st.integers(0, 200), st.integers(0, 200), st.sampled_from([0, 1.5, 9]))
def test_length_filter(de, en, ratio):
    kept = preprocess.keep(("x " * de, "y " * en), ratio, 175)
    expected = (
        1 <= de <= 175
        and 1 <= en <= 175
        and (ratio == 0 or (de <= ratio * en and en <= ratio * de))
    )
    assert kept == expected


def test_every_23rd():
    rest, chosen = preprocess.every(list(range(1, 70)), 23)
    assert chosen == [23, 46, 69] and sorted(rest + chosen) == list(range(1, 70))


def test_only_newlines_end_lines(tmp_path):
    (tmp_path / "x").write_bytes("a\u2028b\nc\x0bd\r\n\ne\n".encode())
    assert preprocess.read_lines(tmp_path / "x") == ["a b", "c d", "", "e"]


def test_packed_and_plain_are_the_same(tmp_path):
    (tmp_path / "a").write_text("ä\nb\n", encoding="utf-8")
    (tmp_path / "b.gz").write_bytes(gzip.compress("ä\nb\n".encode()))
    assert preprocess.read_lines(tmp_path / "a") == preprocess.read_lines(tmp_path / "b")


def corpus(folder, **sizes):
    """Small parallel raw data; the German side is the English one with other words."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in sizes.items():
        for lang, word in (("de", "Haus"), ("en", "house")):
            text = "".join(f"The {word} no. {i} isn't {word}{'es' * (i % 3)}.\n" for i in range(n))
            (folder / f"{split}.{lang}").write_text(text)
    return [f"--{split}={folder / split}" for split in sizes]


def test_preprocess_writes_parallel_lower_case_bpe(tmp_path):
    prefixes = corpus(tmp_path / "raw", train=60, valid=7, test=5)
    out = tmp_path / "out"
    assert preprocess.main(["--out", str(out), "--bpe", "30", "--workers", "1", *prefixes]) == 0
    for split, n in {"train": 60, "valid": 7, "test": 5}.items():
        for lang in "de", "en":
            lines = (out / f"{split}.{lang}").read_text().splitlines()
            assert len(lines) == n and all(line == line.lower() for line in lines)
    joined = (out / "valid.en").read_text().replace("@@ ", "").splitlines()
    raw = (out / "raw.valid.en").read_text().splitlines()
    assert raw == (tmp_path / "raw/valid.en").read_text().splitlines()
    assert joined == [preprocess.tokenize("en", line).lower() for line in raw]
    assert not list(out.glob(".*part"))


def test_preprocess_splits_as_a_model_was_trained(tmp_path):
    """Other tokens than the usual ones: of fairseq's tokenizer, of another, of SentencePiece."""
    prefixes = corpus(tmp_path / "raw", train=60, valid=7, test=5)
    (tmp_path / "raw/valid.en").write_text("A well-known House's door .\n" * 7)
    model = str(tmp_path / "pieces")
    SentencePieceTrainer.train(
        input=str(tmp_path / "raw/train.en"), model_prefix=model, vocab_size=30, minloglevel=2
    )
    pieces = SentencePieceProcessor(model_file=f"{model}.model")
    (tmp_path / "code").write_text("#version: 0.2\nh o\n")
    codes = ("--bpe-codes", str(tmp_path / "code"), "--cased")
    text = "A well-known House's door ."
    for number, (options, expected) in enumerate(
        (
            ((*codes, "--tokenized"), text),
            ((*codes, "--dash-splits"), "A well @-@ known House &apos;s door ."),
            (codes, "A well-known House &apos;s door ."),
            (("--sentencepiece-model", f"{model}.model"), " ".join(pieces.encode(text.lower(), out_type=str))),
        )
    ):  # fmt: skip
        out = tmp_path / str(number)
        assert preprocess.main(["--out", str(out), "--workers", "1", *options, *prefixes]) == 0
        line = (out / "valid.en").read_text().splitlines()[0]
        assert line.replace("@@ ", "") == expected
    with pytest.raises(SystemExit):
        preprocess.main(["--out", str(out), *codes, "--tokenized", "--dash-splits", *prefixes])
    (tmp_path / "code").write_bytes(b"\xff\xfe")
    for option in ("--bpe-codes", "--sentencepiece-model"):
        assert preprocess.main(["--out", str(out), option, str(tmp_path / "code"), *prefixes]) == 2


def test_preprocess_runs_again_only_when_something_changed(tmp_path, capsys):
    prefixes = corpus(tmp_path / "raw", train=60, valid=7, test=5)
    out = tmp_path / "out"
    command = ["--out", str(out), "--workers", "1", *prefixes]
    preprocess.main([*command, "--bpe", "30"])
    first = (out / "code").stat().st_mtime_ns
    preprocess.main([*command, "--bpe", "30"])
    assert (out / "code").stat().st_mtime_ns == first and "up to date" in capsys.readouterr().out
    preprocess.main([*command, "--bpe", "20"])
    assert len((out / "code").read_text().splitlines()) == 21  # and the line with the version
    (out / "preprocess.json").unlink()  # as after an interruption
    before = (out / "train.de").read_text()
    preprocess.main([*command, "--bpe", "20"])
    assert (out / "train.de").read_text() == before


def test_interrupted_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def lines():
        yield "new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess.write_lines(target, lines())
    assert target.read_text() == "old"


def test_preprocess_refuses_in_one_line(tmp_path, capsys):
    prefixes = corpus(tmp_path / "raw", train=6, valid=2, test=2)
    command = ["--out", str(tmp_path / "out"), "--bpe", "3", *prefixes]
    (tmp_path / "raw/train.en").write_text("one line\n")
    assert preprocess.main(command) == 2
    assert capsys.readouterr().err.strip().splitlines() == [
        f"error: {tmp_path / 'raw/train'} is not parallel: 6 lines in de, 1 lines in en"
    ]
    (tmp_path / "raw/train.en").unlink()
    assert (
        preprocess.main(command) == 2 and "train.en.gz) does not exist" in capsys.readouterr().err
    )
    (tmp_path / "raw/train.en.gz").write_bytes(gzip.compress(b"x\n" * 6)[:-9])
    assert preprocess.main(command) == 2 and "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- IWSLT from a small archive of the same layout ------------------------------------------


def iwslt_archive(path, pairs=92):
    """``de-en.tgz`` with ``pairs`` training pairs and two test pairs in each of five files."""
    with tarfile.open(path, "w:gz") as archive:

        def add(name, text):
            data = text.encode()
            info = tarfile.TarInfo(f"de-en/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        for lang in "de", "en":
            body = "".join(f"Sentence number {i} isn't {lang}.\n" for i in range(1, pairs - 1))
            body += (
                "One two three four five six seven.\n" if lang == "de" else "One.\n"
            )  # the ratio filter's
            add(
                f"train.tags.de-en.{lang}",
                f"<url>x</url>\n<title>A title {lang}</title>\n{body}<talkid>1</talkid>\n",
            )
            for name in preprocess.IWSLT_TEST:
                add(
                    f"IWSLT14.{name}.de-en.{lang}.xml",
                    "".join(f'<seg id="{i}"> {name} {i} {lang}. </seg>\n' for i in (1, 2)),
                )
    return path


def test_iwslt_from_archive_to_binary(project, tmp_path):
    raw = tmp_path / "given"
    raw.mkdir()
    archive = iwslt_archive(raw / "de-en.tgz")
    command = (BASH, project / "scripts/iwslt_preprocess.sh", "--raw-dir", "given")
    done = run(*command, cwd=tmp_path, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    text, binary = project / "data-bin/iwslt14.text", project / "data-bin/iwslt14.tokenized.de-en"
    valid = (text / "raw.valid.en").read_text().splitlines()
    # the title is sentence 1, the pair of unlike lengths (the last) is gone before the split
    assert valid == [f"Sentence number {i} isn't en." for i in (22, 45, 68)]
    assert len((text / "train.de").read_text().splitlines()) == 88
    test = (text / "raw.test.de").read_text().splitlines()
    assert test == [f"{name} {i} de." for name in preprocess.IWSLT_TEST for i in (1, 2)]
    assert {"dict.de.txt", "dict.en.txt", "train.de-en.de.bin", "test.de-en.en.idx", "code"} <= set(
        os.listdir(binary)
    )
    assert (binary / "raw.test.en").read_text() == (text / "raw.test.en").read_text()

    stamp = (binary / "dict.de.txt").stat().st_mtime_ns
    again = run(*command, cwd=tmp_path, PYTHON=sys.executable)
    assert (
        again.stdout.count("up to date") == 2
        and (binary / "dict.de.txt").stat().st_mtime_ns == stamp
    )

    archive.write_bytes(archive.read_bytes()[:-200])
    cut = run(*command, cwd=tmp_path, PYTHON=sys.executable)
    assert (
        cut.returncode == 2
        and "not a whole archive" in cut.stderr
        and len(cut.stderr.splitlines()) == 1
    )


def test_arguments_of_data_that_are_there(tmp_path, capsys):
    prefixes = corpus(tmp_path / "raw", train=60, valid=7, test=5)
    text, data = tmp_path / "text", tmp_path / "data"
    made = ["--out", str(text), "--workers", "1", "--bpe", "30", *prefixes]
    binary = ["--data-bin", str(data), "--"]
    assert preprocess.main([*made, *binary, "--joined-dictionary"]) == 0
    assert (data / "dict.de.txt").read_text() == (data / "dict.en.txt").read_text()
    assert (data / "raw.test.en").read_text() == (tmp_path / "raw/test.en").read_text()
    first = (data / "dict.de.txt").stat().st_mtime_ns
    again = ["--binarize-only", "--out", str(text), *binary]
    for arguments in ([], ["--joined-dictionary"]):
        assert preprocess.main([*again, *arguments]) == 0
        assert f"{data} is up to date" in capsys.readouterr().out
    assert (data / "dict.de.txt").stat().st_mtime_ns == first
    assert preprocess.main([*again, "--nwordssrc", "99"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "made with other arguments than --nwordssrc 99; move it away" in line
    shutil.rmtree(data)
    assert preprocess.main([*again, "--wrong"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "unrecognized arguments: --wrong" in line and not data.exists()


def test_another_pair_for_a_model_that_is_there(tmp_path, capsys):
    corpus(tmp_path / "raw", train=60, valid=7, test=5)
    for split in ("train", "valid", "test"):
        (tmp_path / f"raw/{split}.de").rename(tmp_path / f"raw/{split}.fr")
    prefixes = [f"--{split}={tmp_path / 'raw' / split}" for split in ("train", "valid", "test")]
    langs = ["--source-lang", "fr", "--target-lang", "en", "--workers", "1", "--cased"]

    def make(name, *code, tail=()):
        folder = tmp_path / name
        out = ["--out", str(folder / "text"), "--data-bin", str(folder / "data"), "--", *tail]
        return folder, preprocess.main([*langs, *prefixes, *code, *out])

    old, status = make("old", "--bpe", "30")
    assert status == 0 and "The" in (old / "text/train.fr").read_text()
    code, dictionary = old / "data/code", old / "data/dict.{}.txt"
    dictionaries = ["--srcdict", str(dictionary).format("fr")]
    dictionaries += ["--tgtdict", str(dictionary).format("en")]
    new, status = make("new", "--bpe-codes", str(code), tail=dictionaries)
    assert status == 0
    for name in ("train.fr-en.fr.bin", "test.fr-en.en.bin", "dict.fr.txt", "code"):
        assert (new / "data" / name).read_bytes() == (old / "data" / name).read_bytes()
    code.write_text("no code at all\n")
    assert make("wrong", "--bpe-codes", str(code))[1] == 2
    assert "not a BPE code" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        preprocess.main([*langs[:3], "fr", "--bpe", "3", "--out", "x", *prefixes])
    assert "are both fr" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--raw-dir", "given", "--workers", "1"],
        ["--workers", "1", "--raw-dir", "given"],
        ["--raw-dir=given", "--workers", "1"],
    ],
)
def test_raw_dir_anywhere(tmp_path, arguments):
    (tmp_path / "given").mkdir()
    command = (
        f'source "{ROOT}/scripts/common.sh"; take_raw_dir "$@"; echo "$raw_dir" "${{REST[@]}}"'
    )
    done = run(BASH, "-c", command, "x", *arguments, cwd=tmp_path)
    assert done.stdout == f"{tmp_path}/given --workers 1\n"
    for wrong in (["--raw-dir"], ["--raw-dir="], ["--raw-dir", "nowhere"]):
        refused(run(BASH, "-c", command, "x", *wrong, cwd=tmp_path), "--raw-dir")


# --- downloads ---------------------------------------------------------------------------

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


def download(url, target, sha256=""):
    """``download`` of common.sh; a target that ends in neither .tgz is taken for gzip."""
    return run(
        BASH,
        "-c",
        f'source "{ROOT}/scripts/common.sh"; download "$@"',
        "download",
        url,
        target,
        sha256,
        PYTHON=sys.executable,
    )


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "source.gz"
    path.write_bytes(gzip.compress(os.urandom(50_000)))
    return path


@needs_curl
def test_download_of_whole_file_is_recorded(packed, tmp_path):
    target = tmp_path / "new/x.gz"
    assert download(packed.as_uri(), target).returncode == 0
    assert target.read_bytes() == packed.read_bytes()
    assert (tmp_path / "new/x.gz.sha256").read_text().strip() == hashlib.sha256(
        packed.read_bytes()
    ).hexdigest()
    assert not (tmp_path / "new/x.gz.part").exists()
    packed.unlink()  # a second call needs no source
    assert download(packed.as_uri(), target).returncode == 0


@needs_curl
@pytest.mark.parametrize("content", ["beginning", "wrong", "too long", "whole"])
def test_download_continues_or_starts_again(packed, tmp_path, content):
    data = packed.read_bytes()
    part = {
        "beginning": data[:20_000],
        "wrong": b"x" * 20_000,
        "too long": data + b"xx" * 9,
        "whole": data,
    }[content]
    (tmp_path / "x.gz.part").write_bytes(part)
    done = download(packed.as_uri(), tmp_path / "x.gz")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.gz").read_bytes() == data


@needs_curl
def test_truncated_or_other_file_is_refused(packed, tmp_path):
    data = packed.read_bytes()
    packed.write_bytes(data[:-100])
    done = download(packed.as_uri(), tmp_path / "x.gz")
    assert done.returncode == 1 and "nothing was kept" in done.stderr
    assert not (tmp_path / "x.gz").exists() and not (tmp_path / "x.gz.part").exists()

    packed.write_bytes(data)
    assert download(packed.as_uri(), tmp_path / "x.gz", "0" * 64).returncode == 1
    assert not (tmp_path / "x.gz").exists()

    # recorded once, then another file at the same address
    assert download(packed.as_uri(), tmp_path / "x.gz").returncode == 0
    (tmp_path / "x.gz").unlink()
    packed.write_bytes(gzip.compress(b"another"))
    done = download(packed.as_uri(), tmp_path / "x.gz")
    assert done.returncode == 1 and hashlib.sha256(data).hexdigest() in done.stderr


@needs_curl
def test_damaged_file_is_downloaded_again(packed, tmp_path):
    target = tmp_path / "x.gz"
    assert download(packed.as_uri(), target).returncode == 0
    target.write_bytes(target.read_bytes()[:1000])
    assert download(packed.as_uri(), target).returncode == 0
    assert target.read_bytes() == packed.read_bytes()


@needs_curl
@pytest.mark.parametrize("ranges", [True, False])
def test_connection_that_breaks(packed, tmp_path, ranges):
    """The first answer stops half-way; the next call continues, if the server can."""
    data, seen = packed.read_bytes(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            start = int(wanted.split("=")[1].rstrip("-")) if wanted and ranges else 0
            seen.append(start)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start:] if len(seen) > 1 else data[:30_000])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x.gz"
        # without --retry the first call would end here; with it, curl may go on by itself
        first = download(url, tmp_path / "x.gz")
        if first.returncode:
            assert (
                not (tmp_path / "x.gz").exists()
                and (tmp_path / "x.gz.part").stat().st_size == 30_000
            )
            assert "again to continue" in first.stderr
            assert download(url, tmp_path / "x.gz").returncode == 0
        server.shutdown()
    assert (tmp_path / "x.gz").read_bytes() == data
    assert (seen[1] == 30_000) == ranges


# --- steps -------------------------------------------------------------------------------


def step(tmp_path, *extra, disposable="", **environment):
    """One ``step`` whose command counts its calls and writes a checkpoint."""
    (tmp_path / "input").exists() or (tmp_path / "input").write_text("")
    work = 'echo once >>"$0/calls"; [ ! -e "$0/fail" ] || exit 2; mkdir -p "$0/run"; : >"$0/run/checkpoint_last.pt"'
    done = run(
        BASH,
        "-c",
        f'source "{ROOT}/scripts/common.sh"; DISPOSABLE={disposable}; dir=$1; shift; step "$dir/run" "$dir/input" bash -c "$@"',
        "step",
        tmp_path,
        work,
        tmp_path,
        *extra,
        PYTHON=sys.executable,
        **environment,
    )
    calls = tmp_path / "calls"
    return done, len(calls.read_text().splitlines()) if calls.exists() else 0


def test_finished_step_is_skipped(tmp_path):
    assert step(tmp_path)[1] == 1
    done, calls = step(tmp_path)
    assert calls == 1 and "finished already" in done.stdout
    assert step(tmp_path, "--more")[1] == 2  # another command continues in the same folder
    (tmp_path / "run/checkpoint_last.pt").unlink()
    assert step(tmp_path, "--more")[1] == 3


def test_failed_step_runs_again_and_keeps_its_status(tmp_path):
    (tmp_path / "fail").touch()
    assert step(tmp_path)[0].returncode == 2
    done, calls = step(tmp_path, SRP_QUIET="1")
    assert done.returncode == 2 and calls == 2 and "train.log" in done.stderr
    (tmp_path / "fail").unlink()
    assert step(tmp_path)[1] == 3 and step(tmp_path)[1] == 3


def test_step_whose_input_changed(tmp_path):
    step(tmp_path)
    (tmp_path / "run/keepsake").touch()
    later = time.time() + 5
    os.utime(tmp_path / "input", (later, later))
    done, calls = step(tmp_path)
    assert done.returncode == 2 and calls == 1 and "is newer than" in done.stderr
    assert step(tmp_path, DISPOSABLE="1")[0].returncode == 2  # not from the environment
    assert (tmp_path / "run/keepsake").exists()
    os.utime(tmp_path / "run/.started", (1, 1))
    assert step(tmp_path, disposable="1")[1] == 2
    assert not (tmp_path / "run/keepsake").exists()


def test_refused_step_keeps_what_it_would_replace(tmp_path):
    step(tmp_path, disposable="1")
    (tmp_path / "run/keepsake").touch()
    (tmp_path / "fail").touch()
    done, calls = step(tmp_path, "--wrong", disposable="1", SRP_QUIET="1")
    assert (
        done.returncode == 2
        and calls == 2
        and f"the whole log is {tmp_path / 'run/train.log'}" in done.stderr
    )
    assert (tmp_path / "run/keepsake").exists() and (tmp_path / "run/train.log").exists()
    (tmp_path / "fail").unlink()
    assert step(tmp_path, disposable="1")[1] == 2  # finished already
    assert step(tmp_path, "--other", disposable="1")[1] == 3
    assert not (tmp_path / "run/keepsake").exists() and not (tmp_path / "run/.old").exists()


def test_log_of_a_failed_step_can_be_opened(project):
    """The scripts run from their folder; the path is for one who is elsewhere."""
    command = f'source "{project}/scripts/common.sh"; mkdir ../log; run ../log/train.log false'
    done = run(BASH, "-c", command, cwd="/", PYTHON=sys.executable, SRP_QUIET="1")
    assert done.returncode == 1 and done.stderr.endswith(f"{project}/log/train.log\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data=multi30k", "--raw-dir=/nowhere"],
        ["--dropout", "0.1", "--data", "multi30k", "--raw-dir", "/nowhere"],
    ],
)
def test_arguments_of_the_demo_in_any_order(project, arguments):
    done = run(BASH, project / "scripts/demo.sh", *arguments, PYTHON=sys.executable)
    refused(done, "--raw-dir /nowhere is not a folder")


RECORDER = """
echo "$@" >>{log}
while [ $# -gt 1 ]; do
    case $1 in
        --save-dir) mkdir -p "$2"; touch "$2/checkpoint_last.pt" "$2/checkpoint_best.pt" ;;
        --report) touch "$2" ;;
        --output) mkdir -p "$2"; touch "$2/report.png" ;;
    esac
    shift
done
"""


def test_the_demo_in_depth_stands_beside_the_other(project, tmp_path):
    """Base and first stage are made once; the others have names of their own."""
    log = tmp_path / "calls"
    executable(tmp_path / "recorder", f"#!{BASH}\n" + RECORDER.format(log=log))
    preprocess = "mkdir -p ../data-bin/demo.de-en; touch -d 2020-01-01 ../data-bin/demo.de-en/.done"
    executable(
        project / "scripts/demo_preprocess.sh",
        f'#!{BASH}\ncd "$(dirname "${{BASH_SOURCE[0]}}")"; {preprocess}\n',
    )

    def calls(*options):
        log.write_text("")
        python = tmp_path / "recorder"
        done = run(BASH, project / "scripts/demo.sh", *options, PYTHON=python)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in log.read_text().splitlines() if "../src" in line]

    _, (training, compression) = calls()
    assert (
        training.startswith("../src/train.py") and "--save-dir ../checkpoints/demo/base" in training
    )
    words = compression.split()
    assert words[0] == "../src/compress.py" and words[-1] == "--"  # no options of trainings
    assert "--path ../checkpoints/demo/base/checkpoint_best.pt" in compression
    compress_options.parse(words[1:])
    _, plain = calls("--stages")
    assert [line.split()[0] for line in plain].count("../src/pruning.py") == 2
    assert not any("--keep-decoder-layers" in line for line in plain)
    output, deep = calls("--keep-decoder-layers", "1")
    assert "checkpoints/stage1: finished already" in output.replace("demo/", "")
    assert output.strip().endswith("checkpoints/demo-decoder1/report.png")
    stage, finetuning = (line for line in deep if "--save-dir" in line)
    assert "--pruning-stage 2 --keep-decoder-layers 1" in stage
    assert "--save-dir ../checkpoints/demo/stage2-decoder1 " in stage
    assert finetuning.endswith(
        "--save-dir ../checkpoints/demo/finetuned-decoder1 "
        "--pretrained-model ../checkpoints/demo/stage2-decoder1/checkpoint_last.pt "
        "--log-format simple --log-interval 1000"
    )
    assert "stage2-decoder1 ../checkpoints/demo/finetuned-decoder1" in deep[-1]


def test_depths_that_the_demo_has_not(project):
    def demo(*options):
        return run(BASH, project / "scripts/demo.sh", *options, PYTHON=sys.executable)

    refused(demo("--keep-decoder-layers=3"), "--keep-decoder-layers 3: the demo's model has 2")
    refused(demo("--keep-decoder-layers"), "--keep-decoder-layers needs a value")
    several = demo("--data", "multi30k", "--keep-decoder-layers", "1")
    refused(several, "--keep-decoder-layers goes with --data demo")
    assert "--stages" in run("make", "-n", "stages", cwd=project).stdout
    assert "--stages" not in run("make", "-n", cwd=project).stdout
    done = run("make", "-n", "demo", "DEPTH=1", cwd=project)
    assert 'demo.sh --data "demo"' in done.stdout and '--keep-decoder-layers "1"' in done.stdout
    assert "--keep-decoder-layers" not in run("make", "-n", "demo", cwd=project).stdout


def test_processes_end_with_the_one_that_started_them(tmp_path):
    (tmp_path / "train.py").write_text(
        "import os, pathlib, time\npathlib.Path(str(os.getpid())).touch()\ntime.sleep(60)\n"
    )
    command = [sys.executable, ROOT / "scripts/cpu_distributed.py", "--processes", "2", "train.py"]
    starter = subprocess.Popen(command, cwd=tmp_path)
    while len(started := [int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()]) < 2:
        time.sleep(0.05)
    starter.terminate()
    assert starter.wait(30) == 143
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_environment_whose_path_has_a_space(project):
    for name, path in (("my env", project / "my env"), ("/else where/env", "/else where/env")):
        done = run("make", "-n", "report", f"VENV={name}", cwd=project)
        assert f'"{path}/bin/python" src/report.py' in done.stdout


def test_step_without_its_input(tmp_path):
    done = run(
        BASH,
        "-c",
        f'source "{ROOT}/scripts/common.sh"; step "{tmp_path}/run" "{tmp_path}/no.pt" touch "{tmp_path}/x"',
        PYTHON=sys.executable,
    )
    assert (
        done.returncode == 2 and "no.pt is missing" in done.stderr and not (tmp_path / "x").exists()
    )


@pytest.mark.parametrize(
    "arguments, given",
    [
        ([], "--adapter splora --adapter-rank 8"),
        (["--adapter", "splopa"], "--adapter splopa"),
        (["--adapter=splopa"], "--adapter=splopa"),
    ],
)
def test_adapters_are_those_that_were_asked_for(project, tmp_path, arguments, given):
    python = executable(tmp_path / "python", f'#!{BASH}\necho "$*" >>"{tmp_path}/calls"\n')
    (project / "checkpoints/multi30k/stage2").mkdir(parents=True)
    (project / "checkpoints/multi30k/stage2/checkpoint_last.pt").touch()
    run(BASH, project / "scripts/multi30k_srp_adapters.sh", *arguments, PYTHON=str(python))
    (training,) = re.findall(r".*finetuning\.py.*", (tmp_path / "calls").read_text())
    assert training.endswith(f"checkpoint_last.pt {given}")


def test_one_line_an_epoch():
    log = (
        "2026-01-01 10:00:00 | INFO | fairseq_cli.train | Namespace(...)\n"
        "2026-01-01 10:00:01 | INFO | train | epoch 008 | loss 3.1 | nll_loss 2 | ppl 4\n"
        "2026-01-01 10:00:02 | INFO | valid | epoch 008 | valid on 'valid' subset | loss 3.25 | nll_loss 1.7 | bleu 31.4 | wps 9\n"
    )
    done = run(BASH, "-c", f'source "{ROOT}/scripts/common.sh"; epoch_lines <<<"$1"', "x", log)
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.strip().endswith("epoch 8  valid loss 3.25  BLEU 31.4")


# --- samples -----------------------------------------------------------------------------


def test_samples_side_by_side(tmp_path, capsys):
    for name, word in (("base", "house"), ("pruned", "hut")):
        (tmp_path / name).write_text(
            "noise\n"
            + "".join(
                f"S-{i}\tein hau@@ s {i}\nT-{i}\ta house {i}\nH-{i}\t-0.5\ta {word[:2]}@@ {word[2:]} {i}\n"
                f"D-{i}\t-0.5\ta {word} {i}\nP-{i}\t-0.1 -0.2\nH-{i}\t-0.9\tthe second best\n"
                for i in (3, 1, 2)
            )
            + "Generate test with beam=5\n"
        )
    assert (
        show_samples.main([str(tmp_path / "base"), str(tmp_path / "pruned"), "--number", "2"]) == 0
    )
    out = capsys.readouterr().out
    assert (
        out.count("source    ein haus") == 2
        and out.count("base      a house") == 2
        and out.count("pruned    a hut") == 2
    )
    assert show_samples.main([str(tmp_path / "base"), str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err


@given(st.sets(st.integers(0, 999), min_size=1), st.integers(1, 20))
def test_chosen_samples_are_distinct(numbers, how_many):
    chosen = show_samples.choose(numbers, how_many)
    assert len(set(chosen)) == len(chosen) == min(how_many, len(numbers)) and set(chosen) <= numbers


# --- set-up ------------------------------------------------------------------------------

TOOLS = "bash sh sed cat dirname basename ls mkdir rm mv mktemp date uname cut env tail touch chmod"


@pytest.fixture
def narrow_path(tmp_path):
    """A folder for PATH with the usual tools, but no Python, no compiler and no uv."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS.split():
        (folder / tool).symlink_to(shutil.which(tool))
    return folder


def base_python(folder, name, version, info="header pip"):
    """A Python that knows its version and makes environments that are ``sys.executable``."""
    return executable(
        folder / name,
        f"""#!{BASH}
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin"; cat >"$3/bin/python" <<'END'
#!{BASH}
echo "$*" >>"$(dirname "$0")/calls"
case "$*" in *"check_env.py imports"*) exit 0 ;; *"-m pip"*) exit "${{FAKE_PIP:-1}}" ;; esac
exec "{sys.executable}" "$@"
END
        chmod +x "$3/bin/python" ;;
    "-c"*) echo "{version} {info}" ;;
esac
""",
    )


def setup(project, **environment):
    return run(BASH, project / "scripts/setup.sh", cwd=project, **environment)


def refused(done, *words):
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_unsupported_python(project, narrow_path):
    base_python(narrow_path, "python3", "3.9.2")
    refused(
        setup(project, PATH=str(narrow_path)),
        "python3 3.9.2",
        "3.11, 3.12 or 3.13 is needed",
        "PYTHON=",
    )
    assert not (project / ".venv").exists()


def test_missing_python(project, narrow_path):
    refused(setup(project, PATH=str(narrow_path)), "found no python3")
    refused(
        setup(project, PATH=str(narrow_path), PYTHON="/nowhere/python3.12"), "/nowhere/python3.12"
    )


def test_stand_in_that_does_not_run_is_passed_over(project, narrow_path):
    executable(narrow_path / "python3.11", f"#!{BASH}\necho 'not installed' >&2\nexit 127\n")
    refused(setup(project, PATH=str(narrow_path)), "python3.11 that does not run")
    base_python(narrow_path, "python3", "3.13.1")
    refused(setup(project, PATH=str(narrow_path)), "no working C++ compiler", "Python 3.13.1")


def test_missing_compiler_and_headers(project, narrow_path):
    base_python(narrow_path, "python3.11", "3.11.7", "noheader pip")
    executable(narrow_path / "g++", f"#!{BASH}\nexit 1\n")  # is there, does not work
    refused(setup(project, PATH=str(narrow_path)), "no working C++ compiler", "g++")
    executable(narrow_path / "g++", f"#!{BASH}\nexit 0\n")
    refused(setup(project, PATH=str(narrow_path)), "Python.h", "python3.11-dev")
    assert not (project / ".venv").exists()


def test_make_passes_refusals_on(project, narrow_path):
    (narrow_path / "make").symlink_to(shutil.which("make"))
    done = run("make", "setup", cwd=project, PATH=str(narrow_path))
    assert done.returncode == 2 and "found no python3" in done.stderr


complete = pytest.mark.skipif(
    any(
        list(check_env.missing(ROOT / f"requirements/{name}.txt", own=True))
        for name in ("build", "run", "test")
    ),
    reason="the environment of the tests was not made with the pinned versions",
)


@pytest.fixture
def made(project, narrow_path):
    """A project whose environment setup.sh has made with a stand-in Python."""
    base_python(narrow_path, "python3.11", "3.11.7")
    executable(narrow_path / "c++", f"#!{BASH}\nexit 0\n")
    done = setup(project, PATH=str(narrow_path))
    assert done.returncode == 0, done.stderr
    return project, narrow_path


@complete
def test_second_set_up_is_cheap(made):
    project, path = made
    calls = project / ".venv/bin/calls"
    calls.unlink()
    done = setup(project, PATH=str(path))
    assert done.returncode == 0 and done.stdout == ""
    assert (
        calls.read_text() == "scripts/check_env.py key\n"
    )  # one look, nothing imported or installed


@complete
def test_changed_pins_are_noticed(made):
    project, path = made
    (project / ".venv/keepsake").touch()
    pins = project / "requirements/run.txt"
    pins.write_text(pins.read_text() + "\n# a comment\n")
    assert "is ready" in setup(project, PATH=str(path)).stdout
    pins.write_text(pins.read_text().replace("psutil==", "psutil==0."))
    done = setup(project, PATH=str(path))  # psutil must be installed, and the stand-in's pip fails
    assert (
        done.returncode == 1
        and "run it again" in done.stderr
        and (project / ".venv/keepsake").exists()
    )
    assert not (project / ".venv/.srp-ready").exists()
    assert "-m pip install" in (project / ".venv/bin/calls").read_text()


@complete
@pytest.mark.parametrize("damage", ["no stamp", "no python"])
def test_half_made_environment_is_built_again(made, damage):
    project, path = made
    (project / ".venv/leftover").touch()
    (project / ".venv" / {"no stamp": ".srp-ready", "no python": "bin/python"}[damage]).unlink()
    done = setup(project, PATH=str(path))
    assert done.returncode == 0 and "building it again" in done.stdout
    assert not (project / ".venv/leftover").exists() and (project / ".venv/.srp-ready").exists()


@complete
def test_existing_environment_is_kept(made, narrow_path):
    project, path = made
    (project / ".venv/.srp-created").unlink()  # as if somebody else had made it
    (project / ".venv/.srp-ready").unlink()
    (project / ".venv/keepsake").touch()
    done = setup(project, PATH=str(path))
    assert done.returncode == 0 and "existing environment" in done.stdout
    assert (project / ".venv/keepsake").exists()
    (path / "make").symlink_to(shutil.which("make"))
    (path / "find").symlink_to(shutil.which("find"))
    assert run("make", "distclean", cwd=project, PATH=str(path)).returncode == 0
    assert (project / ".venv/keepsake").exists()


def test_folder_that_is_no_environment_is_not_touched(project, narrow_path):
    (project / "papers").mkdir()
    (project / "papers/thesis").touch()
    refused(setup(project, PATH=str(narrow_path), VENV="papers"), "papers exists", "VENV=DIR")
    assert (project / "papers/thesis").exists()


def installed_versions(tmp_path, monkeypatch, **versions):
    """Make ``check_env`` see these distributions only."""
    monkeypatch.setattr(check_env, "installed", lambda name: versions.get(name.replace("-", "_")))


def test_official_fairseq_is_refused(tmp_path, monkeypatch):
    installed_versions(tmp_path, monkeypatch, fairseq="0.12.2", torch="2.13.0")
    assert "official fairseq 0.12.2" in check_env.refusal()


@pytest.mark.parametrize(
    "torch, good",
    [
        ("2.9.1+cu128", False),
        ("1.12.1", False),
        ("2.10.0", True),
        ("2.13.0+cpu", True),
        ("3.0", True),
    ],
)
def test_torch_of_existing_environment(tmp_path, monkeypatch, torch, good):
    installed_versions(tmp_path, monkeypatch, fairseq_fixed="0.12.3.1", torch=torch)
    assert (check_env.refusal() is None) == good


def test_existing_environment_gets_only_what_is_missing(tmp_path, monkeypatch):
    installed_versions(
        tmp_path,
        monkeypatch,
        torch="2.11.0+cu128",
        numpy="2.3.0",
        cython="3.1",
        setuptools="70",
        fairseq_fixed="0.12.3",
    )
    build, more = (ROOT / f"requirements/{name}.txt" for name in ("build", "run"))
    assert [r.split("==")[0] for r in check_env.missing(build, own=False)] == ["wheel"]
    assert f"fairseq-fixed=={check_env.pins(more)['fairseq-fixed']}" in list(
        check_env.missing(more, own=False)
    )
    assert "torch" in [r.split("==")[0] for r in check_env.missing(build, own=True)]


def test_every_pin_has_its_reason():
    for path in (ROOT / "requirements").glob("*.txt"):
        assert check_env.pins(path)
        for line in path.read_text().splitlines():
            if line and not line.startswith("#"):
                requirement, _, reason = line.partition("#")
                assert "==" in requirement and len(reason.split()) >= 3, line
