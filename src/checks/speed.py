"""What is refused of speed as a budget: its engines, and speed-ups that are none."""

from importlib.util import find_spec
from typing import List

from ..errors import UserError
from ..options import SRPTranslationConfig
from .engine import require_ctranslate2

MAP = "-vmap"  # ends the name of an engine that scores a vocabulary map's types alone
QUANTIZATIONS = {"ctranslate2-float32": "float32", "ctranslate2-int8": "int8"}
ENGINES = ("pytorch", *QUANTIZATIONS)


def check_speed_up(speed_up: float) -> None:
    """Refuse what is no gain.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    if not 1 < speed_up < 1000:
        raise UserError(
            f"--speed-up {speed_up:g}: must be above 1, which is the uncut model's own speed in "
            "the same engine; 4 is four times as fast"
        )


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


def check_speed_options(cfg: SRPTranslationConfig) -> None:
    """Refuse a speed as the budget that is none, or beside another budget.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    if cfg.speed_up is None:
        if cfg.speed_engine is not None:
            raise UserError(
                f"--speed-engine {cfg.speed_engine}: needs --speed-up, as 4 for four times as fast"
            )
        return
    check_speed_up(cfg.speed_up)
    option = f"--speed-up {cfg.speed_up:g}"
    if cfg.compression_rate < 1:
        raise UserError(
            f"{option}: --compression-rate {cfg.compression_rate:g} is given too; it is what "
            "--speed-up finds, leave one of them out"
        )
    if cfg.speed_engine is None:
        raise UserError(
            f"{option}: needs --speed-engine, what the model is for: {', '.join(ENGINES)}"
        )
    check_engine(cfg.speed_engine, "--speed-engine")
    if not cfg.pretrained_model:
        raise UserError(
            f"{option}: pruning needs --pretrained-model, the checkpoint of the trained model to "
            "prune"
        )
