"""What a report says of several runs: their figures, and whether they compare."""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

import pandas as pd

from ..errors import UserError
from .results import read_results

REPORT, RESULTS = "report.json", "results.csv"
NEEDED = ("bleu", "parameters", "uncut_parameters", "flops", "checkpoint_bytes")
NEEDED += ("model_bytes", "tokens_per_second", "widths")
# Speed compares only where these are equal, BLEU where its signature is.
SPEED_CONDITIONS = ("device", "machine", "threads", "beam", "batch_size", "max_tokens")
SPEED_CONDITIONS += ("gen_subset", "engine", "quantization", "vocabulary_map")

Run = Dict[str, Any]


def find_runs(folders: List[Path]) -> List[Path]:
    """The folders that hold a report, or those inside the only one given.

    Raises:
        UserError: a folder or its report is missing.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"RUN_DIR {folder}: no such folder")
    if len(folders) == 1 and not (folders[0] / REPORT).is_file():
        inside = [path.parent for path in folders[0].glob(f"*/{REPORT}")]
        if not inside:
            raise UserError(
                f"RUN_DIR {folders[0]}: neither it nor a folder in it has {REPORT}; "
                "write it with generate.py --report"
            )

        def largest_first(folder: Path):
            written = (folder / REPORT).stat().st_mtime
            return -read_report(folder)["parameters"], written, folder.name

        return sorted(inside, key=largest_first)
    return folders


def read_report(folder: Path) -> Run:
    """A run's report.json.

    Raises:
        UserError: missing, or not what ``generate.py --report`` writes.
    """
    path = folder / REPORT
    if not path.is_file():
        raise UserError(f"{path}: no such file; write it with generate.py --report {path}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); write it anew") from None
    missing = [n for n in NEEDED if not isinstance(report, dict) or n not in report]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; write it anew")
    wrong = [name for name in NEEDED if not _is_measured(name, report[name])]
    if wrong:
        found = json.dumps(report[wrong[0]])[:40]
        raise UserError(f"{path}: its {wrong[0]} is {found}, which nothing measured; write it anew")
    return report


def _is_measured(name: str, value: Any) -> bool:
    """Whether ``generate.py --report`` writes such a value."""
    if name == "widths":
        return isinstance(value, dict) and all(
            isinstance(pair, list) and len(pair) == 2 and all(type(x) is int for x in pair)
            for pair in value.values()
        )
    if value is None:  # without references, or without a translation
        return name in ("bleu", "tokens_per_second")
    return type(value) in (int, float) and (name != "uncut_parameters" or value > 0)


def valid_loss(folder: Path, num_updates: Optional[int]) -> Optional[float]:
    """Validation loss of the tested checkpoint, from results.csv where there is one.

    Raises:
        UserError: the file was changed to something else.
    """
    rows = read_results(str(folder / RESULTS))
    losses = [row.get("valid_loss") for row in rows if int(row["num_updates"]) == num_updates]
    return float(losses[-1]) if losses and losses[-1] else None


def names(folders: List[Path]) -> List[str]:
    """The folders' last parts, with as many parents as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(len(p) for p in parts) + 1):
        found = ["/".join(p[-depth:]) for p in parts]
        if len(set(found)) == len(found):
            break
    return found


def read_runs(folders: List[Path]) -> List[Run]:
    """Reports in order, with ``name``, ``folder``, ``valid_loss`` and ``stale`` added."""
    runs = []
    for name, folder in zip(names(folders), folders):
        run = read_report(folder)
        loss = valid_loss(folder, run.get("num_updates"))
        # training went on after the translation
        checkpoint = folder / Path(run.get("checkpoint", "")).name
        written = (folder / REPORT).stat().st_mtime
        stale = checkpoint.is_file() and checkpoint.stat().st_mtime > written
        added = {"name": name, "valid_loss": loss, "stale": stale, "folder": folder}
        runs.append({**run, **added})
    return runs


def table(runs: List[Run]) -> pd.DataFrame:
    """One row a run, plain numbers; speed-up is against the first."""
    rows = []
    first = runs[0]["tokens_per_second"]
    for run in runs:
        speed = run["tokens_per_second"]
        rows.append(
            {
                "name": run["name"],
                "bleu": run["bleu"],
                "valid_loss": run["valid_loss"],
                "parameters": run["parameters"],
                "share": run["parameters"] / run["uncut_parameters"],
                "flops": run["flops"],
                "checkpoint_bytes": run["checkpoint_bytes"],
                "model_bytes": run["model_bytes"],
                "tokens_per_second": speed,
                "speed_up": speed / first if speed and first else None,
            }
        )
    return pd.DataFrame(rows)


def readable(numbers: pd.DataFrame) -> pd.DataFrame:
    """The table for people: titles with units, few digits."""

    def column(name: str, pattern: str, unit: float = 1.0) -> List[str]:
        return ["–" if pd.isna(value) else pattern.format(value / unit) for value in numbers[name]]

    columns = {
        "run": numbers["name"].tolist(),
        "BLEU": column("bleu", "{:.2f}"),
        "valid loss": column("valid_loss", "{:.3f}"),
        "parameters": column("parameters", "{:,.0f}"),
        "of uncut": column("share", "{:.1%}"),
        "MFLOPs": column("flops", "{:,.1f}", 1e6),
        "checkpoint MB": column("checkpoint_bytes", "{:,.2f}", 1e6),
        "weights MB": column("model_bytes", "{:,.2f}", 1e6),
        "tokens/s": column("tokens_per_second", "{:,.0f}"),
        "speed-up": column("speed_up", "{:.2f}x"),
    }
    if numbers["valid_loss"].isna().all():
        del columns["valid loss"]
    return pd.DataFrame(columns)


def conditions(runs: List[Run]) -> List[str]:
    """What the figures were measured with, and which of them don't hold or compare."""
    lines = [
        f"{run['name']}: its checkpoint is NEWER than {REPORT}; translate again"
        for run in runs
        if run["stale"]
    ]
    signatures = list(dict.fromkeys(r.get("bleu_signature") for r in runs))
    lines += [f"BLEU: {signature}" for signature in signatures if signature]
    # reports of earlier versions have less
    raw = {bool(r["reference"]) for r in runs if "reference" in r}
    texts = {r["bleu_references_sha256"] for r in runs if "bleu_references_sha256" in r}
    searches = {(r["beam"], r["lenpen"]) for r in runs if "lenpen" in r}
    for what, values in (
        ("signatures", signatures),
        ("sets (--gen-subset)", {r.get("gen_subset") for r in runs}),
        ("references (--reference)", raw if len(raw) > 1 else texts),
        ("searches (--beam, --lenpen)", searches),
    ):
        if len(values) > 1:
            lines.append(f"BLEU is NOT comparable: the {what} differ")
    measured = {name: {str(r.get(name)) for r in runs} for name in SPEED_CONDITIONS}
    known = {name: sorted(values - {"None"}) for name, values in measured.items()}
    shown = [f"{name} {' / '.join(values)}" for name, values in known.items() if values]
    lines.append(f"Speed: {', '.join(shown)}")
    different = [name for name, values in measured.items() if len(values) > 1]
    if different:
        lines.append(f"Speed is NOT comparable: {', '.join(different)} differ")
    lengths = {(r.get("flops_source_length"), r.get("flops_target_length")) for r in runs}
    shown = " / ".join(f"{s} source and {t} target" for s, t in sorted(lengths, key=str))
    lines.append(f"FLOPs: one sentence of {shown} tokens, beam 1, cached keys and values")
    return lines
