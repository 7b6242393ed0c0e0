"""What the values of plan.py's options mean, and what is refused of them."""

from typing import List

import torch

from ..checks.speed import (
    BASELINES,
    FAIRSEQ,
    MAP,
    QUANTIZATIONS,
    UNCUT,
    available,
    check_engine,
    check_speed_up,
)
from ..errors import UserError
from ..files import check_output_file
from .rows import Depths


def parse_depths(text: str, present: Depths) -> List[Depths]:
    """The depths of ``--depths``.

    Args:
        present: layers of the model.

    Raises:
        UserError: names the part that is wrong, and what is valid.
    """
    found = []
    for part in text.split(","):
        numbers = part.split("+")
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            raise UserError(
                f"--depths {part}: must be layers of encoder and decoder, as {present[0]}+1"
            )
        depths = int(numbers[0]), int(numbers[1])
        if not all(1 <= n <= there for n, there in zip(depths, present)):
            raise UserError(
                f"--depths {part}: the model has {present[0]}+{present[1]} layers; give from 1 to "
                "that many of each"
            )
        found.append(depths)
    return found


def parse_rates(text: str) -> List[float]:
    """The rates of ``--rates``.

    Raises:
        UserError: names the part that is wrong.
    """
    found = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = 0.0
        if not 0 < rate <= 1:
            raise UserError(
                f"--rates {part}: must be in (0, 1], shares of parameters with commas between"
            )
        found.append(rate)
    return found


def parse_engines(args) -> List[str]:
    """The engines to time, those with a vocabulary map after those without.

    Raises:
        UserError: an engine is unknown or not there.
    """
    if args.engines is not None:
        names = args.engines.split(",")
        for name in names:
            check_engine(name, "--engines", args.device)
    else:
        names = available(args.device)
    if args.vocabulary_map is not None:
        mapped = [n + MAP for n in names if n in QUANTIZATIONS]
        if not mapped:
            raise UserError(
                f"--vocabulary-map {args.vocabulary_map}: needs an engine of CTranslate2 among "
                "--engines"
            )
        names = [*names, *mapped]
    elif any(name.endswith(MAP) for name in names):
        raise UserError(f"--engines {args.engines}: {MAP} needs --vocabulary-map")
    return list(dict.fromkeys(names))


def add_baseline(group) -> None:
    """Add the option that says what ``--speed-up`` counts from."""
    group.add_argument(
        "--speed-baseline",
        choices=BASELINES,
        help=f"what --speed-up counts from: {UNCUT} (default), the uncut model in the same engine, "
        f"or {FAIRSEQ}, stock fairseq's search with the uncut model in PyTorch",
    )


def check(args) -> None:
    """Refuse what the command line alone rules out.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    for name, least in (
        ("vocabulary_map", 1),
        ("sentences", 1),
        ("rounds", 2),
        ("beam", 1),
        ("batch_size", 1),
        ("cpu_threads", 1),
    ):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    check_speed_up(args)
    if not 1e-3 <= args.embedding_ratio <= 1e3:
        raise UserError(
            f"--embedding-ratio {args.embedding_ratio:g}: must be from 0.001 to 1000; 1 is no "
            "preference"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU; leave it out")
    for name in ("csv", "json", "picture"):
        if getattr(args, name) is not None:
            check_output_file(getattr(args, name), args.path, option=f"--{name}", named="--path")
