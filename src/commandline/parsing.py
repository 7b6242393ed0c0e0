"""What the entry points share: parsing with this plug-in loaded, clear errors."""

import argparse
import errno
import logging
import os
import sys
import warnings
from contextlib import contextmanager
from typing import Callable, List, Optional, Sequence

from fairseq import options

from ..errors import UserError
from ..files import check_output_file
from .help import missing_part, show_help

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class ArgumentParser(argparse.ArgumentParser):
    """A parser, for tools without fairseq's options, that refuses in one line.

    It shows its description as it is written: the docstring of the tool.
    """

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str):
        raise UserError(f"{message} (--help lists all options)")


def add_trust(parser, origins: str) -> None:
    """The option of every tool that reads checkpoints.

    Args:
        parser: or a group of its arguments.
        origins: what names checkpoints, for the help.
    """
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help=f"unpickle any object in {origins}: for old checkpoints of your own, since a "
        "pickle can run code",
    )


@contextmanager
def ending_quietly(interrupted: str):
    """End without a traceback when interrupted, or when the output can't be written.

    The exit status is that of a program that the signal has killed, 130, and 141 when
    nobody reads the output any more.

    Args:
        interrupted: what an interruption leaves behind.

    Raises:
        UserError: standard output goes to a file, and the disk is full.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        broken = isinstance(error, BrokenPipeError)
        if not broken and (error.errno not in DISK_FULL or error.filename):
            raise
        # Python flushes standard output once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if broken:
            sys.exit(141)
        raise UserError(f"the output can't be written ({error.strerror})") from None


class _LogHandler(logging.StreamHandler):
    """Writes log lines; where nobody can take them any more the program goes on without."""

    def handleError(self, record: logging.LogRecord):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        # for what is written later, and for Python, which flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        if self.stream is not sys.stderr:
            print(
                f"warning: the log can't be written any more ({error.strerror}); going on",
                file=sys.stderr,
                flush=True,
            )


def open_standard_streams() -> None:
    """Open what the process was started without, as by ``>&-``, on nothing.

    The next file that is opened would get the number of standard output otherwise, and
    what libraries print.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))


def set_up_logging(stream=None, level: str = "INFO") -> None:
    """fairseq's log lines; ``force`` because importing fairseq has set its own.

    Args:
        stream: by default standard output.
        level: of what is said, unless ``LOGLEVEL`` is set.
    """
    open_standard_streams()
    logging.basicConfig(
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        level=os.environ.get("LOGLEVEL", level).upper(),
        handlers=[_LogHandler(stream or sys.stdout)],
        force=True,
    )
    # deprecations inside fairseq and hydra that a user can do nothing about
    warnings.filterwarnings("ignore", category=UserWarning, module=r"hydra\.")
    warnings.filterwarnings("ignore", message=r"\s*'config' is validated against")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"fairseq\.")


def log_to_file(path: Optional[str]) -> None:
    """Write log lines to this file too, as ``--log-file`` asks for; None writes none.

    Raises:
        UserError: the file can't be written.
    """
    if path is None:
        return
    check_output_file(path, option="--log-file")
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:  # whatever its folder's permissions say
        raise UserError(f"--log-file {path}: can't be written ({error.strerror})") from None
    root = logging.getLogger()
    handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)


def run_writer(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    arguments: Optional[List[str]] = None,
) -> None:
    """A command line tool that leaves ``--output`` as it was unless it comes to its end.

    Args:
        run: the tool, of the parsed options.
        arguments: instead of the process's own.
    """
    set_up_logging(sys.stderr)
    args = parser.parse_args(arguments)
    with ending_quietly(f"{args.output} is as it was"):
        run(args)


def _with_own_folder(arguments: Sequence[str]) -> List[str]:
    """Arguments with this folder as ``--user-dir`` under its own name, where it is none.

    fairseq takes a link to it for another plug-in, which registers the same parts.
    """
    separate: List[str] = []
    for argument in arguments:
        split = argument.startswith("--user-dir=")
        separate += argument.split("=", 1) if split else [argument]
    places = [i for i, a in enumerate(separate[:-1]) if a == "--user-dir"]
    for i in places:
        if os.path.realpath(separate[i + 1]) == os.path.realpath(PACKAGE):
            separate[i + 1] = PACKAGE
    return separate if places else [*separate, "--user-dir", PACKAGE]


def fairseq_parser(make: Callable):
    """A parser of fairseq's, with this plug-in's task as the default.

    Args:
        make: of ``fairseq.options``; it imports what the process's --user-dir names.

    Raises:
        UserError: there is no such folder.
    """
    given, sys.argv = sys.argv, [sys.argv[0], *_with_own_folder(sys.argv[1:])]
    try:
        return make(default_task="SRPtranslation")
    except FileNotFoundError as error:
        raise UserError(f"--user-dir: no such folder ({error}); leave it out") from None
    finally:
        sys.argv = given


def parse(parser, arguments: Optional[List[str]] = None):
    """Parse like fairseq's tools, with this folder as the default ``--user-dir``.

    Returns:
        The namespace.

    Raises:
        UserError: what argparse would refuse, in one line.
    """

    def refuse(message: str):
        hint = missing_part(message) if "unrecognized arguments" in message else None
        raise UserError(f"{message} ({hint or '--help lists all options'})")

    parser.error = refuse
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        show_help(parser)
        sys.exit(0)
    arguments = _with_own_folder(arguments)
    try:
        return options.parse_args_and_arch(parser, input_args=arguments)
    except FileNotFoundError as error:  # fairseq's import of the folder
        raise UserError(f"--user-dir: no such folder ({error}); leave it out") from None
