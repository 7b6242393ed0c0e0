"""What is refused of the options that a training's validations are run with."""

import json

from fairseq.data.encoders import TOKENIZER_REGISTRY

from .errors import UserError
from .task_options import SRPTranslationConfig

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
    detok = str(cfg.eval_bleu_detok)
    if detok not in TOKENIZER_REGISTRY:
        raise UserError(
            f"--eval-bleu-detok {detok}: must be one of {', '.join(TOKENIZER_REGISTRY)}"
        )
