"""A pipeline's steps are done once, go on after a kill and follow changed options."""

import multiprocessing
import os
import time

import pytest

from src.errors import UserError
from src.files import sole_process
from src.pipeline.runner import ASIDE, Pipeline, StepFailed
from src.pipeline.steps import Step, content_digest

# Counts in a file, and ends when it has counted to what is asked for.
COUNTER = """
import sys, time
path, target, wait = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
for source in sys.argv[4:]:
    open(source).read()
try:
    n = int(open(path).read())
except (OSError, ValueError):
    n = 0
while n < target:
    n += 1
    with open(path, "w") as stream:
        stream.write(str(n))
    print("| valid | epoch %03d | loss %d | bleu 1" % (n, 9 - n), flush=True)
    time.sleep(wait)
print("counted")
"""


def steps(folder, source, first="3", second="2", wait="0"):
    program = os.path.join(os.path.dirname(source), "counter.py")
    with open(program, "w") as stream:
        stream.write(COUNTER)
    one, two = (os.path.join(folder, name, "number") for name in ("1-one", "2-two"))
    return [
        Step("1-one", (program, one, first, wait, source), (source,), (), ("number",), resumes=True),
        Step("2-two", (program, two, second, wait, one), (), ("1-one",), ("number",), "said"),
    ]  # fmt: skip


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_text("something")
    return str(path)


def run(folder, *args, **kwargs):
    Pipeline(folder, steps(folder, *args, **kwargs)).run()


def test_what_is_done_is_not_done_again(tmp_path, source, capfd):
    folder = str(tmp_path / "out")
    run(folder, source)
    said = capfd.readouterr().out
    assert "1-one: python " in said and "epoch 3  valid loss 6  BLEU 1" in said
    assert (tmp_path / "out/2-two/said").read_text().endswith("counted\n")
    run(folder, source)
    assert capfd.readouterr().out.count("done before") == 2
    os.rename(folder, tmp_path / "moved")
    run(str(tmp_path / "moved"), source)  # results don't depend on their place
    assert capfd.readouterr().out.count("done before") == 2


def test_a_changed_option_redoes_what_depends_on_it(tmp_path, source, capfd):
    folder = str(tmp_path / "out")
    run(folder, source)
    run(folder, source, second="4")
    said = capfd.readouterr().out
    assert "1-one: done before" in said and "2-two: made again, its options changed" in said
    run(folder, source, first="1", second="4")
    said = capfd.readouterr().out
    assert "1-one: made again" in said and "2-two: made again, 1-one changed" in said
    assert (tmp_path / "out/1-one/number").read_text() == "1"  # begun anew
    run(folder, source)  # what was made before is not lost
    assert capfd.readouterr().out.count("made with these options before") == 2
    (tmp_path / "source").write_text("something else")
    run(folder, source)
    assert "1-one: made again, the data or the model changed" in capfd.readouterr().out


def test_a_step_that_went_is_set_aside(tmp_path, source, capfd):
    folder = str(tmp_path / "out")
    run(folder, source)
    (tmp_path / "out/3-mine").mkdir()  # no step's
    Pipeline(folder, steps(folder, source)[:1]).run()
    assert "2-two: no part of it any more" in capfd.readouterr().out
    assert sorted(os.listdir(folder)) == ["1-one", "3-mine", "lock", ASIDE]


def test_results_that_someone_removed_are_made_again(tmp_path, source, capfd):
    folder = str(tmp_path / "out")
    run(folder, source)
    os.remove(tmp_path / "out/2-two/number")
    capfd.readouterr()
    run(folder, source)
    said = capfd.readouterr().out
    assert "1-one: done before" in said and "2-two: python" in said


@pytest.mark.parametrize("whole", [False, True])
def test_a_kill_before_the_record(tmp_path, source, whole, capfd):
    """The result is there, the step's record says that it began."""
    folder, (step, _) = str(tmp_path / "out"), steps(str(tmp_path / "out"), source)
    pipeline = Pipeline(folder, [Step(**{**vars(step), "whole": whole})])
    due = pipeline.due(step)
    os.makedirs(tmp_path / "out/1-one")
    pipeline._keep(step, due)
    (tmp_path / "out/1-one/number").write_text("3")
    pipeline.run()
    assert ("1-one: python" in capfd.readouterr().out) == (not whole)
    assert pipeline.is_done(step, due)


def test_killed_within_a_step_it_goes_on(tmp_path, source):
    folder = tmp_path / "out"
    pipeline = multiprocessing.get_context("fork").Process(
        target=run, args=(str(folder), source, "4"), kwargs={"wait": "0.4"}
    )
    pipeline.start()
    log = folder / "1-one/log.txt"
    while not (log.exists() and "epoch 002" in log.read_text()):
        time.sleep(0.02)
    pipeline.kill()
    pipeline.join()
    time.sleep(0.8)  # in which an orphan would count on
    assert (folder / "1-one/number").read_text() == "2"
    run(str(folder), source, "4", wait="0.4")
    assert [log.read_text().count(f"epoch 00{n}") for n in range(1, 5)] == [1] * 4


def test_a_second_process_is_refused(tmp_path, source):
    folder = tmp_path / "out"
    folder.mkdir()
    with sole_process(str(folder), RuntimeError):
        with pytest.raises(UserError, match=f"--output {folder}: another process is at work"):
            run(str(folder), source)


@pytest.mark.parametrize(
    "code, kind, words",
    [
        ("print('error: --lr x: is no number', file=sys.stderr); sys.exit(2)", UserError, "--lr x"),
        ("1 / 0", StepFailed, "ZeroDivisionError"),
        ("os.kill(os.getpid(), 9)", StepFailed, "ended by SIGKILL"),
        ("pass", StepFailed, "ended without"),
    ],
)
def test_a_step_that_fails(tmp_path, code, kind, words):
    command = ("-c", f"import os, sys; {code}")
    pipeline = Pipeline(str(tmp_path), [Step("1-bad", command, results=("x",))])
    with pytest.raises(kind, match=words):
        pipeline.run()
    assert not pipeline.is_done(pipeline.steps[0], pipeline.due(pipeline.steps[0]))


def test_digests_of_content(tmp_path):
    for name, text in (("a", "x"), ("b", "y"), ("c.log", "z")):
        (tmp_path / name).write_text(text)
    before = content_digest(str(tmp_path))
    (tmp_path / "c.log").write_text("another")
    assert content_digest(str(tmp_path)) == before
    os.rename(tmp_path / "b", tmp_path / "d")
    assert content_digest(str(tmp_path)) != before
