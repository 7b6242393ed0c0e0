"""What is refused of the options that a training's validations are run with."""

import json

from fairseq.data.data_utils import post_process
from fairseq.data.encoders import TOKENIZER_REGISTRY
from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError
from ..options import SRPTranslationConfig

# What the best checkpoint may be chosen by, and whether more of it is better.
METRICS = {"loss": False, "nll_loss": False, "ppl": False, "bleu": True, "accuracy": True}


def check_metric(cfg: SRPTranslationConfig, run) -> None:
    """Refuse a metric that no validation has, or of which the worst would be kept as best.

    Raises:
        UserError: names the option, its value and what to do.
    """
    metric = getattr(run, "best_checkpoint_metric", "loss")
    option = f"--best-checkpoint-metric {metric}"
    if metric not in METRICS:
        if getattr(run, "criterion", "srp") == "srp":
            raise UserError(f"{option}: must be one of {', '.join(METRICS)}")
        return  # other criterions have others
    for name, needed, given in (
        ("bleu", "--eval-bleu", cfg.eval_bleu),
        ("accuracy", "--report-accuracy", getattr(run, "report_accuracy", True)),
    ):
        if metric == name and not given:
            raise UserError(f"{option}: needs {needed}")
    maximize = getattr(run, "maximize_best_checkpoint_metric", METRICS[metric])
    if maximize != METRICS[metric]:
        todo = "add" if METRICS[metric] else "leave out"
        raise UserError(
            f"{option}: the worst checkpoint would be kept as the best; {todo} "
            "--maximize-best-checkpoint-metric"
        )


def check_validation(cfg: SRPTranslationConfig, run) -> None:
    """Refuse what would stop the first validation, or the building of its search.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    if not getattr(run, "disable_validation", False):
        check_metric(cfg, run)
    if not cfg.eval_bleu:
        return
    for name in ("eval_bleu_args", "eval_bleu_detok_args"):
        value = getattr(cfg, name)
        try:
            valid = isinstance(json.loads(value), dict)
        except ValueError:
            valid = False
        if not valid:
            raise UserError(
                f"--{name.replace('_', '-')} {value}: a JSON object is expected, as "
                """'{"beam": 5}'"""
            )
    _check_search(cfg.eval_bleu_args)
    try:
        post_process("", cfg.eval_bleu_remove_bpe)
    except NotImplementedError:
        raise UserError(
            f"--eval-bleu-remove-bpe {cfg.eval_bleu_remove_bpe}: fairseq doesn't know it; "
            "leave its value out for subword-nmt, or give sentencepiece, wordpiece or letter"
        ) from None
    detok = str(cfg.eval_bleu_detok)
    if detok not in TOKENIZER_REGISTRY:
        raise UserError(
            f"--eval-bleu-detok {detok}: must be one of {', '.join(TOKENIZER_REGISTRY)}"
        )


def _check_search(text: str) -> None:
    """Refuse options of a search that it does not have, or values of another type.

    Args:
        text: a JSON object.

    Raises:
        UserError: names the option, and what is wrong with its value.
    """
    option = f"--eval-bleu-args {text}"
    try:
        search = OmegaConf.merge(OmegaConf.structured(GenerationConfig), json.loads(text))
    except OmegaConfBaseException as error:
        problem = str(error).partition("\n")[0]
        raise UserError(
            f"{option}: {problem}; give options of fairseq-generate, with _ for -"
        ) from None
    if search.beam < 1:
        raise UserError(f"{option}: the beam must be at least 1")
