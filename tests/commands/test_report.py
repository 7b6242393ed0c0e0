"""The table and the picture of several runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from src import report
from src.errors import ending_program
from src.evaluation import report_picture as picture
from src.evaluation.report_table import read_runs, valid_loss
from tests.support.reports import RUNS, SIGNATURE, widths, write_run
from tests.support.translation import quiet_logging


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / "runs", name) for name in RUNS]


def call(arguments):
    with quiet_logging():
        report.main([str(a) for a in arguments])


def test_table_is_written_as_numbers_and_for_people(runs, capsys):
    call(runs)
    output = runs[0].parent
    numbers = pd.read_csv(output / "report.csv")
    assert numbers["name"].tolist() == list(RUNS)
    assert numbers["bleu"].tolist() == [run["bleu"] for run in RUNS.values()]
    assert numbers["share"].tolist() == pytest.approx([1, 0.4, 0.2, 0.2])
    assert numbers["speed_up"].tolist() == pytest.approx([1, 1.6, 2.2, 2.5])
    # the tested checkpoint's row of results.csv, not just the last one
    losses = numbers["valid_loss"].tolist()
    assert losses[0] == 3.25 and losses[3] == 3.5 and pd.isna(losses[1])

    printed = capsys.readouterr().out
    markdown = (output / "report.md").read_text(encoding="utf-8")
    for text in (printed, markdown):
        for figure in ("41.40", "6,000", "20.0%", "100.0", "0.07", "0.02", "2.50x"):
            assert figure in text
        assert SIGNATURE in text and "NOT comparable" not in text
    assert "(report.png)" in markdown
    assert not list(output.glob("*.tmp"))


def test_the_share_is_of_the_uncut_model_though_the_first_run_is_cut(runs):
    call(runs[1:])
    shares = pd.read_csv(runs[0].parent / "report.csv")["share"].tolist()
    assert shares == pytest.approx([0.4, 0.2, 0.2])


def test_the_files_are_there_though_nobody_reads_the_table(runs):
    tool = Path(report.__file__)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-W", "ignore", tool, *runs]  # torch's warnings are its own
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
    assert (Path(runs[0]).parent / "report.png").is_file()


def test_a_parent_stands_for_its_runs_largest_first(runs, tmp_path):
    parent = runs[0].parent
    (parent / "unrelated").mkdir()
    for name, time in (("stage2", 1000), ("finetuned", 2000)):
        os.utime(parent / name / "report.json", (time, time))
    call([parent])
    assert pd.read_csv(parent / "report.csv")["name"].tolist() == list(RUNS)
    for name, time in (("stage2", 3000), ("finetuned", 2000)):
        os.utime(parent / name / "report.json", (time, time))
    call([parent, "--output", tmp_path / "new" / "folder"])
    names = pd.read_csv(tmp_path / "new" / "folder" / "report.csv")["name"].tolist()
    assert names == ["base", "stage1", "finetuned", "stage2"]


def test_figures_that_do_not_compare_are_said_to(tmp_path, capsys):
    one = write_run(tmp_path / "a", "base")
    two = write_run(
        tmp_path / "b", "base", threads=8, bleu_signature=SIGNATURE.replace("mixed", "lc")
    )
    call([one, two, "--output", tmp_path])
    printed = capsys.readouterr().out
    assert "BLEU is NOT comparable" in printed
    assert "Speed is NOT comparable: threads differ" in printed
    names = pd.read_csv(tmp_path / "report.csv")["name"].tolist()
    assert names == ["a/base", "b/base"]  # told apart


@pytest.mark.parametrize(
    "one, two, what",
    [
        ({"gen_subset": "valid"}, {"gen_subset": "test"}, "the sets (--gen-subset)"),
        ({"reference": None}, {"reference": "raw.test.en"}, "the references (--reference)"),
        (  # of two folders of data
            {"bleu_references_sha256": "1"},
            {"bleu_references_sha256": "2"},
            "the references (--reference)",
        ),
        ({"lenpen": 1}, {"lenpen": 2}, "the searches (--beam, --lenpen)"),
    ],
)
def test_scores_of_different_texts_are_said_to_be(tmp_path, capsys, one, two, what):
    runs = [write_run(tmp_path, "base", **one), write_run(tmp_path, "stage1", **two)]
    call([*runs, "--output", tmp_path])
    printed = capsys.readouterr().out
    assert f"BLEU is NOT comparable: {what} differ" in printed
    assert ("Speed is NOT comparable: gen_subset differ" in printed) == ("gen_subset" in one)


@pytest.mark.parametrize("engine", ["ctranslate2 4.8.5", "pytorch --cpu-bf16"])
def test_speeds_of_different_engines_are_said_to_be(tmp_path, capsys, engine):
    runs = [write_run(tmp_path, "base", engine="pytorch")]
    runs += [write_run(tmp_path, "stage1", engine=engine)]
    call([*runs, "--output", tmp_path])
    printed = capsys.readouterr().out
    assert f"engine {' / '.join(sorted(('pytorch', engine)))}" in printed
    assert "Speed is NOT comparable: engine differ" in printed


@pytest.mark.parametrize(
    "name, value",
    [
        *[("device", "GPU"), ("machine", "another"), ("threads", 1), ("beam", 1)],
        *[("batch_size", 1), ("max_tokens", 4000), ("quantization", "int8")],
        ("vocabulary_map", True),
    ],
)
def test_speeds_of_different_conditions_are_said_to_be(tmp_path, capsys, name, value):
    runs = [write_run(tmp_path, "base"), write_run(tmp_path, "stage1", **{name: value})]
    call([*runs, "--output", tmp_path])
    printed = capsys.readouterr().out
    assert re.findall("Speed is NOT comparable: (.*) differ", printed) == [name]


def test_the_loss_is_that_of_the_last_validation_of_the_checkpoint(tmp_path):
    """A run that was begun anew, or went on, has validated twice after as many updates."""
    run = write_run(tmp_path, "base")
    with open(run / "results.csv", "a") as stream:
        stream.write("40,3.0\n")
    assert valid_loss(run, 40) == 3.0


def test_lengths_that_flops_are_of(tmp_path, capsys):
    runs = [write_run(tmp_path, "base"), write_run(tmp_path, "stage1", flops_target_length=9)]
    call([*runs, "--output", tmp_path])
    said = capsys.readouterr().out
    assert "sentence of 12 source and 13 target / 12 source and 9 target tokens" in said


def test_the_output_is_checked_first(tmp_path, capsys):
    run = write_run(tmp_path, "base")
    with pytest.raises(SystemExit) as stopped, ending_program():
        call([run, "--output", run / "report.json" / "new"])
    assert stopped.value.code == 2
    assert f"{run / 'report.json'} is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped, ending_program():
        call([run, "--output", tmp_path / ("x" * 300)])
    assert stopped.value.code == 2
    assert "can't be made (File name too long)" in capsys.readouterr().err


def test_a_report_of_an_earlier_checkpoint_is_said_to_be_one(runs, capsys):
    for name, time in (("base", 1000), ("stage1", 3000)):
        checkpoint = runs[0].parent / name / "checkpoint_last.pt"
        checkpoint.touch()
        os.utime(checkpoint, (time, time))
        os.utime(runs[0].parent / name / "report.json", (2000, 2000))
    call(runs)
    printed = capsys.readouterr().out
    assert "stage1: its checkpoint is NEWER" in printed
    assert "base: its checkpoint" not in printed


def test_what_is_not_measured_stays_empty(tmp_path, capsys):
    path = write_run(tmp_path, "base", bleu=None, bleu_signature=None, widths={})
    (path / "results.csv").unlink()
    call([path])
    numbers = pd.read_csv(tmp_path / "report.csv")
    assert numbers["bleu"].isna().all() and numbers["valid_loss"].isna().all()
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_picture_shows_every_width_of_the_last_run(runs):
    read = read_runs(runs)
    axes = Figure().subplots()
    picture.draw_widths(axes, read[-1])
    shown = texts(axes)
    expected = [f"{width}/{whole}" for width, whole in read[-1]["widths"].values()]
    assert sorted(t for t in shown if re.fullmatch(r"\d+/\d+", t)) == sorted(expected)
    percents = [f"{100 * w // whole}%" for w, whole in read[-1]["widths"].values()]
    assert sorted(t for t in shown if t.endswith("%")) == sorted(percents)
    assert "finetuned" in axes.get_title(loc="left")


@pytest.mark.parametrize("shared", [False, True])
def test_every_row_of_the_picture_says_what_it_is_of(shared):
    groups = widths(0.5)
    if shared:
        del groups["decoder.embedding"]
    axes = Figure().subplots()
    picture.draw_widths(axes, {"name": "x", "widths": groups})
    shown = [text for text in texts(axes) if not re.search(r"\d[/%]|\d%", text)]
    both = ["self-attention query/key", "self-attention value/output"]
    cross = ["cross-attention query/key", "cross-attention value/output"]
    assert shown == [
        *["ENCODER", "layer 1", "layer 2"],
        "embedding (encoder and decoder)" if shared else "embedding",
        *[*both, "feed-forward"],
        *["DECODER", "layer 1", "layer 2"],
        *([] if shared else ["embedding"]),
        *[*both, *cross, "feed-forward"],
    ]


def test_a_width_of_almost_nothing_is_not_said_to_be_none():
    axes = Figure().subplots()
    picture.draw_widths(axes, {"name": "x", "widths": {"encoder.embedding": [1, 512]}})
    assert "<1%" in texts(axes) and "0%" not in texts(axes)


def test_layers_that_are_gone_are_one_empty_cell():
    groups = {"decoder.embedding": [8, 16]}
    for layer, width in enumerate((0, 12, 0)):
        groups |= {f"decoder.layers.{layer}.{part}": [width, 24] for part in picture.LAYER_ROWS}
    figure = Figure()
    axes = figure.subplots()
    picture.draw_widths(axes, {"name": "x", "widths": groups})
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("removed") == 2 and "DECODER, 1 OF 3 LAYERS" in texts
    assert texts.count("12/24") == len(picture.LAYER_ROWS) and "<1%" not in texts


def test_sizes_have_their_unit():
    assert [picture.millions(n) for n in (6_005_760, 1_201_163, 200_000, 36_400)] == [
        *["6.01 M", "1.2 M", "0.2 M", "36.4 k"]
    ]


def test_shares_can_be_read_on_their_colours():
    def luminance(colour):
        channels = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), channels))

    for share in (number / 100 for number in range(101)):
        ground = luminance(picture.SHARES(share))
        text = luminance(picture.on_share(share))
        # the contrast that WCAG asks of large text, and more
        assert (max(ground, text) + 0.05) / (min(ground, text) + 0.05) > 3.5, share


def test_picture_shows_every_run_and_its_score(runs):
    axes = Figure().subplots()
    picture.draw_bleu(axes, read_runs(runs))
    assert texts(axes) == [f"{n}  {run['bleu']:.1f}" for n, run in RUNS.items()]
    places = [place for points in axes.collections for place in points.get_offsets()]
    expected = [(run["parameters"], run["bleu"]) for run in RUNS.values()]
    assert sorted(map(tuple, places)) == sorted(expected)


@pytest.mark.parametrize("scores", [(0.0,), (0.05, 0.09), (41.0, 0.3)])
def test_no_bleu_below_zero_is_marked(scores):
    runs = [{"name": str(s), "bleu": s, "parameters": 100 + n} for n, s in enumerate(scores)]
    axes = Figure().subplots()
    picture.draw_bleu(axes, runs)
    bottom, top = axes.get_ylim()
    assert bottom < min(scores) and max(scores) < top
    assert all(mark >= 0 for mark in axes.get_yticks() if bottom <= mark <= top)


def test_labels_do_not_overlap():
    points = [(0.1, 0.5), (0.12, 0.51), (0.1, 0.52), (0.9, 0.5)]
    heights = picture._label_heights(points, near=0.25, gap=0.08)
    near = sorted(heights[:3])
    assert min(b - a for a, b in zip(near, near[1:])) >= 0.08 - 1e-9
    assert heights[3] == 0.5


def edit_report(run, **values):
    path = run / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "break_it, parts",
    [
        (lambda run: run / "nothing", ["nothing", "no such folder"]),
        (lambda run: (run / "report.json").unlink(), ["report.json"]),
        (lambda run: (run / "report.json").write_text("{"), ["report.json", "JSON"]),
        (lambda run: (run / "report.json").write_text("{}"), ["lacks", "parameters"]),
        (lambda run: (run / "results.csv").write_text("a\n1\n"), ["results.csv"]),
        (lambda run: edit_report(run, bleu="high"), ["report.json", 'its bleu is "high"']),
        (lambda run: edit_report(run, uncut_parameters=0), ["its uncut_parameters is 0"]),
        (lambda run: edit_report(run, widths={"encoder.embedding": 3}), ["its widths is"]),
    ],
)
def test_refused_in_one_line(tmp_path, capsys, break_it, parts):
    run = write_run(tmp_path / "runs", "base")
    good = write_run(tmp_path / "runs", "stage1")
    changed = break_it(run)
    folder = changed if hasattr(changed, "is_dir") else run
    with pytest.raises(SystemExit) as stopped, ending_program():
        call([folder, good])
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert not list((tmp_path / "runs").glob("report.*"))
