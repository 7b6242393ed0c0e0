"""What generate.py refuses, rule by rule: options are namespaces here, and no parser is built."""

from argparse import Namespace

import pytest
from fairseq.dataclass import configs

from src.checks import engine, search, speed, translation
from src.checks.values import AtLeast, Must, Options, Unused, check
from src.errors import UserError
from src.options import SRPTranslationConfig
from tests.support.rules import rule_tests

TASK = SRPTranslationConfig(data="data")
SEARCH = (configs.GenerationConfig(), configs.CommonConfig(), configs.DatasetConfig())
TRANSLATION = (
    *(*SEARCH, configs.CommonEvalConfig(path="model.pt"), configs.CheckpointConfig()),
    *(configs.DistributedTrainingConfig(distributed_world_size=1), TASK),
    Namespace(engine="pytorch", has_gpu=False, post_process=None),
)
TABLES = {
    "OPTIONS": (translation.OPTIONS, TRANSLATION),
    "DATA": (search.TASK, (*SEARCH, Namespace(has_target=True, types=9, gen_subset="test"))),
    "ENGINES": (engine.ENGINES, TRANSLATION),
    "CTRANSLATE2": (engine.CTRANSLATE2, (Namespace(engine="ctranslate2"), *TRANSLATION)),
}
EXAMPLES = {
    "OPTIONS": [
        ("--path: missing; give the checkpoint to translate with", {"path": None}, {"path": "a"}),
        (
            "--report: is about one model; --path names several",
            {"report": "r", "path": "a:b"},
            {"path": "a"},
        ),
        (
            "--report: is about translations, of which --score-reference makes none; leave one",
            {"report": "r", "score_reference": True},
            {"report": None},
        ),
        (
            "--flops-source-length 3: needs --report, which has the FLOPs",
            {"flops_source_length": 3},
            {"report": "r"},
        ),
        (
            "--gen-subset test,valid: translate one set after the other, each with its own BLEU",
            {"gen_subset": "test,valid"},
            {"gen_subset": "test"},
        ),
        (
            "--tokenized-bleu: --tokenizer undoes the tokens; leave it out",
            {"tokenized_bleu": True, "tokenizer": "moses"},
            {"tokenizer": None},
        ),
        ("--lenpen nan: must be a finite number", {"lenpen": float("nan")}, {"lenpen": 0.0}),
        ("--seed -1: must be from 0 to 4294967295", {"seed": -1}, {"seed": 2**32 - 1}),
        ("--sampling-topk 3: needs --sampling; leave it out", {"sampling_topk": 3})
        + ({"sampling": True, "nbest": 5},),
        (
            "--diverse-beam-strength 0.3: needs --diverse-beam-groups; leave it out",
            {"diverse_beam_strength": 0.3},
            {"diverse_beam_groups": 5},
        ),
        (
            "--retain-dropout-modules: needs --retain-dropout; leave it out",
            {"retain_dropout_modules": ["A"]},
            {"retain_dropout": True},
        ),
        (
            "--replace-unk: fairseq's own code fails at the first unknown word that a model",
            {"replace_unk": "words"},
            {"engine": "ctranslate2"},
        ),
        ("--temperature 0: must be above 0", {"temperature": 0.0}, {"temperature": 0.5}),
        (
            "--max-len-b 200: leaves no room for the 300 tokens of --min-len; raise it, or give",
            {"min_len": 300},
            {"max_len_a": 1.0},
        ),
        ("--sampling: needs --nbest 5, as --beam is", {"sampling": True}, {"nbest": 5}),
        ("--lm-weight 0.3: needs --lm-path", {"lm_weight": 0.3}, {"lm_path": "lm.pt"}),
        ("--diverse-beam-groups 3: must divide --beam, which is 5", {"diverse_beam_groups": 3})
        + ({"beam": 6},),
        (
            "--diverse-beam-groups 5: fairseq's own search takes a sentence's number for its place",
            {"diverse_beam_groups": 5, "fairseq_search": True},
            {"fairseq_search": False},
        ),
        (
            "--post-process bpe: is unknown; give subword_nmt (--remove-bpe), sentencepiece or",
            {"post_process": "bpe"},
            {"post_process": "sentencepiece"},
        ),
        (
            "--num-shards 2: BLEU is of the whole test set; translate shards with fairseq-generate",
            {"num_shards": 2},
            {"num_shards": 1},
        ),
        (
            "--checkpoint-suffix: --path names whole checkpoints; leave it out",
            {"checkpoint_suffix": "-shard0"},
            {"checkpoint_suffix": ""},
        ),
        ("--fp16: needs a GPU; on a CPU leave it out", {"fp16": True}, {"has_gpu": True}),
        *(
            (
                "--sparse-inference: multiplies in float32 in this plug-in's own search; leave it or "
                f"{option} out",
                {"sparse_inference": True, name: value},
                {"sparse_inference": False},
            )
            for option, name, value in (
                ("--cpu-bf16", "cpu_bf16", True),
                ("--fairseq-search", "fairseq_search", True),
                ("--engine ctranslate2", "engine", "ctranslate2"),
            )
        ),
    ],
    "DATA": [
        (
            "--prefix-size: --gen-subset test has no target side; leave it out",
            {"prefix_size": 1, "has_target": False},
            {"has_target": True},
        ),
        (
            "--sampling-topk 10: the target dictionary has 9 types; give at most as many",
            {"sampling_topk": 10},
            {"sampling_topk": 9},
        ),
    ],
    "ENGINES": [
        (
            "--quantization int8: needs --engine ctranslate2",
            {"quantization": "int8"},
            {"engine": "ctranslate2"},
        ),
    ],
    "CTRANSLATE2": [
        (
            "--ctranslate2-vocabulary-map off: needs --ctranslate2-model; make one with export.py",
            {"ctranslate2_vocabulary_map": "off"},
            {"ctranslate2_vocabulary_map": None},
        ),
        (
            "--quantization int8: --ctranslate2-model has its own; leave it out, or export anew",
            {"quantization": "int8", "ctranslate2_model": "x"},
            {"ctranslate2_model": None},
        ),
        (
            "--ctranslate2-model x: has no model.bin; give a folder that export.py made",
            {"ctranslate2_model": "x"},
            {"ctranslate2_model": None},
        ),
        (
            "--engine ctranslate2: translates with one model; --path names several",
            {"path": "a:b"},
            {"path": "a"},
        ),
        (
            "--temperature 0.5: CTranslate2 has it for --sampling alone; leave it out or use",
            {"temperature": 0.5},
            {"sampling": True},
        ),
        (
            "--max-len-b 0: leaves no room for a translation; raise it",
            {"max_len_b": 0},
            {"max_len_a": 1.0},
        ),
        (
            "--min-len 2: CTranslate2 would score otherwise, at most 1",
            {"min_len": 2},
            {"min_len": 0},
        ),
    ],
}


(
    test_usual_options_are_accepted,
    test_every_rule_refuses_and_accepts,
    test_a_refusal_names_the_option_and_what_to_do,
) = rule_tests(TABLES, EXAMPLES)


def test_values_as_they_are_shown():
    """Rounded, with commas, left out of flags; in full where nothing heeds the option."""
    given = Options(Namespace(beam=[1, 0], lenpen=2.0, lenpen_mt=2.0, sampling=True, nbest=0))
    for rule, line in (
        (Must("beam", min) | "x", "--beam 1,0: x"),
        (Must("lenpen", lambda value: value < 2) | "x {o.nbest}", "--lenpen 2: x 0"),
        (Unused("lenpen_mt") | "x", "--lenpen-mt 2.0: x"),
        (Unused("sampling") | "x", "--sampling: x"),
        (AtLeast(1, "nbest"), "--nbest 0: must be at least 1"),
    ):
        with pytest.raises(UserError) as error:
            check([rule], given)
        assert str(error.value) == line


def test_speeds_that_are_no_gain():
    speed.check_speed_up(Namespace(speed_up=1.5, speed_baseline="fairseq"))
    with pytest.raises(UserError, match="--speed-up 1000: must be above 1"):
        speed.check_speed_up(Namespace(speed_up=1000.0, speed_baseline=None))
    with pytest.raises(UserError, match="--speed-baseline uncut: needs --speed-up"):
        speed.check_speed_up(Namespace(speed_up=None, speed_baseline="uncut"))
