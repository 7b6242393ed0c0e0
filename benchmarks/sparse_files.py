"""Sparse files beside torch.save and plain safetensors: bytes, time to save and to load.

    python benchmarks/sparse_files.py --output sparse_files
    python benchmarks/sparse_files.py --library ~/ModelPruningLibrary --folder /dev/shm

The tensors are those of ModelPruningLibrary's README: 1000 x 1000 float32, normal, with
a random mask. Every way of saving and loading runs once a round, in a new random order
each round; figures are medians. "entropy" is the least that random positions and values
of 4 bytes can take; only compressed values get below. Nothing but "durable" waits for
the disk. From COO, the positions are there already; from a dense tensor, they are looked
for, and with -0.0, which a product with a mask has, half of the zeros' signs are kept.
Loading gives a dense tensor everywhere but "torch.save, COO" and
ModelPruningLibrary.

Rows "on record" were not run here: they are figures of another machine, for
orientation. ModelPruningLibrary itself (github.com/jiangyuang/ModelPruningLibrary) runs
beside the others where --library names a copy of it; "x library" then is how many times
faster.
"""

import argparse
import copyreg
import importlib.util
import math
import os
import shutil
import statistics
import sys
import tempfile
import warnings
from types import SimpleNamespace
from typing import Callable, Dict, List, Tuple

import numpy as np
import torch
from common import arguments, check, interleave, report
from safetensors.torch import load_file, save_file

from src.sparsity.files.storage import load_sparse, save_sparse

LIBRARY = "ModelPruningLibrary"
DENSITIES = {"1/2": 1 / 2, "1/16": 1 / 16, "1/64": 1 / 64}
# not measured here: (bytes, milliseconds to save, to load) at these densities
ON_RECORD = {
    LIBRARY: ((2_124_736, 128, 22), (376_972, 22, 4), (126_509, 2, 4)),
    "gaps, compressed exponents": (
        (1_829_901, None, None),
        (256_909, None, None),
        (68_535, None, None),
    ),
}

Way = Tuple[Callable[[str], None], Callable[[str], object]]  # save, load


def readme_tensor(density: float, size: int) -> torch.Tensor:
    """The example of ModelPruningLibrary's README, as COO."""
    torch.manual_seed(0)
    x = torch.randn(size=(size, size))
    mask = torch.rand_like(x) <= density
    return (x * mask).to_sparse()


def library(folder: str) -> Way:
    """ModelPruningLibrary's save and load, without its change of every tensor's pickle."""
    path = os.path.join(folder, "mpl", "utils", "save_load.py")
    spec = importlib.util.spec_from_file_location("mpl_save_load", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its pickles name its functions
    spec.loader.exec_module(module)
    reduce = copyreg.dispatch_table.pop(torch.Tensor)
    # numpy 2 refuses its np.array(..., copy=False)
    module.np = SimpleNamespace(
        array=lambda image, dtype, copy: np.asarray(image, dtype), uint8=np.uint8
    )

    def save(path: str, x: torch.Tensor) -> None:
        copyreg.pickle(torch.Tensor, reduce)
        try:
            module.save(x, path)
        finally:
            del copyreg.dispatch_table[torch.Tensor]

    return save, module.load


def ways_of(coo: torch.Tensor, args) -> Dict[str, Way]:
    dense = coo.to_dense()
    # what multiplying with a mask leaves where the weight was negative
    signed = torch.where(dense == 0, -0.0 * torch.randn_like(dense).sign(), dense)

    def ours(value: torch.Tensor, compression: str, durable: bool = False) -> Way:
        def save(path: str) -> None:
            save_sparse(path, {"x": value}, None, compression, durable)

        return save, lambda path: load_sparse(path)["x"]

    def with_torch(value: torch.Tensor) -> Way:
        return lambda path: torch.save(value, path), torch.load

    ways = {
        "sparse file (full), from COO": ours(coo, "full"),
        "sparse file (full), from dense": ours(dense, "full"),
        "sparse file (full), from dense, durable": ours(dense, "full", True),
        "sparse file (full), from dense with -0.0": ours(signed, "full"),
        "sparse file (index), from COO": ours(coo, "index"),
        "sparse file (none), from COO": ours(coo, "none"),
        "torch.save, COO": with_torch(coo),
        "torch.save, dense": with_torch(dense),
        "safetensors, dense": (
            lambda path: save_file({"x": dense}, path),
            lambda path: load_file(path)["x"],
        ),
    }
    if args.library:
        warnings.simplefilter("ignore", UserWarning)  # torch's, of its indexing
        save, load = library(args.library)
        ways[LIBRARY] = (lambda path: save(path, coo), load)
    return ways


def checked(ways: Dict[str, Way], coo: torch.Tensor, folder: str) -> Dict[str, int]:
    """Bytes of every way's file, which it must read rightly."""
    sizes = {}
    for number, (name, (save, load)) in enumerate(ways.items()):
        path = os.path.join(folder, str(number))
        save(path)
        found = load(path)
        if not torch.equal(found.to_dense(), coo.to_dense()):
            raise RuntimeError(f"{name}: read something else than it wrote")
        sizes[name] = os.path.getsize(path)
    return sizes


def rows_of(label: str, density: float, args, folder: str) -> List[Dict]:
    """The table's rows of one density."""
    coo = readme_tensor(density, args.size)
    n, count = coo.numel(), coo._nnz()
    share = count / n
    bits = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    entropy = round(n * bits / 8 + 4 * count)
    ways = ways_of(coo, args)
    sizes = checked(ways, coo, folder)
    variants = {}
    for number, (name, (save, load)) in enumerate(ways.items()):
        path = os.path.join(folder, str(number))
        variants[name, "save"] = lambda save=save, path=path: save(path)
        variants[name, "load"] = lambda load=load, path=path: load(path)
    times = interleave(variants, args.rounds)
    rows = []
    for name in ways:
        row = {"density": label, "way": name, "bytes": sizes[name], "entropy": entropy}
        row["bytes/entropy"] = round(sizes[name] / entropy, 3)
        for step in ("save", "load"):
            row[f"{step} ms"] = round(statistics.median(times[name, step]) * 1e3, 2)
            row[f"{step} ms, least"] = round(min(times[name, step]) * 1e3, 2)
            if args.library:
                pairs = zip(times[LIBRARY, step], times[name, step])
                faster = statistics.median(theirs / time for theirs, time in pairs)
                row[f"{step}, x library"] = round(faster, 1)
        rows.append(row)
    place = list(DENSITIES).index(label)
    for name, figures in ON_RECORD.items() if args.size == 1000 else ():
        size, save, load = figures[place]
        row = {"density": label, "way": f"on record: {name}", "bytes": size}
        row.update({"entropy": entropy, "bytes/entropy": round(size / entropy, 3)})
        row.update({"save ms": save, "load ms": load})
        rows.append(row)
    return rows


def parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--size", type=int, default=1000, help="rows, and columns")
    parser.add_argument("--folder", help="where the files go (default: the usual /tmp)")
    parser.add_argument("--library", help="a copy of ModelPruningLibrary to run as well")
    args = parser.parse_args()
    check(parser, args, size=10)
    if args.folder and not os.path.isdir(args.folder):
        parser.error(f"--folder {args.folder}: no such folder")
    if args.library and not os.path.isdir(os.path.join(args.library, "mpl", "utils")):
        parser.error(f"--library {args.library}: has no mpl/utils/save_load.py")
    return args


def filesystem(folder: str) -> str:
    """Type of the file system that a folder is on, where the system tells."""
    best, found = "", "unknown"
    try:
        with open("/proc/mounts", encoding="utf-8") as stream:
            mounts = [line.split()[1:3] for line in stream]
    except OSError:
        return found
    for mount, kind in mounts:
        inside = os.path.commonpath([mount, os.path.realpath(folder)]) == mount
        if inside and len(mount) >= len(best):
            best, found = mount, kind
    return found


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    folder = tempfile.mkdtemp(dir=args.folder)
    try:
        rows = [
            row
            for label, density in DENSITIES.items()
            for row in rows_of(label, density, args, folder)
        ]
        report(
            f"Sparse files, {args.size} x {args.size} float32",
            rows,
            args.output,
            rounds=args.rounds,
            files=filesystem(folder),
            load=round(os.getloadavg()[0], 1),
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
