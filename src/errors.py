"""What a user did wrong, and the one place that ends a program with it: one line, status 2."""

import os
import re
import signal
import sys
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from typing import Iterator, Optional

STATUS = 2
INTERRUPTED = 128 + signal.SIGINT  # as of a program that the signal has killed

_PACKAGE = __name__.rpartition(".")[0]
# How the traceback ends that another process has sent: the class, then what it says.
_SENT = re.compile(rf"^{re.escape(_PACKAGE)}\.(?:\w+\.)*errors\.\w+: (.+)\s*\Z", re.MULTILINE)


class UserError(Exception):
    """A mistake in an option or a file, for which a program ends without a traceback.

    Args:
        message: one line that names the option or file, the value found, what
            would be valid and what to do.
    """


def missing() -> Optional[str]:
    """The library that isn't installed and without which only exported models translate."""
    return next((name for name in ("torch", "fairseq") if find_spec(name) is None), None)


def lacks_memory(error: BaseException) -> bool:
    """Whether there was no more memory, which torch says by a RuntimeError."""
    lack = ("can't allocate memory", "out of memory")
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in lack)
    return isinstance(error, MemoryError)


def users_mistake(error: BaseException) -> Optional[str]:
    """The line to say about a user's mistake.

    That is an error of any class that a module called ``errors`` of this package defines:
    :class:`UserError` and the ValueErrors of its libraries; and a lack of memory. Worker
    processes send it as the text of a traceback (``torch.multiprocessing.spawn``, those that
    load data).

    Returns:
        None if it is a fault of the program, which needs its traceback.
    """
    if lacks_memory(error):
        said = str(error) if isinstance(error, MemoryError) else ""
        return " ".join(f"out of memory: {said}".splitlines()).rstrip(": ")
    if isinstance(error, ModuleNotFoundError) and missing():
        return (
            f"{missing()} is not installed for {sys.executable}; make the environment with 'make "
            "setup' and activate it with 'source .venv/bin/activate'"
        )
    modules = [kind.__module__ for kind in type(error).__mro__]
    ours = any(m.startswith(f"{_PACKAGE}.") and m.endswith(".errors") for m in modules)
    if not ours and type(error).__name__ != "ProcessRaisedException":
        return None
    sent = _SENT.search(str(error))
    if not (ours or sent):
        return None
    return " ".join((sent[1] if sent else str(error)).splitlines())


def end_program(error: BaseException) -> None:
    """Say in one line what ends a program, where that is no fault of the program itself.

    Raises:
        SystemExit: with status 2 of a user's mistake, 130 of an interruption, and of a
            process among several that ended by a signal, the status that stands for it.
    """
    line, status = users_mistake(error), STATUS
    if line is None and isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    if line is None and type(error).__name__ == "ProcessExitedException":
        if error.exit_code > 0:  # it has said why
            sys.exit(error.exit_code)
        line, status = str(error), 128 - error.exit_code
    if line is not None:
        print(f"error: {line}", file=sys.stderr, flush=True)
        sys.exit(status)


@contextmanager
def ending_program() -> Iterator[None]:
    """A block whose errors end the program as :func:`end_program` says."""
    try:
        yield
    except BaseException as error:
        end_program(error)
        raise


@contextmanager
def ending_at_once(folder: str) -> Iterator[None]:
    """While libraries are imported, an interruption ends a command at once.

    Some catch it and go on half made.

    Args:
        folder: of the commands; other programs are left alone.
    """
    main = getattr(sys.modules.get("__main__"), "__file__", None) or "."
    own = os.path.dirname(os.path.abspath(main)) == folder
    before = signal.getsignal(signal.SIGINT)
    if not own or before is not signal.default_int_handler:
        yield
        return

    def end(*_):
        os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def install() -> None:
    """Let every program that imports this package end so, fairseq's own tools too.

    Python calls ``sys.excepthook`` at the end of a program alone, so whoever catches errors,
    as a notebook does, is not concerned. An interactive session shows them and goes on.
    """
    before = sys.excepthook

    def end(kind, error, trace):
        if not hasattr(sys, "ps1"):
            # torch's hook of processes that train together calls this one with a buffer for
            # standard error, whose words are lost when the program ends here
            with redirect_stderr(sys.__stderr__ or sys.stderr):
                end_program(error)
        before(kind, error, trace)

    sys.excepthook = end
    # otherwise hydra prints tracebacks itself, and ends the program with status 1
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
