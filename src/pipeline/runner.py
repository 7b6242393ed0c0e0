"""Runs the steps of a pipeline: each once, on from where it was stopped."""

import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import Dict, Iterable, List, Optional, Sequence

from ..errors import STATUS, UserError
from ..files import atomic_write, make_output_folder, refusing_failed_writes, sole_process
from .steps import RECORD, Record, Step, content_digest, depends_on, difference, read_record

LOG = "log.txt"
ASIDE = "old"  # folder of results whose options changed
_FOLDER = re.compile(r"\d+-[a-z0-9-]+")
_EPOCH = re.compile(r"\| valid \| epoch 0*(\d+) .*?\| loss ([\d.e+-]+|nan|inf)")
_BLEU = re.compile(r"\| bleu ([\d.]+)")
_PR_SET_PDEATHSIG = 1  # of Linux


class StepFailed(Exception):
    """A step ended in an error that is no mistake of the user's."""


def typed(command: Sequence[str]) -> str:
    """A command as it can be typed."""
    return shlex.join(["python", *command])


class Pipeline:
    """Steps in a folder, of which those that are done are not done again.

    Args:
        folder: of everything that they make.
        steps: in order, each after those that it reads from; one that depends on what those
            before have made may be made when it is asked for.
    """

    def __init__(self, folder: str, steps: Iterable[Step] = ()):
        self.folder, self.steps = folder, steps
        self._began = time.monotonic()
        self._files: Dict[str, str] = {}
        self._digests: Dict[str, str] = {}

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        print(f"[{minutes}m{seconds:02d}s] {text}", flush=True)

    def path(self, step: Step, name: str) -> str:
        return os.path.join(self.folder, step.name, name)

    def _of(self, name: str) -> str:
        return os.path.join(self.folder, name)

    # -- what is done ------------------------------------------------------------------

    def due(self, step: Step) -> Record:
        """The record of a run of a step that begins now."""
        for file in step.files:
            if file not in self._files:
                self._files[file] = content_digest(file)
        due = depends_on(step, self.folder, self._files, self._digests)
        self._digests[step.name] = due.digest
        return due

    def is_done(self, step: Step, due: Record) -> bool:
        record = read_record(self._of(step.name))
        mine = bool(record and record.digest == due.digest and record.finished)
        return mine and self._all_there(step)

    def _all_there(self, step: Step) -> bool:
        return all(os.path.exists(self.path(step, name)) for name in step.results)

    def _set_aside(self, name: str, record: Optional[Record]) -> None:
        """Move a step's folder out of the way, keeping what it holds."""
        aside = os.path.join(self.folder, ASIDE)
        place = os.path.join(aside, f"{name}-{record.digest[:8] if record else 'unknown'}")
        os.makedirs(aside, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        os.rename(self._of(name), place)

    def _make_room(self, step: Step, due: Record) -> None:
        """Leave in a step's place what it goes on from, or nothing."""
        folder = self._of(step.name)
        record = read_record(folder)
        if os.path.isdir(folder) and not (record and record.digest == due.digest):
            self._set_aside(step.name, record)
            if record:
                self.say(f"{step.name}: made again, {difference(record, due)}")
        before = os.path.join(self.folder, ASIDE, f"{step.name}-{due.digest[:8]}")
        if not os.path.isdir(folder) and os.path.isdir(before):
            os.rename(before, folder)
            self.say(f"{step.name}: taken from {before}, made with these options before")
        keeps = step.resumes or self.is_done(step, due) or (step.whole and self._all_there(step))
        if os.path.isdir(folder) and not keeps:
            shutil.rmtree(folder)
        os.makedirs(folder, exist_ok=True)

    def _forget_others(self, steps: Sequence[Step]) -> None:
        """Set results of steps aside that this pipeline doesn't have."""
        names = {step.name for step in steps}
        for entry in sorted(os.listdir(self.folder)):
            record = read_record(self._of(entry)) if _FOLDER.fullmatch(entry) else None
            if entry not in names and record:
                self._set_aside(entry, record)
                self.say(f"{entry}: no part of it any more, now in {self._of(ASIDE)}")

    # -- doing -------------------------------------------------------------------------

    def run(self) -> List[Step]:
        """Do what is not done.

        Returns:
            All steps.

        Raises:
            UserError: a step's program refused its options or files, or another process
                is at work in the folder.
            StepFailed: a step ended in an error.
        """
        make_output_folder(self.folder, "--output")

        def occupied() -> UserError:
            return UserError(
                f"--output {self.folder}: another process is at work there; wait for it, or "
                "give another folder"
            )

        with sole_process(self.folder, occupied), refusing_failed_writes(self.folder):
            steps = []
            for step in self.steps:
                self.do(step)
                steps.append(step)
            self._forget_others(steps)
        return steps

    def do(self, step: Step) -> None:
        """Do one step, unless it is done."""
        due = self.due(step)
        self._make_room(step, due)
        if self.is_done(step, due):
            self.say(f"{step.name}: done before")
            return
        self._keep(step, due)
        begin = time.monotonic()
        if not (step.whole and self._all_there(step)):
            self.say(f"{step.name}: {typed(step.command)}")
            self._execute(step)
        if not self._all_there(step):
            raise StepFailed(f"{step.name} ended without {' and '.join(step.results)}")
        self._keep(step, replace(due, finished=True, seconds=time.monotonic() - begin))

    def _keep(self, step: Step, record: Record) -> None:
        with atomic_write(self.path(step, RECORD), encoding="utf-8") as stream:
            record.save(stream)

    def _execute(self, step: Step) -> None:
        """Run a step's program to its end, its output going to files.

        Raises:
            UserError: it ended with status 2 and one line that says why.
            StepFailed: it ended with another status.
        """
        log = self.path(step, LOG)
        # Python buffers lines that go to a pipe; one process trains, as updates are counted,
        # unless the caller names its GPUs
        environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, "PYTHONUNBUFFERED": "1"}
        with open(log, "a", encoding="utf-8") as stream:
            output = subprocess.PIPE
            if step.output is not None:
                output = open(self.path(step, step.output), "w", encoding="utf-8")
            program = subprocess.Popen(
                [sys.executable, *step.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE if step.output is not None else subprocess.STDOUT,
                env=environment,
                text=True,
                errors="replace",
                preexec_fn=_end_with_parent,
            )
            try:
                for line in program.stderr if step.output is not None else program.stdout:
                    stream.write(line)
                    stream.flush()
                    self._show(line)
                status = program.wait()
            except BaseException:  # an interruption reaches the program, too
                program.terminate()
                program.wait()
                raise
            finally:
                if step.output is not None:
                    output.close()
        if status:
            self._refuse(step, status, log)

    def _show(self, line: str) -> None:
        """One line an epoch."""
        epoch, bleu = _EPOCH.search(line), _BLEU.search(line)
        if epoch:
            score = f"  BLEU {bleu[1]}" if bleu else ""
            self.say(f"    epoch {epoch[1]}  valid loss {epoch[2]}{score}")

    @staticmethod
    def _refuse(step: Step, status: int, log: str) -> None:
        with open(log, encoding="utf-8", errors="replace") as stream:
            lines: List[str] = stream.read().splitlines()
        said = [line for line in lines if line.startswith("error: ")]
        if status == STATUS and said:
            raise UserError(f"{step.name}: {said[-1].removeprefix('error: ')} (log: {log})")
        tail = "\n".join(lines[-15:])
        if status < 0:
            tail += f"\nended by {signal.Signals(-status).name}"
        raise StepFailed(f"{tail}\n{step.name} failed; the whole log is {log}")


def _end_with_parent() -> None:
    """Let a program end when this one is killed, so that a second start finds none at work."""
    with suppress(OSError, AttributeError):  # no Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
