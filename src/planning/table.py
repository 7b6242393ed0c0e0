"""Rows of a plan as a table to read, and as plain numbers."""

from typing import Any, Dict, List, Sequence

import pandas as pd

from .rows import Row
from .timing import Ratio


def to_records(rows: Sequence[Row]) -> List[Dict[str, Any]]:
    """Plain numbers, a mapping for each row."""
    return [
        {
            "engine": row.engine,
            "encoder_layers": row.candidate.encoder_layers,
            "decoder_layers": row.candidate.decoder_layers,
            "rate": row.candidate.rate,
            "as_given": row.as_given,
            "parameters": row.parameters,
            "share": round(row.share, 6),
            "mflops": round(row.mflops, 3),
            "checkpoint_bytes": row.checkpoint_bytes,
            "export_bytes": row.export_bytes,
            "tokens_per_second": round(row.tokens_per_second, 1),
            **_columns("speed_up", row.speed_up),
            **(_columns("times_fairseq", row.times_fairseq) if row.times_fairseq else {}),
        }
        for row in rows
    ]


def _columns(name: str, found: Ratio) -> Dict[str, float]:
    values = dict(zip(("", "_low", "_high"), found))
    return {f"{name}{end}": round(value, 4) for end, value in values.items()}


def readable(rows: Sequence[Row]) -> str:
    """A table for each engine, a line for each candidate."""
    tables = []
    for engine in dict.fromkeys(row.engine for row in rows):
        some = [row for row in rows if row.engine == engine]
        some.sort(key=lambda row: (*(-n for n in row.candidate.depths), -row.share))
        lines = pd.DataFrame([_line(row) for row in some]).dropna(axis=1, how="all")
        tables.append(f"{engine}\n{lines.fillna('').to_string(index=False)}\n")
    return "\n".join(tables)


def _line(row: Row) -> Dict[str, Any]:
    found, export = row.speed_up, row.export_bytes
    return {
        "layers": row.candidate.layers,
        "rate": f"{row.candidate.rate:g}",
        "parameters": f"{row.parameters:,}",
        "MFLOPs": f"{row.mflops:.1f}",
        "checkpoint MB": f"{row.checkpoint_bytes / 1e6:.2f}",
        "export MB": None if export is None else f"{export / 1e6:.2f}",
        "tokens/s": f"{row.tokens_per_second:.0f}",
        "speed-up": f"{found.median:.2f}",
        "quartiles": f"{found.low:.2f}-{found.high:.2f}",
        "x fairseq": row.times_fairseq and f"{row.times_fairseq.median:.2f}",
    }
