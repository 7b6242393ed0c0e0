"""What is refused of --engine ctranslate2: options without a meaning to it, what it lacks."""

import os

from fairseq import utils
from fairseq.dataclass.configs import GenerationConfig

from .ctranslate2_package import MODEL, require_ctranslate2
from .values import AtLeast, Must, Needs, Options, Refused, Unused, check

# Options of the search that CTranslate2 has with the same meaning; min_len up to 1, and
# temperature of samples alone.
_SAME = ("beam", "nbest", "lenpen", "unnormalized", "max_len_a", "max_len_b", "min_len")
_SAME += ("prefix_size", "no_repeat_ngram_size", "replace_unk")
_SAME += ("sampling", "sampling_topk", "sampling_topp", "temperature")
# Options without an effect on the hypotheses of a beam search.
_NO_EFFECT = ("no_seed_provided", "no_beamable_mm", "no_early_stop", "sacrebleu")
_UNKNOWN = {name for name in GenerationConfig.__dataclass_fields__ if not name.startswith("_")}
_UNKNOWN -= {*_SAME, *_NO_EFFECT}


class _Unknown(Unused):
    """Options of the search that CTranslate2 has no counterpart of."""

    def shown(self, value):
        return str(value)


ENGINES = (
    AtLeast(1, "cpu_threads"),
    Needs(
        ("quantization", "ctranslate2_model", "ctranslate2_vocabulary_map"),
        lambda o: o.engine == "ctranslate2",
    )
    | "needs --engine ctranslate2",
)
CTRANSLATE2 = (
    Needs("ctranslate2_vocabulary_map", "ctranslate2_model")
    | "needs --ctranslate2-model; make one with export.py --vocabulary-map",
    Needs("quantization", lambda o: o.ctranslate2_model is None)
    | "--ctranslate2-model has its own; leave it out, or export anew",
    Must("ctranslate2_model", lambda folder: os.path.isfile(os.path.join(folder, MODEL)))
    | f"has no {MODEL}; give a folder that export.py made",
    Needs("engine", lambda o: len(utils.split_paths(o.path)) == 1)
    | "translates with one model; --path names several",
    Unused("fp16", "model_overrides", "cpu_bf16", "fairseq_search", bare=True)
    | "has no effect with --engine ctranslate2; leave it out",
    _Unknown(*sorted(_UNKNOWN))
    | "CTranslate2 has nothing that means the same; leave it out or use --engine pytorch",
    Needs("temperature", "sampling")
    | "CTranslate2 has it for --sampling alone; leave it out or use --engine pytorch",
    Refused("max_len_b", lambda o: int(o.max_len_a + o.max_len_b) < 1)
    | "leaves no room for a translation; raise it",
    Must("min_len", lambda length: length <= 1)
    | "CTranslate2 would score otherwise, at most 1 is the same; leave it out or use --engine "
    "pytorch",
)


def check_engine_options(args, cfg) -> None:
    """Refuse what the command line alone rules out."""
    options = Options(args, cfg.generation, cfg.common, cfg.common_eval, cfg.task)
    check(ENGINES, options)
    if args.engine == "ctranslate2":
        require_ctranslate2("--engine ctranslate2")
        check(CTRANSLATE2, options)
