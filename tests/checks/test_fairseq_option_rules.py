"""What is refused of fairseq's own options, rule by rule: no parser is built."""

from argparse import Namespace

import pytest

from src.checks import fairseq_options
from src.options import SRPTranslationConfig
from tests.support.rules import rule_tests

RUN = Namespace(criterion="srp", optimizer="srp_adam", train_subset="train", save_interval=1)
TABLES = {
    "PARTS": (fairseq_options.PARTS, (RUN, SRPTranslationConfig())),
    "START": (fairseq_options.START, (RUN,)),
}
EXAMPLES = {
    "PARTS": [
        (
            "--criterion adaptive_loss: is for other models or tasks; use srp or one of cross_entr",
            {"criterion": "adaptive_loss"},
            {"adaptive_softmax_cutoff": "9"},
        ),
        (
            f"--criterion {fairseq_options.ALIGNED}: needs --load-alignments; without alignments",
            {"criterion": fairseq_options.ALIGNED},
            {"load_alignments": True},
        ),
        (
            f"--load-alignments: --criterion srp reads none; use {fairseq_options.ALIGNED}, or",
            {"load_alignments": True},
            {"criterion": fairseq_options.ALIGNED},
        ),
        (
            "--load-alignments: there is no data/train.align.idx; make it with fairseq-preprocess",
            {"load_alignments": True, "criterion": fairseq_options.ALIGNED}
            | {"unaligned": "data/train.align"},
            {"unaligned": None},
        ),
        ("--ema-seed-model an average: needs --store-ema", {"ema_seed_model": "an average"})
        + ({"store_ema": True, "ema_decay": 0.9},),
        (
            "--ema-decay 2: must be from 0 to 1",
            {"store_ema": True, "ema_decay": 2.0},
            {"ema_decay": 1},
        ),
        (
            "--ema-seed-model a model: has no average of weights; give a checkpoint of a training",
            {"store_ema": True, "ema_decay": 0.9, "ema_seed_model": "a model"},
            {"ema_seed_model": "an average"},
        ),
        (
            "--bf16: fairseq-train takes it for a TPU's; run",
            {"bf16": True, "tpu": True},
            {"tpu": False},
        ),
        ("--tpu: needs package torch_xla and a TPU; leave it out", {"tpu": True}, {"tpu": False}),
        (
            "--model-parallel-size 2: no model of translation is divided; leave it out",
            {"model_parallel_size": 2},
            {"model_parallel_size": 1},
        ),
        (
            "--ddp-backend fully_sharded: needs package fairscale; use pytorch_ddp or legacy_ddp",
            {"ddp_backend": "fully_sharded"},
            {"ddp_backend": "legacy_ddp"},
        ),
        (
            "--optimizer composite: has groups of weights, which only a configuration of",
            {"optimizer": "composite"},
            {"groups": {"a": 1}},
        ),
        (
            "--cpu-offload: needs --ddp-backend fully_sharded; leave it out",
            {"cpu_offload": True},
            {"cpu_offload": False},
        ),
    ],
    "START": [
        ("--continue-once a.pt: no such file; give", {"continue_once": "a.pt"}, {"exists": True}),
        (
            "--restore-file a.pt: no such file; give",
            {"restore_file": "a.pt"},
            {"restore_file": __file__},
        ),
        (
            "--finetune-from-model a.pt: starts anew by itself; leave out --reset-meters",
            {"finetune_from_model": "a.pt", "exists": True, "resets": "--reset-meters"},
            {"resets": ""},
        ),
        (
            "--finetune-from-model a.pt: would replace the weights of --pretrained-model b.pt; leave",
            {"finetune_from_model": "a.pt", "exists": True, "pretrained_model": "b.pt"},
            {"pretrained_model": None},
        ),
        ("--finetune-from-model a.pt: no such", {"finetune_from_model": "a.pt"}, {"exists": True}),
    ],
}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """No optional package is there; of two checkpoints one has an average of weights."""

    def load_checkpoint(path, option):
        return {"extra_state": {"ema": {}} if path == "an average" else {}}

    monkeypatch.setattr(fairseq_options, "find_spec", lambda package: None)
    monkeypatch.setattr(fairseq_options, "load_checkpoint", load_checkpoint)


(
    test_usual_options_are_accepted,
    test_every_rule_refuses_and_accepts,
    test_a_refusal_names_the_option_and_what_to_do,
) = rule_tests(TABLES, EXAMPLES)
