"""Run a training command in several processes on this machine's CPU (gloo).

    python scripts/cpu_distributed.py --processes 2 src/pruning.py data-bin/... [options]

On GPUs fairseq starts its processes itself; on a CPU neither it nor torchrun
does. When one process fails or the command is interrupted, all are stopped.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time


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
    running = [
        subprocess.Popen(line, env=environment)
        for line in commands(args.command, args.processes, free_port())
    ]
    try:
        while None in [p.poll() for p in running]:
            failed = [p.returncode for p in running if p.returncode]
            if failed:
                return failed[0]
            time.sleep(0.2)
        return max((p.returncode for p in running), key=abs)
    except KeyboardInterrupt:
        return 130
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
