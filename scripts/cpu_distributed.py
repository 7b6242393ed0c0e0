"""Run a training command in several processes on this machine's CPU (gloo).

    python scripts/cpu_distributed.py --processes 2 src/pruning.py data-bin/... [options]

On GPUs fairseq starts its processes itself; on a CPU neither it nor torchrun
does. When one process fails or the command is interrupted or killed, all are stopped.
What is wrong with the options is said once.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import List, Optional

_PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # of Linux
# how a line begins from which on a process says why it ends
_LAST_WORDS = ("error: ", "interrupted", "Traceback (most recent call last)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def commands(command: list, processes: int, port: int) -> list:
    """The command line of each rank."""
    shared = [
        *("--cpu", "--distributed-world-size", str(processes)),
        *("--distributed-no-spawn", "--distributed-backend", "gloo"),
        *("--distributed-init-method", f"tcp://127.0.0.1:{port}"),
        *("--ddp-backend", "legacy_ddp"),
    ]
    return [
        [sys.executable, *command, *shared, "--distributed-rank", str(rank)]
        for rank in range(processes)
    ]


class Rank:
    """A process, whose words on standard error are passed on up to an error.

    Args:
        line: its command line.
        number: its rank.
    """

    def __init__(self, line: list, number: int, environment: dict):
        self.number = number
        self.last_words: List[str] = []
        launcher = os.getpid()

        def end_with_launcher() -> None:
            if _prctl is not None:
                _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != launcher:  # killed before that
                os._exit(1)

        self.process = subprocess.Popen(
            line,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            preexec_fn=end_with_launcher,
        )
        self._reader = threading.Thread(target=self._read)

    def listen(self) -> None:
        """Due when all processes are started: none is forked beside a thread."""
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            if self.last_words or line.startswith(_LAST_WORDS):
                self.last_words.append(line)
            else:
                sys.stderr.write(line)
                sys.stderr.flush()

    @property
    def status(self) -> Optional[int]:
        """As a shell has it: 128 + its number for a signal; None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def stop(self) -> None:
        if self.status is None:
            self.process.terminate()

    def wait(self) -> None:
        self.process.wait()
        self._reader.join()


def failed(ranks: List[Rank]) -> List[Rank]:
    """Those that have failed; first any that was killed, which is why others did."""
    return sorted((rank for rank in ranks if rank.status), key=lambda rank: rank.status <= 128)


def say(ranks: List[Rank], killed: List[Rank]) -> None:
    """Every reason once; tracebacks only where no process says in one line what is wrong."""
    lines = [line for rank in ranks for line in rank.last_words]
    for rank in killed:
        name = signal.Signals(rank.status - 128).name
        lines.append(f"error: rank {rank.number} was killed ({name})\n")
    reasons = [line for line in lines if line.startswith(_LAST_WORDS[:2])]
    sys.stderr.write("".join(dict.fromkeys(reasons)) or "".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="number of processes (default 2)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="script and options")
    args = parser.parse_args()
    if args.processes < 1 or not args.command:
        parser.error("--processes must be at least 1, and a script must follow")
    # otherwise this process would end at once and leave the others running
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threads = max(1, (os.cpu_count() or 1) // args.processes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    lines = commands(args.command, args.processes, free_port())
    ranks = [Rank(line, number, environment) for number, line in enumerate(lines)]
    for rank in ranks:
        rank.listen()
    gone: List[Rank] = []
    try:
        while not gone and None in [rank.status for rank in ranks]:
            time.sleep(0.2)
            gone = failed(ranks)
        gone = gone or failed(ranks)
        return gone[0].status if gone else 0
    except KeyboardInterrupt:
        return 130
    finally:
        killed = [rank for rank in gone if rank.status > 128]
        for rank in ranks:
            rank.stop()
        for rank in ranks:
            rank.wait()
        say(ranks, killed)


if __name__ == "__main__":
    sys.exit(main())
