"""Speed of products with pruned weights, layout by layout, on this machine's CPU.

    OMP_NUM_THREADS=1 python benchmarks/sparse_layers.py

A weight [size, size] in float32 is pruned in several patterns; inputs have 1, 32 and
512 rows. Every line is one weight and one number of rows; its cells are speed-ups over
F.linear: PyTorch's own product. Everything of a line is timed in the same rounds, in a
new random order each; cells are medians of the ratios taken round by round. "packed" is
this project's dense product, with the weight laid out ahead (PackedLinear).
"chosen" is what src/sparsity/layouts.py's `fastest` takes against F.linear, with its
product timed again; "chosen/packed" is what it takes where the dense product and the
smaller ones are packed, over that dense product. Layouts change their input and output
where they need to, within the timing.

The second table has reference figures of another machine (one thread, AVX-512, over
PyTorch's MKL product) beside ours, where smaller products are packed.
"""

import os
import random
import statistics
import time
from typing import Callable, Dict, List

import torch
import torch.nn.functional as F
from common import arguments, check, report

from src.acceleration.constant_products import PackedLinear
from src.sparsity.execution.layouts import LAYOUTS, fastest, prepare, why_not

DENSITIES = (0.5, 0.2, 0.1, 0.05)
ROWS = (1, 32, 512)
PATTERNS = ("single", "4x4", "64x1", "channels")
# of another machine: layout, pattern, rows, speed-ups at the four densities
REFERENCE = (
    ("smaller", "channels", 32, (2.0, 5.3, 10, 18)),
    ("csr", "single", 32, (0.87, 2.0, 3.5, 5.5)),
    ("csr", "single", 1, (0.17, 0.48, 0.97, 1.9)),
    ("bsr", "4x4", 32, (0.78, 1.8, 3.0, 4.7)),
    ("gathered", "64x1", 32, (1.7, 3.8, 6.2, 9.1)),
)


def pruned(pattern: str, size: int, density: float, generator) -> torch.Tensor:
    """A random weight of which a share of the pattern's blocks is kept, exactly."""
    high, wide = {"single": (1, 1), "4x4": (4, 4), "64x1": (64, 1)}.get(pattern, (size, 1))
    shape = size // high, size // wide
    kept = torch.zeros(shape[0] * shape[1])
    order = torch.randperm(len(kept), generator=generator)
    kept[order[: round(density * len(kept))]] = 1
    kept = kept.view(shape).repeat_interleave(high, 0).repeat_interleave(wide, 1)
    return torch.randn(size, size, generator=generator) * kept


def measure(variants: Dict[str, Callable], rounds: int, seconds: float):
    """Seconds per call, every variant once a round in a new order; at least 15 rounds.

    With one thread they are its own time, in which other programs don't run.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: Dict[str, List[float]] = {name: [] for name in variants}
    order, generator = list(variants), random.Random(1)
    for name in order:
        variants[name]()
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 15 and time.perf_counter() - start > seconds:
            break
        generator.shuffle(order)
        for name in order:
            begin = clock()
            variants[name]()
            times[name].append(clock() - begin)
    return times


def line(pattern, density, rows, weight, bias, args) -> Dict:
    """One line of the table."""
    x = torch.randn(rows, weight.shape[1])
    products = {
        name: prepare(weight, bias, name)
        for name in LAYOUTS
        if name != "dense" and why_not(weight, name) is None
    }
    packed = PackedLinear(weight, bias)
    products["packed"] = packed
    chosen = fastest(weight, bias, rows)
    beside = fastest(weight, bias, rows, dense=PackedLinear)
    expected = F.linear(x.double(), weight.double(), bias.double())
    for name, product in products.items():
        if (product(x) - expected).abs().max() > 1e-3:
            raise SystemExit(f"{name} is wrong: {pattern} {density} {rows}")
    products["chosen"] = chosen.product
    if beside.name != "dense":
        products["beside"] = beside.product
    variants = {name: (lambda p=p: p(x)) for name, p in products.items()}
    variants["dense"] = lambda: F.linear(x, weight, bias)
    times = measure(variants, args.rounds, args.seconds)

    layouts = [name for name in products if name not in ("chosen", "beside")]
    cells = {name: speedup(times, name) for name in layouts}
    over = 1.0 if beside.name == "dense" else speedup(times, "beside", "packed")
    return {
        "rows": rows,
        "pattern": pattern,
        "density": density,
        "dense_us": round(statistics.median(times["dense"]) * 1e6),
        **cells,
        "chosen": chosen.name,
        "speed-up": speedup(times, "chosen"),
        "chosen/packed": beside.name,
        "over packed": over,
    }


def beside_reference(size: int, rounds: int, seconds: float) -> List[Dict]:
    """Our figures and the reference's; here only dense and the layout take turns."""
    lines, generator = [], torch.Generator().manual_seed(2)
    for layout, pattern, rows, figures in REFERENCE:
        for density, figure in zip(DENSITIES, figures):
            weight = pruned(pattern, size, density, generator)
            bias = torch.randn(size, generator=generator)
            x = torch.randn(rows, size)
            product = prepare(weight, bias, layout, dense=PackedLinear)
            variants = {
                "dense": lambda: F.linear(x, weight, bias),
                layout: lambda: product(x),
            }
            found = speedup(measure(variants, rounds, seconds), layout)
            lines.append(
                {
                    "layout": layout,
                    "pattern": pattern,
                    "rows": rows,
                    "density": density,
                    "reference": figure,
                    "ours": found,
                    "ours/reference": round(found / figure, 2),
                }
            )
    return lines


def speedup(times: Dict[str, List[float]], name: str, base: str = "dense") -> float:
    """Median of the ratios taken round by round."""
    quotients = [b / t for b, t in zip(times[base], times[name])]
    return round(statistics.median(quotients), 2)


def main():
    parser = arguments(__doc__)
    parser.set_defaults(threads=1, rounds=200)
    size = "rows, and columns, of the weight; a multiple of 64"
    parser.add_argument("--size", type=int, default=1024, help=size)
    parser.add_argument("--seconds", type=float, default=2.0, help="a line, about")
    parser.add_argument("--patterns", default=",".join(PATTERNS), help="which of them")
    args = parser.parse_args()
    patterns = args.patterns.split(",")
    for pattern in patterns:
        if pattern not in PATTERNS:
            parser.error(f"--patterns {pattern}: is none of {', '.join(PATTERNS)}")
    check(parser, args)
    if args.size < 64 or args.size % 64:
        parser.error(f"--size {args.size}: must be a multiple of 64")
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(1)
    lines = []
    for pattern in patterns:
        for density in DENSITIES:
            weight = pruned(pattern, args.size, density, generator)
            bias = torch.randn(args.size, generator=generator)
            for rows in ROWS:
                lines.append(line(pattern, density, rows, weight, bias, args))
    lines.sort(key=lambda row: ROWS.index(row["rows"]))
    facts = {"weight": f"{args.size}x{args.size} float32", "rounds": args.rounds}
    facts["load"] = " ".join(f"{value:.1f}" for value in os.getloadavg())
    report("Speed-up of products with pruned weights", lines, args.output, **facts)
    comparison = args.output and args.output + "_reference"
    lines = beside_reference(args.size, args.rounds, args.seconds)
    report("Speed-ups beside reference figures", lines, comparison, **facts)


if __name__ == "__main__":
    main()
