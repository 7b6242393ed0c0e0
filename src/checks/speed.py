"""What is refused of speed as a budget: its engines, and speed-ups that are none."""

from importlib.util import find_spec
from typing import List

from ..errors import UserError
from .ctranslate2_package import require_ctranslate2
from .values import Must, Needs, OneOf, Options, check

MAP = "-vmap"  # ends the name of an engine that scores a vocabulary map's types alone
QUANTIZATIONS = {"ctranslate2-float32": "float32", "ctranslate2-int8": "int8"}
ENGINES = ("pytorch", *QUANTIZATIONS)
UNCUT, FAIRSEQ = "uncut", "fairseq"
BASELINES = {UNCUT: "the uncut model", FAIRSEQ: "stock fairseq with the uncut model"}


SPEED_UP = (
    Must("speed_up", lambda times: 1 < times < 1000)
    | "must be above 1, which is the speed of --speed-baseline; 4 is four times as fast"
)
BASELINE = Needs("speed_baseline", "speed_up") | "needs --speed-up, as 4 for four times as fast"
# Of a pruning run whose budget is a speed.
SPEED = (
    Needs("speed_engine", "speed_up") | "needs --speed-up, as 4 for four times as fast",
    BASELINE,
    OneOf("speed_baseline", BASELINES),
    SPEED_UP,
    Needs("speed_up", lambda o: o.compression_rate == 1)
    | "--compression-rate {o.compression_rate:g} is given too; it is what --speed-up finds, leave "
    "one of them out",
    Needs("speed_up", "speed_engine")
    | f"needs --speed-engine, what the model is for: {', '.join(ENGINES)}",
)


def check_speed_up(args) -> None:
    """Refuse a ``--speed-up`` that is no gain, and a baseline without one, with a UserError."""
    check([SPEED_UP, BASELINE], Options(**vars(args)))


def available(device: str) -> List[str]:
    """The engines that can run on a device here."""
    if device != "cpu" or not find_spec("ctranslate2"):
        return ["pytorch"]
    return list(ENGINES)


def check_engine(engine: str, option: str, device: str = "cpu") -> None:
    """Refuse an engine that is not known, or not there.

    Args:
        option: what named it, for messages.

    Raises:
        UserError: names the engine and those that there are.
    """
    known = [*ENGINES, *(name + MAP for name in QUANTIZATIONS)]
    if engine not in known:
        raise UserError(f"{option} {engine}: must be one of {', '.join(known)}")
    if engine.removesuffix(MAP) in QUANTIZATIONS:
        require_ctranslate2(f"{option} {engine}")
        if device != "cpu":
            raise UserError(f"{option} {engine}: runs on the CPU; on a GPU there is pytorch")
