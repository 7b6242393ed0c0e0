"""What is refused of --engine ctranslate2: options without a meaning to it, what it lacks."""

import dataclasses
import os

from fairseq import utils
from fairseq.dataclass.configs import GenerationConfig

from ..errors import UserError

VERSION = "4.8.5"
MODEL = "model.bin"  # in a folder that export.py made

# Options of the search that CTranslate2 has with the same meaning; min_len up to 1.
_SAME = ("beam", "nbest", "lenpen", "unnormalized", "max_len_a", "max_len_b", "min_len")
# Options without an effect on the hypotheses of a beam search.
_NO_EFFECT = ("no_seed_provided", "no_beamable_mm", "no_early_stop", "sacrebleu")


def require_ctranslate2(option: str):
    """The module ``ctranslate2``.

    Args:
        option: what the user asked for, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ctranslate2
        import ctranslate2.specs
    except ImportError as error:
        raise UserError(
            f"{option}: needs the package ctranslate2 ({error}); run "
            f"pip install ctranslate2=={VERSION}"
        ) from None
    return ctranslate2


def check_options(args, cfg) -> None:
    """Refuse what the command line alone rules out.

    Raises:
        UserError: names the option, its value and what to do.
    """
    if args.cpu_threads is not None and args.cpu_threads < 1:
        raise UserError(f"--cpu-threads {args.cpu_threads}: must be at least 1")
    if args.engine != "ctranslate2":
        for name in ("quantization", "ctranslate2_model", "ctranslate2_vocabulary_map"):
            if getattr(args, name) is not None:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {getattr(args, name)}: needs --engine ctranslate2")
        return
    require_ctranslate2("--engine ctranslate2")
    if args.ctranslate2_vocabulary_map is not None and args.ctranslate2_model is None:
        raise UserError(
            f"--ctranslate2-vocabulary-map {args.ctranslate2_vocabulary_map}: needs "
            "--ctranslate2-model; make one with export.py --vocabulary-map"
        )
    if args.ctranslate2_model is not None:
        if args.quantization is not None:
            raise UserError(
                f"--quantization {args.quantization}: --ctranslate2-model has its own; "
                "leave it out, or export anew"
            )
        if not os.path.isfile(os.path.join(args.ctranslate2_model, MODEL)):
            raise UserError(
                f"--ctranslate2-model {args.ctranslate2_model}: has no {MODEL}; give a "
                "folder that export.py made"
            )
    if len(utils.split_paths(cfg.common_eval.path)) > 1:
        raise UserError("--engine ctranslate2: translates with one model; --path names several")
    for option, given in (
        ("--fp16", cfg.common.fp16),
        ("--model-overrides", cfg.common_eval.model_overrides != "{}"),
        ("--cpu-bf16", getattr(cfg.task, "cpu_bf16", False)),
        ("--fairseq-search", getattr(cfg.task, "fairseq_search", False)),
    ):
        if given:
            raise UserError(f"{option}: has no effect with --engine ctranslate2; leave it out")
    for field in dataclasses.fields(GenerationConfig):
        if field.name.startswith("_") or field.name in (*_SAME, *_NO_EFFECT):
            continue
        value = getattr(cfg.generation, field.name)
        if value != field.default:
            raise UserError(
                f"--{field.name.replace('_', '-')} {value}: CTranslate2 has nothing that "
                "means the same; leave it out or use --engine pytorch"
            )
    search = cfg.generation
    if int(search.max_len_a + search.max_len_b) < 1:
        raise UserError(
            f"--max-len-b {search.max_len_b}: leaves no room for a translation; raise it"
        )
    if search.min_len > 1:
        raise UserError(
            f"--min-len {search.min_len}: CTranslate2 would score otherwise, at "
            "most 1 is the same; leave it out or use --engine pytorch"
        )
