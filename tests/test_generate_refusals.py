"""What generate.py refuses: one line, exit status 2, before any translation."""
# ruff: noqa: F811  (fixtures are imported)

from pathlib import Path

import pytest
import torch
from fairseq_cli import generate as fairseq_generate

from generate_helpers import (
    SEARCH,
    checkpoints,
    corpus,
    hypotheses,
    quiet_logging,
    random_pairs,
    translate,
    write_data,
)
from src import generate


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


REFUSALS = {
    "no path": ([], ["--path: missing"]),
    "missing checkpoint": (["--path", "no.pt"], ["--path no.pt", "no such file"]),
    "folder as checkpoint": (["--path", "{corpus}"], ["--path", "no such file"]),
    "truncated": (["--path", "{damaged}"], ["--path", "truncated"]),
    "unsafe pickle": (["--path", "{unsafe}"], ["--path", "--trust-checkpoint"]),
    "no data": (["data=no-folder", "--path", "{cut}"], ["no-folder", "no such folder"]),
    "empty data": (["data={folder}", "--path", "{cut}"], ["{folder}", "--source-lang"]),
    "no subset": (["--path", "{cut}", "--gen-subset", "test7"], ["test7"]),
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
    "max tokens": (["--path", "{cut}", "--max-tokens", "5"], ["--max-tokens 5", "raise it"]),
    "shards": (
        ["--path", "{cut}", "--distributed-world-size", "2"],
        ["--distributed-world-size 2"],
    ),
    "unknown option": (["--path", "{cut}", "--beams", "2"], ["--beams"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_in_one_line_before_any_work(
    case, corpus, checkpoints, tmp_path, capsys, monkeypatch
):
    def no_work(*args, **kwargs):
        raise AssertionError("translation has begun")

    monkeypatch.setattr(fairseq_generate, "_main", no_work)
    given, expected = REFUSALS[case]
    places = {"corpus": corpus, "cut": checkpoints.cut, "folder": str(tmp_path)}
    for name, make in (
        ("damaged", lambda: damaged(checkpoints, tmp_path)),
        ("unsafe", lambda: unsafe(checkpoints, tmp_path)),
        ("other", lambda: other_data(tmp_path)),
    ):
        if any("{" + name + "}" in argument for argument in given):
            places[name] = make()
    given = [argument.format(**places) for argument in given]
    data = [a[5:] for a in given if a.startswith("data=")] or [corpus]
    arguments = data + SEARCH + [a for a in given if not a.startswith("data=")]
    with pytest.raises(SystemExit) as stopped, quiet_logging():
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
