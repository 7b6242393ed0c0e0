"""Files and folders appear complete or not at all, whoever writes or dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src import files
from src.errors import UserError
from tests.support.training import ROOT


def start(code: str) -> subprocess.Popen:
    """A process that runs ``code`` and says a line when it is ready."""
    # files alone, without what the package imports, which takes seconds
    head = "import sys, time, types\nsys.modules['src'] = types.ModuleType('src')\n"
    head += "sys.modules['src'].__path__ = ['src']\nfrom src import files\n"
    process = subprocess.Popen(
        [sys.executable, "-c", head + code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_folder_is_locked_until_its_process_ends_whatever_that_has_started(tmp_path):
    """As workers that load data, which outlive a process that is killed for a while."""
    process = start(
        "import os\n"
        f"lock = files.lock_folder({str(tmp_path)!r}, RuntimeError)\n"
        f"assert lock is files.lock_folder({str(tmp_path)!r}, RuntimeError)\n"
        "if not os.fork():\n    print('ready', flush=True)\ntime.sleep(20)\n"
    )
    with pytest.raises(KeyError):
        files.lock_folder(str(tmp_path), KeyError)
    process.kill()
    process.wait()
    files.lock_folder(str(tmp_path), KeyError).release()
    lock = files.lock_folder(str(tmp_path), KeyError)
    assert os.listdir(tmp_path) == []
    lock.release()


def test_two_writers_of_one_file_never_tear_it(tmp_path):
    path = tmp_path / "file"
    with files.atomic_write(str(path)) as one, files.atomic_write(str(path)) as other:
        one.write("x" * 5000)
        other.write("y" * 4000)
        assert os.listdir(tmp_path) and not path.exists()
    assert path.read_text() == "x" * 5000  # the last one to end
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_has_left_is_removed_and_a_living_one_goes_on(tmp_path):
    code = (
        f"with files.{{}}({str(tmp_path / 'name')!r}){{}} as x:\n"
        " print('ready', flush=True)\n time.sleep(60)"
    )
    killed = [start(code.format("atomic_write", "")), start(code.format("new_folder", ""))]
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.wait()
    alive = start(code.format("atomic_write", ""))  # removes what they left
    (tmp_path / "name.tmp-of the user").mkdir()
    try:
        assert len(os.listdir(tmp_path)) == 2
        with files.atomic_write(str(tmp_path / "name")) as stream:
            stream.write("whole")
        assert len(os.listdir(tmp_path)) == 3
    finally:
        alive.kill()
        alive.wait()
    with files.atomic_write(str(tmp_path / "other")):
        pass
    with files.atomic_write(str(tmp_path / "name")):
        pass
    assert set(os.listdir(tmp_path)) == {"name", "other", "name.tmp-of the user"}


def test_modes_are_those_of_usual_files(tmp_path):
    before = os.umask(0o027)
    try:
        with files.atomic_write(str(tmp_path / "file")):
            pass
        with files.new_folder(str(tmp_path / "folder")):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt), files.new_folder(str(path)) as folder:
        Path(folder, "model.bin").write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    for content in ("first", "second"):
        with files.new_folder(str(path), replace=True) as folder:
            Path(folder, "model.bin").write_text(content)
            assert not path.exists() or (path / "model.bin").read_text() == "first"
        assert (path / "model.bin").read_text() == content
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_that_appeared_meanwhile_is_kept(tmp_path):
    path = tmp_path / "data"
    with pytest.raises(UserError, match="data: can't be written"):
        with files.new_folder(str(path)) as folder:
            Path(folder, "mine").touch()
            path.mkdir()
            (path / "another's").touch()
    assert os.listdir(path) == ["another's"] and os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("at_once", [False, True], ids=["two steps", "one step"])
@pytest.mark.parametrize("dies", [False, True])
def test_the_old_folder_is_never_lost(at_once, dies, tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.mkdir()
    (path / "model.bin").write_text("old")
    rename = os.rename

    def fail(source, target):
        if "tmp-" in str(source):
            raise OSError("no space left")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    if not at_once:  # as on file systems that can't exchange names
        monkeypatch.setattr(files, "_exchange", lambda *names: False)
    try:
        with files.new_folder(str(path), replace=True) as folder:
            Path(folder, "model.bin").write_text("new")
    except UserError:
        assert not at_once
    assert os.listdir(tmp_path) == ["model"]
    expected = "new" if at_once else "old"
    if dies:  # between the two renames: the next call begins by giving it back
        path.rename(f"{path}.replaced")
        with pytest.raises(KeyboardInterrupt), files.new_folder(str(path), replace=True):
            raise KeyboardInterrupt
    assert (path / "model.bin").read_text() == expected


def test_a_lock_ends_with_its_process(tmp_path):
    holder = start(
        f"with files.sole_process({str(tmp_path)!r}, RuntimeError):\n"
        " print('ready', flush=True)\n time.sleep(60)"
    )
    with pytest.raises(KeyError), files.sole_process(str(tmp_path), KeyError):
        pass
    holder.kill()
    holder.wait()
    with files.sole_process(str(tmp_path), KeyError):
        pass


def test_a_device_is_written_to_and_not_replaced():
    before = os.stat("/dev/full")
    with pytest.raises(UserError, match="/dev/full: can't be written"):
        with files.atomic_write("/dev/full") as stream:
            stream.write("x" * 100_000)
    with files.atomic_write("/dev/null", "wb") as stream:
        stream.write(b"x")
    assert os.stat("/dev/full").st_rdev == before.st_rdev != 0
    assert not os.path.isfile("/dev/null")


def test_a_folder_is_free_when_its_work_is_done_though_a_fork_lives_on(tmp_path):
    def occupied():
        return UserError("occupied")

    with files.sole_process(str(tmp_path), occupied):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        with files.sole_process(str(tmp_path), occupied):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_where_there_are_no_locks_writers_leave_each_other_alone(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    path = str(tmp_path / "file")
    with files.atomic_write(path) as first:
        first.write("first")
        with files.atomic_write(path) as second:
            second.write("second")
    assert Path(path).read_text() == "first"
    with files.sole_process(str(tmp_path), AssertionError):
        pass
