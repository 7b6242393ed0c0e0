"""The runner of comparisons: every model once, again only when it is another."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from tests.support.training import ROOT, write_corpus

sys.path[:0] = [str(ROOT / "benchmarks" / "study"), str(ROOT / "benchmarks")]

import pictures  # noqa: E402
import run as runner  # noqa: E402
import tables  # noqa: E402
import translation_speed  # noqa: E402
from grid import GridError, flags, read_grid  # noqa: E402

from src.errors import ending_program
from src.evaluation.bleu import detokenizer  # noqa: E402
from src.files import sole_process  # noqa: E402

GRID = """
data: DATA
work: WORK
options:
  arch: srp
  encoder-embed-dim: 16
  encoder-ffn-embed-dim: 24
  encoder-layers: 1
  decoder-layers: 1
  encoder-attention-heads: 2
  decoder-attention-heads: 2
  task: SRPtranslation
  criterion: srp
  optimizer: srp_adam
  lr: 1e-3
  max-tokens: 200
  cpu: true
  num-workers: 0
  scoring-batches: 2
  no-progress-bar: true
translate: {beam: 2, batch-size: 4, max-len-b: 5, cpu: true}
models:
  base: {tool: train, options: {max-epoch: 1}}
  "cut, {rate}":
    each: {rate: [{rate: 0.5}, 0.7]}
    tool: pruning
    from: base
    beside: base
    checkpoint: last
    options: {compression-rate: "{rate}"}
  "sparse {pattern}":
    each: {pattern: ["2:4"]}
    tool: finetuning
    from: base
    options: {max-epoch: 1}
    sparsity: {pattern: "{pattern}", target_sparsity: 0.4, prune_type: magnitude}
  translated:
    tool: distill_data
    from: base
    options: {beam: 1, max-len-b: 5, batch-size: 8, cpu: true, without-original: true}
  distilled:
    tool: finetuning
    from: "cut, 0.5"
    data: translated
    options: {max-epoch: 1}
"""


@pytest.fixture(scope="module")
def grid_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "data").mkdir()
    write_corpus(folder / "data")
    text = GRID.replace("DATA", str(folder / "data")).replace("WORK", str(folder / "work"))
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def results(grid_file):
    grid = read_grid(grid_file)
    assert runner.run(grid, "") == 0
    return json.loads(grid.results.read_text())


def test_every_model_is_made_and_translated(results):
    names = ["base", "cut, 0.5", "cut, 0.7", "sparse 2:4", "translated", "distilled"]
    assert [row["name"] for row in results] == names
    base, half, _, sparse, translated, distilled = results
    assert "bleu" not in translated and translated["seconds"] > 0
    assert f"src/distill_data.py {base['command'].split()[2]} " in translated["command"]
    assert f"src/finetuning.py {translated['folder']}/data " in distilled["command"]
    assert distilled["parameters"] == half["parameters"]
    assert half["parameters"] < 0.55 * base["parameters"]
    assert sparse["nonzero_parameters"] < sparse["parameters"] == base["parameters"]
    for row in [base, half, sparse, distilled]:
        assert row["bleu"] >= 0 and row["seed"] == 1 and row["seconds"] > 0
        assert row["valid_loss"] > 0 and row["training_threads"] >= 1
        assert row["command"].startswith(f"python src/{row['tool']}.py ")
    assert f"--pretrained-model {base['folder']}/checkpoint_best.pt" in half["command"]


def test_what_is_done_is_not_repeated(grid_file, results, monkeypatch):
    monkeypatch.setattr(runner, "run_tool", lambda *_: pytest.fail("it ran again"))
    assert runner.run(read_grid(grid_file), "") == 0


def test_list(grid_file, results, monkeypatch, capsys):
    command = ["run.py", str(grid_file), "--list", "--only", "0.7"]
    monkeypatch.setattr(sys, "argv", command)
    runner.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["done  base", "done  cut, 0.7"]
    assert "python src/pruning.py" in lines[1]


def test_a_pattern_that_matches_nothing_is_refused(grid_file, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", str(grid_file), "--only", "bass"])
    with pytest.raises(SystemExit) as stopped, ending_program():
        runner.main()
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: --only bass: matches no model; --list shows their names\n"
    )


def test_what_has_changed_is_made_again(grid_file, results, tmp_path):
    before = {m.name: m.key for m in read_grid(grid_file).models}
    text = grid_file.read_text()
    changes = {
        "lr: 1e-3": ("lr: 2e-3", set(before)),
        "0.7]": ("0.8]", {"cut, 0.8"}),
        "target_sparsity: 0.4": ("target_sparsity: 0.3", {"sparse 2:4"}),
        "beam: 1": ("beam: 2", {"translated", "distilled"}),
    }
    for old, (new, expected) in changes.items():
        path = tmp_path / "changed.yaml"
        path.write_text(text.replace(old, new))
        models = read_grid(path).models
        assert {m.name for m in models if before.get(m.name) != m.key} == expected
        assert all(runner.finished(m) is None for m in models if m.name in expected)


def test_a_killed_training_goes_on(grid_file, results, tmp_path, monkeypatch):
    path = tmp_path / "longer.yaml"
    text = grid_file.read_text().replace("max-epoch: 1", "max-epoch: 2", 1)
    path.write_text(text)
    grid = read_grid(path)
    base = grid.models[0]
    original = runner.run_tool

    def killed(tool, arguments, log):
        original(tool, [*arguments, "--stop-time-hours", "1e-9"], log)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_tool", killed)
    with pytest.raises(KeyboardInterrupt):
        runner.run(grid, "^base$")
    assert runner.finished(base) is None
    before = float((base.folder / "seconds").read_text())
    monkeypatch.setattr(runner, "run_tool", original)
    assert runner.run(grid, "^base$") == 0
    row = runner.finished(base)
    assert row["seconds"] > before > 0 and row["num_updates"] > 0
    assert torch.load(base.path)["extra_state"]["train_iterator"]["epoch"] == 3


def test_a_failure_leaves_out_what_is_made_from_it(grid_file, tmp_path, capfd):
    path = tmp_path / "wrong.yaml"
    path.write_text(grid_file.read_text().replace("lr: 1e-3", "lr: x"))
    assert runner.run(read_grid(path), "base|0.5") == 2
    assert "train failed (2)" in capfd.readouterr().err


def test_two_models_at_a_time(grid_file, results, tmp_path):
    path = tmp_path / "again.yaml"
    path.write_text(grid_file.read_text().replace("/work\n", "/again\n"))
    grid = read_grid(path)
    assert runner.run(grid, "", jobs=2) == 0
    rows = json.loads(grid.results.read_text())
    assert [row["name"] for row in rows] == [row["name"] for row in results]
    for row, alone in zip(rows, results):
        assert row["key"] == alone["key"] and row.get("parameters") == alone.get("parameters")


def test_a_study_goes_on_elsewhere(grid_file, results, tmp_path, monkeypatch):
    """With the results file alone, a new model costs itself and what it is made from."""
    path = tmp_path / "elsewhere.yaml"
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(results))
    text = grid_file.read_text().replace("/work\n", f"/elsewhere\nresults: {kept}\n")
    path.write_text(text)
    grid = read_grid(path)
    monkeypatch.setattr(runner, "run_tool", lambda *_: pytest.fail("it ran again"))
    assert runner.run(grid, "") == 0
    monkeypatch.undo()
    everything = runner.missing(grid.models, {})
    assert everything == grid.models
    path.write_text(text.replace("0.7]", "0.8]"))
    grid = read_grid(path)
    assert [m.name for m in runner.missing(grid.models, runner.recorded(grid))] == [
        "base",
        "cut, 0.8",
    ]
    assert runner.run(grid, "") == 0
    names = [row["name"] for row in runner.collect(grid)]
    assert names == ["base", "cut, 0.5", "cut, 0.8", "sparse 2:4", "translated", "distilled"]
    assert [m.name for m in grid.models if runner.finished(m)] == ["base", "cut, 0.8"]
    others = json.loads(kept.read_text())[len(names) :]
    assert [(row["name"], row["key"]) for row in others] == [("cut, 0.7", results[2]["key"])]
    assert runner.run(grid, "0.5", reproduce=True) == 0
    assert runner.finished(grid.models[1])["key"] == results[1]["key"]


@pytest.fixture
def tested(grid_file, results, tmp_path, monkeypatch):
    """The grid, whose first model translates without a fault, and rows with significance."""
    monkeypatch.setattr(tables, "SAMPLES", 50)
    rows = [dict(row) for row in results if "bleu" in row]
    truth = tmp_path / "reference"
    truth.write_text("\n".join(tables.hypotheses(Path(rows[0]["folder"]))) + "\n")
    grid = replace(read_grid(grid_file), reference=truth)
    tables.add_significance(grid, rows)
    return grid, rows


def test_significance_stays_known_where_translations_are_gone(tested, tmp_path):
    grid, rows = tested
    found = [(row.get("p_base"), row.get("p_beside")) for row in rows]
    assert found[0] == (None, None) and 0 <= found[1][0] <= 1 and found[1][1] == found[1][0]
    elsewhere = [{**row, "folder": str(tmp_path), "p_base": None, "p_beside": None} for row in rows]
    tables.add_significance(grid, elsewhere)
    assert [(row["p_base"], row["p_beside"]) for row in elsewhere[1:]] == found[1:]
    for row in elsewhere:
        row.pop("p", None)
    tables.add_significance(grid, elsewhere)
    assert all(row["p_base"] is None for row in elsewhere[1:])


def test_two_models_are_compared(tested, grid_file, monkeypatch, capsys):
    grid, rows = tested
    cut = next(row for row in rows if row["name"] == "cut, 0.5")
    (line,) = tables.compare(grid, rows, ["base", "cut, 0.5"])
    scores = f"base {rows[0]['bleu']:.2f} and cut, 0.5 {cut['bleu']:.2f} (seed 1)"
    assert line == f"{scores}: p {cut['p_base']:.3f}"
    (line,) = tables.compare(grid, rows, ["cut, 0.5", "sparse 2:4"])  # neither is the base
    assert re.search(r"\(seed 1\): p [01]\.\d{3}$", line)
    for names, words in (
        (["base", "nope"], "--compare 'nope': is no model of the grid"),
        (["base", "base"], "--compare 'base': give two models"),
        (["base", "cut, 0.5"], "--compare 'base' 'cut, 0.5': not both are made yet"),
    ):
        with pytest.raises(GridError, match=words):
            tables.compare(grid, rows[:1], names)
    monkeypatch.setattr(sys, "argv", ["tables.py", str(grid_file), "--compare", "base", "nope"])
    with pytest.raises(SystemExit) as stopped, ending_program():
        tables.main()
    assert stopped.value.code == 2
    assert "error: --compare 'nope'" in capsys.readouterr().err


def test_tables_and_pictures(grid_file, results, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tables.py", str(grid_file)])
    monkeypatch.setattr(tables, "SAMPLES", 50)
    tables.main()
    work = read_grid(grid_file).work
    text = (work / "results.md").read_text()
    assert "cut, 0.5" in text and "sparse 2:4" in text and "BLEU: nrefs" in text
    for name in ("quality", "widths"):
        assert (work / f"{name}.png").stat().st_size > 5000
    table = pd.read_csv(work / "results.csv").set_index("name")
    assert len(table) == 5
    own = {row["name"]: row["num_updates"] for row in results if "bleu" in row}
    # of the base, of the stage, and its own
    assert table["all updates"]["base"] == own["base"] > 0
    cut = table["all updates"]["cut, 0.5"]
    assert table["all updates"]["distilled"] == cut + own["distilled"] > cut >= own["base"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("tool: pruning", "tool: prune", "tool must be one of train, pruning, finetuning"),
        ("from: base", "from: bass", "from 'bass' is no model above it"),
        ("data: translated", "data: base", "data 'base' is no model of tool distill_data"),
        ('from: "cut, 0.5"', "from: translated", "from and teacher name models, not data"),
        ("translate:", "translation:", "translation is unknown; valid are data"),
        ("beside: base", "besides: base", "besides is unknown"),
        ("data: ", "data: /no/such/", "no such folder"),
        ("models:", "models: [", "can't be read"),
        ('pattern: "{pattern}"', 'pattern: "{form}"', "{form} stands for nothing"),
        ("translate:", "seeds: 1\ntranslate:", "seeds must be a list of numbers, not 1"),
        ("translate:", "seeds: [a]\ntranslate:", "seeds must be a list of numbers"),
        ("each: {rate: [{rate: 0.5}, 0.7]}", "each: {rate: 3}", "rate must be a list"),
        ("options: {max-epoch: 1}", "options: [lr]", "'base': options must be a mapping"),
        ("data: ", "data: 3 #", "data must be a name, not 3"),
        ("data: ", "# caf\xe9\ndata: ", "can't be read"),
        ("checkpoint: last", "checkpoint: middle", "checkpoint must be best or last"),
        ("beside: base", "beside: nope", "'cut, {rate}': beside 'nope' is no model"),
        ("cut, {rate}", "cut", "'cut' is there twice"),
        ("work: ", "reference: /no/such\nwork: ", "reference /no/such: no such file"),
        ("work: ", "extends: nope.yaml\nwork: ", "nope.yaml: can't be read"),
        ("work: ", "extends: [a]\nwork: ", "extends must be a name"),
        ("work: ", "extends: grid.yaml\nwork: ", "extends grid.yaml, which extends this file"),
    ],
)
def test_mistakes_are_named(grid_file, tmp_path, old, new, message):
    path = tmp_path / "grid.yaml"
    path.write_text(grid_file.read_text().replace(old, new, 1), encoding="latin-1")
    with pytest.raises(GridError, match=message) as error:
        read_grid(path)
    assert error.value.code == 2 and "\n" not in str(error.value)


def test_models_in_a_list(grid_file, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(grid_file.read_text().partition("models:")[0] + "models: [a]\n")
    with pytest.raises(GridError, match="models must be a mapping"):
        read_grid(path)


def test_a_grid_extends_another(grid_file, tmp_path):
    (tmp_path / "grid.yaml").write_text(grid_file.read_text())
    path = tmp_path / "more.yaml"
    path.write_text(
        f"extends: grid.yaml\nwork: {tmp_path}\nseeds: [2]\noptions: {{lr: 5e-4, cpu: false}}\n"
        "models:\n"
        "  translated: {tool: distill_data, from: base, options: {beam: 3}}\n"
        '  more: {tool: finetuning, from: "cut, 0.7"}\n'
    )
    ours, theirs = read_grid(path), read_grid(tmp_path / "grid.yaml")
    assert [m.name for m in ours.models] == [*(m.name for m in theirs.models), "more"]
    assert (ours.data, ours.translate) == (theirs.data, theirs.translate)
    assert ours.work == tmp_path and ours.results == tmp_path / "results.json"
    for mine, other in zip(ours.models, theirs.models):
        assert (mine.seed, other.seed) == (2, 1) and mine.key != other.key
        if mine.tool == "distill_data":
            assert mine.options == {"beam": 3}
        else:
            assert mine.options == {**other.options, "lr": "5e-4", "cpu": False}
            assert "--cpu" not in mine.arguments(ours.data)


def test_flags():
    given = {"a": 1, "b": True, "c": False, "d": None, "e": -1, "f": {"x": 1}}
    assert flags(given) == ["--a", "1", "--b", "--e=-1", "--f", '{"x": 1}']


@pytest.mark.parametrize(
    "option",
    ["--rounds 1", "--threads 0", "--sentences 0", "--batch-size 0", "--beam 0"] + ["--subset x"],
)
def test_speed_is_refused_before_any_timing(option, grid_file, monkeypatch, capsys):
    data = str(read_grid(grid_file).data)
    command = ["translation_speed.py", data, "no.pt", *option.split()]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop, ending_program():
        translation_speed.main()
    assert stop.value.code == 2
    wrong = option if "subset" not in option else "no.pt: no such checkpoint"
    assert f"error: {wrong}" in capsys.readouterr().err


def test_another_translation_is_noticed(grid_file, results, tmp_path, monkeypatch):
    """Options of the translation, and which checkpoint, are no part of a model's key."""
    path = tmp_path / "search.yaml"
    text = grid_file.read_text().replace("/work\n", f"/work\nresults: {tmp_path}/kept.json\n")
    rows = [{**row, "p": {results[0]["key"]: 0.5}} for row in results]
    (tmp_path / "kept.json").write_text(json.dumps(rows))
    last = 'each: {pattern: ["2:4"]}'
    text = text.replace("beam: 2", "beam: 1").replace(last, f"{last}\n    checkpoint: last")
    path.write_text(text)
    done = {m.name: runner.finished(m) for m in read_grid(grid_file).models}
    original = runner.run_tool

    def translating(tool, *given):
        if tool != "generate":
            raise RuntimeError("it was trained again")
        return original(tool, *given)

    monkeypatch.setattr(runner, "run_tool", translating)
    try:
        grid = read_grid(path)
        assert runner.run(grid, "^(base|translated|sparse 2:4)$") == 0
        rows = {row["name"]: row for row in runner.collect(grid)}
        assert rows["base"]["beam"] == 1 and rows["distilled"]["beam"] == 2
        assert "checkpoint_last.pt" in rows["sparse 2:4"]["translate_command"]
        assert rows["base"]["seconds"] == done["base"]["seconds"]
        # what was found out about the earlier translation went with it
        assert "p" not in rows["base"] and not rows["distilled"]["p"]
        others = ["cut, 0.5", "cut, 0.7", "distilled"]
        assert tables.otherwise(grid, list(rows.values())) == others
    finally:
        for model in read_grid(grid_file).models:
            runner.write(model.folder / runner.DONE, json.dumps(done[model.name]))


def test_a_checkpoint_copied_by_half_is_none(grid_file, tmp_path, monkeypatch):
    model = read_grid(grid_file).models[0]
    model.work, model.checkpoint = tmp_path, "best"
    monkeypatch.setattr(
        runner, "run_tool", lambda *_: (model.folder / "checkpoint_last.pt").write_text("all")
    )

    def killed(source, target):
        Path(target).write_text("al")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner.shutil, "copyfile", killed)
        runner.train(read_grid(grid_file), model)
    runner.train(read_grid(grid_file), model)
    assert model.path.read_text() == "all"


def test_rows_that_came_in_between_stay(grid_file, results, tmp_path):
    """tables.py computes for minutes, while run.py may finish models."""
    grid = replace(read_grid(grid_file), results=tmp_path / "kept.json")
    grid.results.write_text(json.dumps(results))
    runner.keep(grid, results[:2])
    assert json.loads(grid.results.read_text()) == results


def test_names_and_neighbours_are_the_grids(grid_file, results, tmp_path):
    path = tmp_path / "renamed.yaml"
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(results))
    text = grid_file.read_text().replace("/work\n", f"/elsewhere\nresults: {kept}\n")
    text = text.replace("  base: {", "  uncut: {").replace("from: base", "from: uncut")
    path.write_text(text.replace("beside: base", 'beside: "sparse 2:4"'))
    rows = runner.collect(read_grid(path))
    assert [row["name"] for row in rows[:2]] == ["uncut", "cut, 0.5"]
    assert rows[1]["from"] == "uncut" and rows[1]["beside"] == "sparse 2:4"
    tables.add_updates(rows, rows)
    assert rows[1]["all updates"] == rows[0]["updates"] + rows[1]["updates"]


def test_the_base_is_the_grids_first_model(grid_file, results, monkeypatch):
    """Not a small model from scratch, which has no parent either."""
    monkeypatch.setattr(tables, "SAMPLES", 50)
    grid = read_grid(grid_file)
    grid = replace(grid, reference=Path(results[0]["folder"]) / "no")
    monkeypatch.setattr(tables, "references", lambda _: ["a"] * 4)
    monkeypatch.setattr(tables, "p_value", lambda *_: 0.25)
    scratch = {**results[1], "name": "from scratch", "from": None, "key": "x", "beside": None}
    rows = [dict(row) for row in [scratch, *results[1:]] if "bleu" in row]
    tables.add_significance(grid, rows)
    assert all(row.get("p_base") is None for row in rows)
    rows = [{**row, "p": {}} for row in [*results, scratch] if "bleu" in row]
    tables.add_significance(grid, rows)
    assert "p_base" not in rows[0] and all(row["p_base"] == 0.25 for row in rows[1:])


def test_lines_end_with_newlines_alone(tmp_path):
    (tmp_path / "generate-test.txt").write_text("D-0\t-1\ta\x85b\u2028c\n", encoding="utf-8")
    moses = detokenizer("moses", "en")
    assert tables.hypotheses(tmp_path) == [moses("a\x85b\u2028c")]
    (tmp_path / "raw.en").write_bytes("a\x85b\r\n\n".encode())
    grid = SimpleNamespace(reference=tmp_path / "raw.en")
    assert tables.references(grid) == ["a\x85b\r", ""]  # the last one is empty


def test_one_training_at_a_time_in_a_folder(grid_file, tmp_path):
    """A runner that was killed leaves its trainings behind; they go on."""
    grid = read_grid(grid_file)
    model = grid.models[0]
    model.work = tmp_path
    model.folder.mkdir()
    with sole_process(str(model.folder), RuntimeError):
        with pytest.raises(RuntimeError, match="another process is making it"):
            runner.make(grid, model)
    assert not (model.folder / "train.log").exists()


def test_speed_needs_the_first_model(grid_file, results, tmp_path, capsys):
    grid = read_grid(grid_file)
    for model in grid.models[:2]:
        model.speed = True
    grid.models[0].work = tmp_path
    assert runner.measure_speed(grid) == 2
    assert "error: --speed: 'base' is not here" in capsys.readouterr().err


def test_tables_of_recorded_rows_alone(grid_file, results, tmp_path, monkeypatch, capsys):
    """As of a fresh copy of the repository, in which no model was made."""
    path, kept, work = tmp_path / "grid.yaml", tmp_path / "kept.json", tmp_path / "none"
    first, *others = (dict(row, folder=str(work), p={"x": 0.5}) for row in results)
    kept.write_text(json.dumps([first, *(dict(r, p={first["key"]: 0.25}) for r in others)]))
    text = grid_file.read_text().replace("/work\n", f"/none\nresults: {kept}\n")
    path.write_text(text.replace(str(grid_file.parent / "none"), str(work)))
    monkeypatch.setattr(sys, "argv", ["tables.py", str(path)])
    tables.main()
    text = (work / "results.md").read_text()
    assert "0.250" in text and "equal models have about 0.4" in text


def test_shares_are_of_the_base(results):
    """Of a small model from scratch too, which lost nothing itself."""
    base, cut = (dict(row) for row in results[:2])
    scratch = {**cut, "name": "from scratch", "uncut_parameters": cut["parameters"]}
    share = cut["parameters"] / base["parameters"]
    assert list(tables.frame([base, cut, scratch], "base")["share"]) == [1, share, share]
    assert list(tables.frame([cut, scratch], "base")["share"]) == [share, 1]


def test_p_is_of_one_side(tmp_path):
    """What the tables say about sacreBLEU's p."""
    random = Random(1)
    truth = [" ".join(random.choices("abcdefgh", k=8)) for _ in range(200)]
    folders = []
    for wrong in (0, 1):
        # as good as each other, each wrong in the other half of the sentences
        lines = [t if i % 2 == wrong else f"{t[:7]} x x x x" for i, t in enumerate(truth)]
        folders.append(tmp_path / str(wrong))
        folders[-1].mkdir()
        text = "".join(f"D-{i}\t0\t{line}\n" for i, line in enumerate(lines))
        (folders[-1] / "generate-test.txt").write_text(text)
    assert 0.3 < tables.p_value(*folders, truth, False) < 0.55


def test_only_the_base_is_marked(results, monkeypatch):
    shown = []
    monkeypatch.setattr(pictures.Figure, "savefig", lambda self, *_, **__: shown.append(self))
    rows = [row for row in results if "bleu" in row]
    for kept in (rows, rows[1:]):
        pictures.draw_quality(kept, None, "base")
    labels = [figure.axes[0].get_legend_handles_labels()[1] for figure in shown]
    assert labels[0] == labels[1] == ["cut, …", "sparse 2:4", "distilled"]
    assert [len(figure.axes[0].texts) for figure in shown] == [1, 0]


def test_the_widths_of_one_model_fit(results, monkeypatch):
    monkeypatch.setattr(pictures.Figure, "savefig", lambda self, *_, **__: shown.append(self))
    shown = []
    pictures.draw_widths([row for row in results if row["name"] == "cut, 0.5"], None)
    shown[0].draw_without_rendering()
    beside = shown[0].axes[1].yaxis.label.get_window_extent()
    assert 0 <= beside.y0 and beside.y1 <= shown[0].bbox.y1


def test_many_models_are_named_for_readers(results, monkeypatch):
    """Too many for a colour each: one for a group, without the braces of its file."""
    shown = []
    monkeypatch.setattr(pictures.Figure, "savefig", lambda self, *_, **__: shown.append(self))
    monkeypatch.setattr(pictures, "_MOST_SERIES", 2)
    pictures.draw_quality([row for row in results if "bleu" in row], None, "base")
    labels = shown[0].axes[0].get_legend_handles_labels()[1]
    assert labels == ["cut, any rate", "sparse any pattern", "distilled"]


def test_of_many_models_those_of_several_rates_are_curves(monkeypatch):
    shown = []
    monkeypatch.setattr(pictures.Figure, "savefig", lambda self, *_, **__: shown.append(self))
    monkeypatch.setattr(pictures, "_MOST_SERIES", 3)
    sizes = {"a, x, 0.5": 5, "a, x, 0.1": 1, "b, 0.5": 6, "b, 0.1": 2, "c, 0.1": 3, "d": 4}
    rows = [
        {"name": name, "group": name, "values": {}, "parameters": size, "bleu": 10 * size}
        for name, size in sizes.items()
    ]
    pictures.draw_quality(rows, None, "base")
    lines = shown[0].axes[0].lines
    assert [line.get_label() for line in lines] == ["one rate only", "a, x", "b"]
    assert [list(line.get_ydata()) for line in lines] == [[30, 40], [10, 50], [20, 60]]
    assert [line.get_linewidth() > 0 for line in lines] == [False, True, True]


def test_two_may_write_the_results(tmp_path, monkeypatch):
    path, replace_file = tmp_path / "results.json", runner.os.replace

    def after_another(part, target):
        monkeypatch.undo()
        runner.write(path, "another's")
        replace_file(part, target)

    monkeypatch.setattr(runner.os, "replace", after_another)
    runner.write(path, "ours")
    assert path.read_text() == "ours" and list(tmp_path.iterdir()) == [path]
