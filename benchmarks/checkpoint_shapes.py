"""Checkpoints of many shapes and releases of fairseq through compress.py --quick.

    python benchmarks/checkpoint_shapes.py

Imitations with random weights of a few channels, on a tiny synthetic corpus: what is seen is that
each goes all the way, from reading to the exported model; BLEU would say nothing. "big" has the
widths of transformer_wmt_en_de_big (1024/4096, 16 heads) in two and two layers, and trains with
fairseq's --checkpoint-activations; "ensemble" is taught by two checkpoints. Ends with status 1
if one does not come to its end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List

os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import torch

from tests.support.published import CASES, PRE_NORM, Case, as_dict, write_checkpoint, write_data
from tests.support.training import write_corpus

BIG = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("embed_dim", 1024), ("ffn_embed_dim", 4096), ("attention_heads", 16))
}
MORE = {"big": Case(as_dict, options={**BIG, **PRE_NORM}), "ensemble": Case(as_dict)}


def compressed(name: str, case: Case, corpus: str, folder: Path) -> Dict:
    """A row of the table for one shape."""
    data, path = write_data(case, corpus, folder / "data"), folder / "checkpoint.pt"
    model = write_checkpoint(case, data, path)
    extra: List[str] = []
    if name == "ensemble":
        (folder / "other").mkdir()
        write_checkpoint(case, data, folder / "other" / "checkpoint.pt")
        extra = ["--teacher", f"{path}:{folder / 'other' / 'checkpoint.pt'}"]
    training = ["--cpu", *(["--checkpoint-activations"] if name == "big" else [])]
    command = ["src/compress.py", data, "--path", str(path), "--output", str(folder / "out")]
    command += [*extra, "--quick", "--compression-rate", "0.5", "-s", "de", "-t", "en"]
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command, "--", *training],
        cwd=common.ROOT,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - begin
    row = {
        "shape": name,
        "layers": "{}+{}".format(*map(len, (model.encoder.layers, model.decoder.layers))),
    }
    if done.returncode:
        print(f"{name}: {done.stdout[-1500:]}{done.stderr[-3000:]}", file=sys.stderr)
        return {**row, "status": done.returncode}
    result = json.loads((folder / "out" / "result.json").read_text())
    before, after = result["parameters"]
    exported = folder / "out" / result["export"] / "model.bin"
    return {
        **row,
        "status": 0,
        "parameters": before,
        "kept": f"{after / before:.2f}",
        "exported kB": round(exported.stat().st_size / 1000),
        "seconds": round(seconds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shapes = {**CASES, **MORE}
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(shapes)}")
    parser.add_argument(
        "--output", default="", help="write OUTPUT.md and OUTPUT.json (default: print only)"
    )
    args = parser.parse_args()
    for name in args.shapes:
        if name not in shapes:
            parser.error(f"SHAPE {name}: must be one of {', '.join(shapes)}")
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "corpus").mkdir()
        corpus = write_corpus(Path(name) / "corpus")
        for number, shape in enumerate(args.shapes or shapes):
            folder = Path(name) / str(number)
            folder.mkdir()
            rows.append(compressed(shape, shapes[shape], corpus, folder))
            print(rows[-1], file=sys.stderr, flush=True)
    common.report("Shapes of checkpoints through compress.py --quick", rows, args.output)
    return int(any(row["status"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
