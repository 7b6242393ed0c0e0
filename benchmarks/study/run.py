"""Train, prune and translate with every model of a grid; what is done is not repeated.

    python benchmarks/study/run.py benchmarks/study/demo.yaml
    python benchmarks/study/run.py benchmarks/study/multi30k.yaml --only 'fisher|base'

A model is made again only when something that decides what it is has changed: its
options, those of the models it is made from, or the data; and translated again only when
the options of the translation have, or which checkpoint is taken. An interrupted run goes
on where it was, within a training too. The results so far stand in the grid's results file,
each with its commands, seed, commit and time; tables.py makes tables and pictures. A model
whose result stands there is not made again either, unless another needs it: so a study
can go on elsewhere. --reproduce makes it all the same.

grid.py describes the file.
"""

import argparse
import csv
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Container, Dict, List, Optional, Tuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

from grid import DISTILL, Grid, GridError, Model, command, flags, read_grid  # noqa: E402

DONE, REPORT = "result.json", "report.json"
# What a row takes over from the report that generate.py writes.
REPORTED = (
    *("bleu", "bleu_signature", "parameters", "uncut_parameters", "nonzero_parameters"),
    *("adapter_parameters", "flops", "checkpoint_bytes", "model_bytes", "sparse_bytes"),
    *("tokens_per_second", "beam", "batch_size", "threads", "machine", "device"),
    *("num_updates", "widths", "torch"),
)


def _child(tool: str, arguments: List[str], log: str) -> None:
    """Run a tool of ``src/`` in this process, its output going to a file."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(log, "a", encoding="utf-8") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    sys.argv = [f"src/{tool}.py", *arguments]
    from src import distill_data, finetuning, generate, pruning, train
    from src.errors import ending_program

    with ending_program():
        if tool in ("generate", DISTILL):
            {"generate": generate, DISTILL: distill_data}[tool].main(arguments)
        else:
            {"pruning": pruning, "finetuning": finetuning}.get(tool, train).main()


def run_tool(tool: str, arguments: List[str], log: Path) -> float:
    """Run a tool in a process of its own.

    The process is a copy of this one, which has loaded the libraries: a short training
    does not wait for that.

    Returns:
        Seconds that it took.

    Raises:
        RuntimeError: it failed; the message ends with the end of its log.
    """
    begin = time.perf_counter()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_child, args=(tool, arguments, str(log)))
    process.start()
    try:
        process.join()
    finally:
        if process.is_alive():  # this process was told to stop; it goes on another time
            process.terminate()
            process.join()
    if process.exitcode:
        if process.exitcode in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise RuntimeError(f"{tool} failed ({process.exitcode}), {log}:\n{tail}")
    return time.perf_counter() - begin


def write(path: Path, text: str) -> None:
    """A file that is there complete or not at all."""
    # a name of its own: tables.py and another run.py may write the same file
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def commit() -> Optional[str]:
    """The repository's commit, with a plus when files differ from it, results apart."""
    changes = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!docs/results"]
    try:
        short = subprocess.check_output(["git", "describe", "--always"], cwd=ROOT, text=True)
        changed = subprocess.run(changes, cwd=ROOT, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return short.strip() + "+" * bool(changed)


def finished(model: Model) -> Optional[Dict[str, Any]]:
    """The result of a model that is done."""
    path = model.folder / DONE
    if not path.is_file() or not model.path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    return result if result["key"] == model.key else None


def outdated(grid: Grid, model: Model, row: Dict[str, Any]) -> bool:
    """Whether a result has another translation than the grid asks for, or none."""
    if not model.test:
        return False
    wanted = translation(grid, model, Path(row["folder"]))
    return row.get("translate_command") != command("generate", wanted)


def recorded(grid: Grid) -> Dict[str, Dict[str, Any]]:
    """Rows of the results file by key, also of models that are not on this machine."""
    if not grid.results.is_file():
        return {}
    rows = json.loads(grid.results.read_text(encoding="utf-8"))
    return {row["key"]: row for row in rows}


def missing(models: List[Model], known: Container[str]) -> List[Model]:
    """What has to be made, of what has to be known: a result, or to be made from it.

    Args:
        known: keys of models whose results are known though they may not be here.
    """
    todo: List[Model] = []
    needed = set()  # by what is made
    for model in reversed(models):  # what it is made from comes before it
        wanted = id(model) in needed or model.key not in known
        if wanted and finished(model) is None:
            todo.insert(0, model)
            needed |= {id(p) for p in model.parents}
    return todo


def train(grid: Grid, model: Model) -> Dict[str, Any]:
    """Make a model; go on with a training that was interrupted."""
    model.folder.mkdir(parents=True, exist_ok=True)
    if model.sparsity is not None:
        write(model.folder / "sparsity.yaml", model.sparsity_text())
    arguments = model.arguments(grid.data)
    if model.tool == DISTILL and model.path.exists():
        return {"seconds": 0.0, "command": command(model.tool, arguments)}
    spent = model.folder / "seconds"  # of earlier attempts
    before = float(spent.read_text()) if spent.is_file() else 0.0
    begin = time.perf_counter()
    try:
        run_tool(model.tool, arguments, model.folder / "train.log")
    finally:
        seconds = before + time.perf_counter() - begin
        write(spent, f"{seconds:.2f}")
    if not model.path.exists():  # where nothing was validated
        part = model.path.with_name(model.path.name + ".part")
        shutil.copyfile(model.folder / "checkpoint_last.pt", part)
        os.replace(part, model.path)
    return {"seconds": round(seconds, 1), "command": command(model.tool, arguments)}


def translation(grid: Grid, model: Model, folder: Path) -> List[str]:
    """Arguments of generate.py for a model that lies in ``folder``."""
    arguments = [
        *(str(grid.data), "--path", str(folder / model.path.name)),
        *("--results-path", str(folder), "--report", str(folder / REPORT)),
        *flags(grid.translate),
    ]
    if grid.reference is not None:
        arguments += ["--reference", str(grid.reference)]
    return arguments


def translate(grid: Grid, model: Model) -> Dict[str, Any]:
    """Translate the test set with a model."""
    arguments = translation(grid, model, model.folder)
    run_tool("generate", arguments, model.folder / "generate.log")
    facts = json.loads((model.folder / REPORT).read_text(encoding="utf-8"))
    kept = {name: facts[name] for name in REPORTED if name in facts}
    return {**kept, "translate_command": command("generate", arguments)}


def validations(model: Model) -> List[Dict[str, str]]:
    """One row a validation, as a training writes them."""
    path = model.folder / "results.csv"
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def validation(model: Model, updates: Optional[int]) -> Dict[str, float]:
    """The validation after so many updates; recipes are chosen by it, not by the test."""
    rows = [row for row in validations(model) if row["num_updates"] == str(updates)]
    found = {"valid_bleu": "bleu", "valid_loss": "valid_loss"}
    return {
        ours: float(rows[-1][theirs])
        for ours, theirs in found.items()
        if rows and rows[-1].get(theirs)
    }


def facts_of(model: Model) -> Dict[str, Any]:
    """What a row has from the grid alone; a key does not depend on it, but for the seed."""
    return {
        "name": model.name,
        "group": model.group,
        "values": model.values,
        "seed": model.seed,
        "tool": model.tool,
        "from": model.parent.name if model.parent else None,
        "beside": model.beside,
    }


def make(grid: Grid, model: Model) -> Dict[str, Any]:
    """Train one model, where that isn't done, and translate with it; its result.

    Raises:
        RuntimeError: a tool failed, or another process is making the model.
    """
    import torch  # here, so that mistakes in a grid are told at once

    from src.files import sole_process  # noqa: E402

    def occupied() -> RuntimeError:
        return RuntimeError(
            f"another process is making it in {model.folder}, maybe one of a run that was "
            "killed; wait for its end, or end it"
        )

    model.folder.mkdir(parents=True, exist_ok=True)
    with sole_process(str(model.folder), occupied):
        result = finished(model)  # then its translation is another than the grid's
        if result is None:
            result = {
                **facts_of(model),
                "epochs": model.options.get("max-epoch"),
                "training_threads": torch.get_num_threads(),
                "key": model.key,
                "folder": str(model.folder),
                **train(grid, model),
            }
            updates = [int(row["num_updates"]) for row in validations(model)]
            result["updates"] = max(updates, default=0)
        if model.test:
            result.update(translate(grid, model))
            result.update(validation(model, result.get("num_updates")))
        result.update(commit=commit(), finished=time.strftime("%Y-%m-%d %H:%M"))
        write(model.folder / DONE, json.dumps(result, indent=1))
    return result


def collect(grid: Grid) -> List[Dict[str, Any]]:
    """Results of all models that are known, in the grid's order, written to one file."""
    known = recorded(grid)
    rows, again = [], set()
    for model in grid.models:
        row, before = finished(model), known.get(model.key, {})
        if row is None:
            row = before or None
        elif before and row.get("translate_command") != before.get("translate_command"):
            again.add(model.key)
        elif row["finished"] == before.get("finished"):
            row = {**before, **row}  # with what tables.py has found out about it
        if row is not None:
            rows.append({**row, **facts_of(model)})
    for row in rows if again else ():
        # significance against what was translated otherwise
        if "p" in row:
            row["p"] = {key: p for key, p in row["p"].items() if key not in again}
    keep(grid, rows)
    return rows


def keep(grid: Grid, rows: List[Dict[str, Any]]) -> None:
    """Write the results file; what it has of other options or data stays, at its end.

    So does what has come to it since ``rows`` were read.
    """
    keys = {row["key"] for row in rows}
    rows = rows + [row for key, row in recorded(grid).items() if key not in keys]
    if rows:
        grid.results.parent.mkdir(parents=True, exist_ok=True)
        write(grid.results, json.dumps(rows, indent=1) + "\n")


def remaining_seconds(todo: List[Model], times: Dict[str, List[float]]) -> Optional[float]:
    """What is left to do, by the times of models of the same group, else of all."""
    every = [seconds for values in times.values() for seconds in values]
    if not every:
        return None
    mean = statistics.mean(every)
    return sum(statistics.mean(times.get(m.group) or [mean]) for m in todo)


def clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"


def selected(grid: Grid, only: str) -> List[Model]:
    """Models whose names match, and what they are made from."""
    wanted = {id(m) for m in grid.models if re.search(only, m.name)}
    for model in reversed(grid.models):  # what they are made from comes before them
        if id(model) in wanted:
            wanted |= {id(p) for p in model.parents}
    return [m for m in grid.models if id(m) in wanted]


def _make_child(grid: Grid, model: Model, threads: Optional[int]) -> None:
    """Make a model in this process; exit status 1 and a line where that fails."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    try:
        make(grid, model)
    except RuntimeError as error:
        print(f"{model.name}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def run(grid: Grid, only: str, jobs: int = 1, reproduce: bool = False) -> int:
    """Make what is missing. Returns the number of models that failed or were left out.

    Args:
        jobs: this many models at a time; the processor's cores are shared out.
        reproduce: make also what stands in the results file only.
    """
    models = selected(grid, only)
    known = {} if reproduce else recorded(grid)
    times: Dict[str, List[float]] = {}
    for model in models:
        row = finished(model) or known.get(model.key)
        if row is not None:
            times.setdefault(model.group, []).append(row["seconds"])
    todo = missing(models, known)
    to_make = {id(m) for m in todo}
    todo = [
        m for m in models if id(m) in to_make or (finished(m) and outdated(grid, m, finished(m)))
    ]
    total = len(todo)
    print(f"{len(models) - total} of {len(models)} models need no work", flush=True)
    for model in models:
        row = None if finished(model) else known.get(model.key)
        if row and id(model) not in to_make and outdated(grid, model, row):
            print(
                f"{model.title}: its recorded translation is of other options than the "
                "grid's, and the model is not here; --reproduce makes it again",
                flush=True,
            )
    if todo:
        print("loading fairseq", flush=True)
        import src  # noqa: F401  once, for all

    context = multiprocessing.get_context("fork")
    threads = max(1, len(os.sched_getaffinity(0)) // jobs) if jobs > 1 else None
    running: Dict[int, Tuple[Model, Any]] = {}  # by the process's sentinel
    failed = set()
    try:
        while todo or running:
            waiting = {id(m) for m in todo} | {id(m) for m, _ in running.values()}
            for model in list(todo):
                if any(id(p) in failed for p in model.parents):
                    print(f"{model.name}: left out, what it is made from failed", flush=True)
                    failed.add(id(model))
                    todo.remove(model)
                elif len(running) < jobs and not any(id(p) in waiting for p in model.parents):
                    todo.remove(model)
                    print(f"[{total - len(todo)}/{total}] {model.title} ...", flush=True)
                    process = context.Process(target=_make_child, args=(grid, model, threads))
                    process.start()
                    running[process.sentinel] = (model, process)
            if not running:  # all of this round were left out
                continue
            for sentinel in multiprocessing.connection.wait(list(running)):
                model, process = running.pop(sentinel)
                process.join()
                if process.exitcode == 130:
                    raise KeyboardInterrupt
                row = finished(model)
                if process.exitcode or row is None:
                    failed.add(id(model))
                    continue
                times.setdefault(model.group, []).append(row["seconds"])
                collect(grid)
                left = remaining_seconds(todo, times)
                print(
                    f"    {model.title}: {clock(row['seconds'])}"
                    + (f", BLEU {row['bleu']:.2f}" if row.get("bleu") is not None else "")
                    + (f"; about {clock(left / jobs)} left" if left else ""),
                    flush=True,
                )
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()
    return len(failed)


def measure_speed(grid: Grid) -> int:
    """Translation speed of the models with ``speed: true``, the first model's stock.

    All of them side by side in one run, see translation_speed.py.
    """
    wanted = [m for m in grid.models if m.speed]
    models = [m for m in wanted if finished(m) is not None]
    if not models:
        print("error: --speed: no finished model has speed: true", file=sys.stderr)
        return 2
    if models[0] is not wanted[0]:  # the others' figures are ratios to it
        print(
            f"error: --speed: {wanted[0].title!r} is not here, with which all others are "
            f"compared; run.py {grid.path} --only '^{wanted[0].name}$' --reproduce makes it",
            file=sys.stderr,
        )
        return 2
    arguments = [
        *(sys.executable, str(ROOT / "benchmarks" / "translation_speed.py"), str(grid.data)),
        *(str(m.path) for m in models),
        *("--engines", "pytorch,ctranslate2-int8", "--threads", "1", "--rounds", "7"),
        *("--beam", str(grid.translate.get("beam", 5)), "--output", str(grid.work / "speed")),
    ]
    return subprocess.run(arguments, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", type=Path, help="YAML file")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="models whose names match, and their parents"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="models made at a time, each with its share of the processor's cores: on a CPU"
        " two with one thread each are done sooner than one after the other with two",
    )
    parser.add_argument(
        "--reproduce",
        action="store_true",
        help="make also the models whose results stand in the results file but which are not"
        " in the grid's folder",
    )
    parser.add_argument(
        "--list", action="store_true", help="print the models and their commands, run nothing"
    )
    parser.add_argument(
        "--speed", action="store_true", help="measure the speed of the finished models"
    )
    args = parser.parse_args()
    if args.jobs < 1:
        print(f"error: --jobs {args.jobs}: at least one", file=sys.stderr)
        sys.exit(2)
    try:
        re.compile(args.only)
        grid_file = args.grid.resolve()
        os.chdir(ROOT)  # what a grid names, and the commands that are kept, is relative to it
        grid = read_grid(grid_file)
        if not selected(grid, args.only):
            raise GridError(f"--only {args.only}: matches no model; --list shows their names")
    except re.error as error:
        print(f"error: --only {args.only}: no regular expression ({error})", file=sys.stderr)
        sys.exit(2)
    except GridError as error:
        print(f"error: {error}", file=sys.stderr)
        raise
    if args.list:
        known = recorded(grid)
        for model in selected(grid, args.only):
            state = "done" if finished(model) else "recorded" if model.key in known else "to do"
            print(f"{state}  {model.name}: {command(model.tool, model.arguments(grid.data))}")
        return
    if args.speed:
        sys.exit(measure_speed(grid))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failures = run(grid, args.only, args.jobs, args.reproduce)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on", file=sys.stderr)
        sys.exit(130)
    rows = collect(grid)
    print(f"{len(rows)} results in {grid.results}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
