"""What is refused of the options that a training's validations are run with."""

import json

from fairseq.data.encoders import TOKENIZER_REGISTRY
from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError
from ..options import SRPTranslationConfig
from .values import Must, OneOf, Options, Refused, check, undoes

# What the best checkpoint may be chosen by, and whether more of it is better.
METRICS = {"loss": False, "nll_loss": False, "ppl": False, "bleu": True, "accuracy": True}

_METRIC, _WORST = "best_checkpoint_metric", "the worst checkpoint would be kept as the best; "
_MAXIMIZE = "--maximize-best-checkpoint-metric"
METRIC = (
    Refused(_METRIC, lambda o: o.criterion == "srp" and o.metric not in METRICS)
    | f"must be one of {', '.join(METRICS)}",  # other criterions have others
    Refused(_METRIC, lambda o: o.metric == "bleu" and not o.eval_bleu) | "needs --eval-bleu",
    Refused(_METRIC, lambda o: o.metric == "accuracy" and not o.report_accuracy)
    | "needs --report-accuracy",
    Refused(_METRIC, lambda o: METRICS.get(o.metric) is True and not o.maximize)
    | f"{_WORST}add {_MAXIMIZE}",
    Refused(_METRIC, lambda o: METRICS.get(o.metric) is False and o.maximize)
    | f"{_WORST}leave out {_MAXIMIZE}",
)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


BLEU = (
    Must(("eval_bleu_args", "eval_bleu_detok_args"), _is_object)
    | """a JSON object is expected, as '{{"beam": 5}}'""",
    Must("eval_bleu_remove_bpe", undoes)
    | "fairseq doesn't know it; leave its value out for subword-nmt, or give sentencepiece, "
    "wordpiece or letter",
    OneOf("eval_bleu_detok", TOKENIZER_REGISTRY),
)


def check_validation(cfg: SRPTranslationConfig, run) -> None:
    """Refuse what would stop the first validation, or the building of its search.

    And a metric that no validation has, or of which the worst would be kept as best.
    """
    if not getattr(run, "disable_validation", False):
        metric = getattr(run, _METRIC, "loss")
        maximize = getattr(run, "maximize_best_checkpoint_metric", METRICS.get(metric))
        facts = {"metric": metric, "maximize": maximize, _METRIC: metric}
        check(METRIC, Options(cfg, run, criterion="srp", report_accuracy=True, **facts))
    if cfg.eval_bleu:
        check(BLEU, Options(cfg))
        _check_search(cfg.eval_bleu_args)


def _check_search(text: str) -> None:
    """Refuse options of a search that it does not have, or values of another type."""
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
