"""Everything that reads a checkpoint, run in this process: our tools, fairseq's, its hub."""

import io
import os
from importlib import import_module
from pathlib import Path
from typing import Callable, Dict
from unittest import mock

from fairseq.models.transformer import TransformerModel
from fairseq_cli import generate as fairseq_generate
from fairseq_cli import interactive as fairseq_interactive
from fairseq_cli import validate as fairseq_validate

from src import (
    average_checkpoints,
    distill_data,
    export,
    export_adapters,
    export_sparse,
    flops_counter,
    generate,
    plan,
    pruning,
    sparsity_report,
    trim_vocabulary,
)
from tests.support.training import RUN, TINY, run_training
from tests.support.translation import USER_DIR, run_tool

compress = import_module("src.compress")  # the package has a function of this name

BEAM = ["--beam", "1", "--max-len-b", "5"]
SEARCH = [*BEAM, "--batch-size", "4", "--no-progress-bar", "--cpu"]
STOCK = ["--user-dir", USER_DIR, "--task", "SRPtranslation", "--cpu", "--no-progress-bar"]
STOCK += ["--batch-size", "4"]
ONE_UPDATE = ["--max-update", "1", "--no-save", "--disable-validation"]

# How a reader is called: with the data's folder, the checkpoint, and an empty folder.
Reader = Callable[[str, str, Path], object]


def command(main: Callable, *arguments: str, search: bool = False) -> Reader:
    """A command of ours; ``{data}``, ``{path}`` and ``{out}`` in its arguments are filled in."""

    def read(data: str, path: str, out: Path):
        given = [a.format(data=data, path=path, out=out) for a in arguments]
        given += SEARCH if search else []
        return run_tool(lambda: main(given), given)

    return read


def training(*arguments: str) -> Reader:
    """A training of one update."""

    def read(data: str, path: str, out: Path):
        given = [a.format(path=path) for a in arguments]
        return run_training([data, *TINY, *RUN, *given, *ONE_UPDATE, "--save-dir", out])

    return read


def stock(main: Callable, *arguments: str) -> Reader:
    """A command of fairseq's with this plug-in loaded."""

    def read(data: str, path: str, out: Path):
        given = [data, "--path", path, *STOCK, *arguments]
        with mock.patch("sys.stdin", io.StringIO("de1 de2\n")):
            return run_tool(main, given)

    return read


def hub(data: str, path: str, out: Path):
    folder, name = os.path.split(path)
    model = TransformerModel.from_pretrained(folder, name, data)
    return model.translate("de1 de2", beam=1, max_len_b=5)


READERS: Dict[str, Reader] = {
    "generate.py": command(generate.main, "{data}", "--path", "{path}", search=True),
    "distill_data.py": command(
        distill_data.main, "{data}", "--path", "{path}", "--output", "{out}/data", search=True
    ),
    "export.py": command(export.main, "{data}", "--path", "{path}", "--output", "{out}/model"),
    "export_sparse.py": command(
        export_sparse.main, "--path", "{path}", "--output", "{out}/x.safetensors"
    ),
    "export_adapters.py": command(
        export_adapters.main, "--path", "{path}", "--output", "{out}/adapters.pt"
    ),
    "trim_vocabulary.py": command(trim_vocabulary.main, "{data}", "--path", "{path}", "--dry-run"),
    "plan.py": command(
        *(plan.main, "{data}", "--path", "{path}", "--rates", "0.5", "--depths", "1+1"),
        *("--rounds", "2", "--sentences", "2", "--engines", "pytorch"),
    ),
    "compress.py": command(
        *(lambda _: compress.main(), "{data}", "--path", "{path}", "--output", "{out}/model"),
        *("--compression-rate", "0.5", "--dry-run"),
    ),
    "pruning.py": command(
        *(lambda _: pruning.main(), "{data}", "--pretrained-model", "{path}", *RUN),
        *("--compression-rate", "0.5", "--save-dir", "{out}"),
    ),
    "average_checkpoints.py": command(
        average_checkpoints.main, "--inputs", "{path}", "--output", "{out}/average.pt"
    ),
    "flops_counter.py": command(flops_counter.main, "{path}"),
    "sparsity_report.py": command(sparsity_report.main, "--path", "{path}", "--output", "{out}"),
    "--pretrained-model": training("--pretrained-model", "{path}"),
    "--teacher-model": training("--teacher-model", "{path}", "--prob-kd", "1"),
    "--restore-file": training("--restore-file", "{path}", "--reset-dataloader"),
    "--finetune-from-model": training("--finetune-from-model", "{path}"),
    "--ema-seed-model": training("--store-ema", "--ema-seed-model", "{path}"),
    "fairseq-generate": stock(fairseq_generate.cli_main, *BEAM),
    "fairseq-interactive": stock(
        fairseq_interactive.cli_main, "-s", "de", "-t", "en", "--buffer-size", "4", *BEAM
    ),
    "fairseq-validate": stock(fairseq_validate.cli_main, "--valid-subset", "valid"),
    "from_pretrained": hub,
}
# Those that read the data in the direction that the checkpoint says.
DIRECTED = ("pruning.py", "compress.py")
# Those that have data to compare a checkpoint's dictionaries with.
WITH_DATA = [
    name
    for name in READERS
    if name not in ("export_sparse.py", "export_adapters.py", "average_checkpoints.py")
    and name not in ("flops_counter.py", "sparsity_report.py", "--ema-seed-model")
]
