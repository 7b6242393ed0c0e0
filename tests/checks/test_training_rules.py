"""What a training refuses, rule by rule: options are namespaces here, and no parser is built."""

from argparse import Namespace

import pytest

from src.checks import training, validation
from src.connectivity.stage import StagePlan
from src.options import SRPTranslationConfig
from src.training import command
from tests.support.rules import rule_tests

TASK = SRPTranslationConfig(data="data")
RUN = Namespace(criterion="srp", optimizer="srp_adam", train_subset="train", save_interval=1)
PLAN = StagePlan(compression_rate=0.5, period=2, iterations=3, decreasing="sa")
COMMAND = Namespace(max_tokens=4096, optimizer="adam", lr=[0.25], typed=(), seed=1)
COMMAND.distributed_world_size = 1
TABLES = {
    "TASK": (training.TASK, (TASK, Namespace(criterion="fisher"))),
    "RUN": (training.RUN, (RUN, TASK)),
    "WEIGHTS": (training.WEIGHTS, (RUN, TASK)),
    "CHANNELS": (training.CHANNELS, (RUN, TASK, Namespace(plan=PLAN, last=PLAN.epochs))),
    "METRIC": (validation.METRIC, (RUN, TASK, Namespace(metric="loss"))),
    "BLEU": (validation.BLEU, (TASK,)),
    "TRAINING": (command.TRAINING, (COMMAND,)),
}
PRUNES = {"compression_rate": 0.5, "pretrained_model": "base.pt"}
ADAPTS = {"adapter": "splopa", "pretrained_model": "base.pt"}
UNCUT = {"compression_rate": 1.0}
EXAMPLES = {
    "TASK": [
        ("--compression-rate 0: must be in (0, 1]", {**PRUNES, "compression_rate": 0.0}, PRUNES),
        (
            "--compression-rate nan: must be in",
            {**PRUNES, "compression_rate": float("nan")},
            PRUNES,
        ),
        (
            "--pruning-stage 3: must be 0, 1 or 2",
            {**PRUNES, "pruning_stage": 3},
            {"pruning_stage": 2},
        ),
        (
            "--keep-encoder-layers 2: needs --pruning-stage 0 or 2; stage 1 cuts embeddings alone",
            {"keep_encoder_layers": 2, "pruning_stage": 1, "pretrained_model": "base.pt"},
            {"pruning_stage": 2},
        ),
        (
            "--speed-engine pytorch: needs --speed-up, as 4 for four times as fast",
            {"speed_engine": "pytorch"},
            {"speed_engine": None},
        ),
        (
            "--speed-baseline fairseq: needs --speed-up, as 4 for four times as fast",
            {"speed_baseline": "fairseq"},
            {"speed_baseline": None},
        ),
        (
            "--speed-baseline stock: must be one of uncut, fairseq",
            {
                **{"speed_up": 2.0, "speed_engine": "pytorch", "pretrained_model": "base.pt"},
                "speed_baseline": "stock",
            },
            {"speed_baseline": "fairseq"},
        ),
        (
            "--speed-up 1: must be above 1, which is the speed of --speed-baseline",
            {"speed_up": 1.0, "speed_engine": "pytorch", "pretrained_model": "base.pt"},
            {"speed_up": 2.5},
        ),
        (
            "--speed-up 2: --compression-rate 0.5 is given too; it is what --speed-up finds",
            {**PRUNES, "speed_up": 2.0, "speed_engine": "pytorch"},
            UNCUT,
        ),
        (
            "--speed-up 2: needs --speed-engine, what the model is for: pytorch",
            {"speed_up": 2.0, "pretrained_model": "base.pt"},
            {"speed_engine": "pytorch"},
        ),
        (
            "--compression-rate 0.5: pruning needs --pretrained-model, the checkpoint of the",
            {"compression_rate": 0.5},
            PRUNES,
        ),
        (
            "--srp: needs a --compression-rate below 1, --speed-up, --keep-encoder-layers or --keep",
            {"srp": True},
            {"keep_decoder_layers": 1, "pretrained_model": "base.pt"},
        ),
        (
            "--prune-heads: needs --compression-rate below 1; only such a stage cuts attention",
            {"prune_heads": True},
            PRUNES,
        ),
        (
            "--prune-heads: needs --pruning-stage 0 or 2; only such a stage cuts attention",
            {**PRUNES, "prune_heads": True, "pruning_stage": 1},
            {"pruning_stage": 0},
        ),
        (
            "--embedding-ratio 0: must be above 0, from 0.001 to 1000; 1 is no preference",
            {**PRUNES, "embedding_ratio": 0.0},
            {"embedding_ratio": 3.0},
        ),
        (
            "--embedding-ratio 2: needs --compression-rate below 1; only such a stage cuts emb",
            {"embedding_ratio": 2.0},
            PRUNES,
        ),
        (
            "--embedding-ratio 2: needs --pruning-stage 0 or 1; only such a stage cuts embeddings",
            {**PRUNES, "embedding_ratio": 2.0, "pruning_stage": 2},
            {"pruning_stage": 1},
        ),
        (
            "--importance ablation: ranks whole layers; give --keep-encoder-layers or",
            {**PRUNES, "importance": "ablation", "criterion": "ablation"},
            {"keep_encoder_layers": 1},
        ),
        (
            "--importance-per-example: means nothing to --importance fisher, which adds up no",
            {**PRUNES, "importance_per_example": True},
            {"importance": "grad", "criterion": "grad"},
        ),
        (
            "--decreasing sg: needs --srp; without, channels are cut right away",
            {**PRUNES, "decreasing": "sg"},
            {"srp": True},
        ),
        (
            "--pruning-period 2: needs --srp or a --pruning-iter above 1; without, channels are",
            {**PRUNES, "pruning_period": 2},
            {"pruning_iter": 2},
        ),
        (
            "--warming-up 2: needs a --compression-rate below 1, --speed-up, --keep-encoder-layers "
            "or --keep-decoder-layers; only such a run prunes channels",
            {"warming_up": 2},
            PRUNES,
        ),
        ("--importance grad: needs a", {"importance": "grad", "criterion": "grad"}, PRUNES),
        ("--adapter-rank 8: needs --adapter splora or splopa", {"adapter_rank": 8.0}, ADAPTS),
        (
            "--adapter-prototypes 8: needs --adapter splopa",
            {**ADAPTS, "adapter_prototypes": 8, "adapter": "splora"},
            ADAPTS,
        ),
        (
            "--adapter splora: needs --pretrained-model, the checkpoint to adapt",
            {"adapter": "splora"},
            {"pretrained_model": "base.pt"},
        ),
        (
            "--adapter-rank 0.5: must be a whole number of at least 1",
            {**ADAPTS, "adapter_rank": 0.5},
            {"adapter": "splora"},
        ),
        (
            "--adapter-rank 1.5: must be a whole number of at least 1 or a share in (0, 1)",
            {**ADAPTS, "adapter": "splora", "adapter_rank": 1.5},
            {"adapter_rank": 16.0},
        ),
        (
            "--release-zeros: --sparsity-config decides which weights are zero; leave one out",
            {"release_zeros": True, "sparsity_config": __file__},
            {"sparsity_config": None},
        ),
        (
            f"--sparsity-config {__file__}: can't run in a stage that cuts channels; prune",
            {**PRUNES, "sparsity_config": __file__},
            UNCUT,
        ),
        (
            f"--sparsity-config {__file__}: would prune what --adapter splopa leaves frozen; prune",
            {**ADAPTS, "sparsity_config": __file__},
            {"adapter": None},
        ),
    ],
    "RUN": [
        ("--relu-dropout 1: must be in [0, 1)", {"relu_dropout": 1.0}, {"relu_dropout": 0.0}),
        (
            "--update-freq 1,0: must be at least 1 in every",
            {"update_freq": [1, 0]},
            {"update_freq": []},
        ),
        (
            "--max-tokens-valid x: must be a whole number of at least 1",
            {"max_tokens_valid": "x"},
            {"max_tokens_valid": "1"},
        ),
        (
            "--keep-interval-updates-pattern 0: must be at least 1, checkpoints of multiples of it",
            {"keep_interval_updates_pattern": 0},
            {"keep_interval_updates_pattern": -1},
        ),
        (
            "--update-ordered-indices-seed: is of batches that are drawn anew in every epoch; add",
            {"update_ordered_indices_seed": True},
            {"update_epoch_batch_itr": True},
        ),
        *(
            (
                f"--memory-efficient-{kind}: --optimizer srp_adam has no step in float32 without "
                f"float32 weights; use --optimizer adam, or --{kind} instead",
                {f"memory_efficient_{kind}": True, "has_gpu": True},
                {"optimizer": "adam"},
            )
            for kind in ("fp16", "bf16")
        ),
        ("--amp: needs a GPU; on a CPU leave it out or use", {"amp": True}, {"has_gpu": True}),
        (
            "--cpu-bf16: --criterion cross_entropy trains in float32 all the same; use --criterion srp",
            {"cpu_bf16": True, "criterion": "cross_entropy"},
            {"criterion": "srp"},
        ),
        (
            "--cpu-bf16: is for CPUs; use --amp or --fp16 on a GPU",
            {"cpu_bf16": True, "has_gpu": True},
            {"has_gpu": False},
        ),
    ],
    "CHANNELS": [
        (
            "--optimizer adafactor: what it remembers of rows and columns can't be cut",
            {"optimizer": "adafactor"},
            {"optimizer": "sgd"},
        ),
        (
            "--srp: the channels shrink over epochs of equally many updates, those of a:b differ",
            {"srp": True, "data": "a:b"},
            {"data": "a"},
        ),
        (
            "--pruning-period 2: the last cut comes in epoch 6 (0 warming up, 3 iterations), "
            "--max-epoch is 5; raise --max-epoch or shorten the period",
            {"max_epoch": 5, "pruning_period": 2, "last": 6},
            {"max_epoch": 6},
        ),
        (
            "--save-interval 4: the last cut comes in epoch 6, the run ends with epoch 7, and none",
            {"max_epoch": 7, "last": 7, "save_interval": 4},
            {"max_update": 100},
        ),
    ],
    "METRIC": [
        (
            f"--best-checkpoint-metric {metric}: {problem}",
            {"best_checkpoint_metric": metric, "metric": metric, **given},
            repair,
        )
        for metric, problem, given, repair in (
            ("wer", "must be one of loss, nll_loss", {}, {"criterion": "wer_criterion"}),
            ("bleu", "needs --eval-bleu", {"maximize": True}, {"eval_bleu": True}),
            ("accuracy", "needs --report-accuracy", {"maximize": True}, {"report_accuracy": True}),
            ("bleu", "the worst checkpoint would be kept as the best; add --maximize-best")
            + ({"eval_bleu": True}, {"maximize": True}),
            ("ppl", "the worst checkpoint would be kept as the best; leave out --maximize-best")
            + ({"maximize": True}, {"maximize": False}),
        )
    ],
    "BLEU": [
        (
            """--eval-bleu-args {: a JSON object is expected, as '{"beam": 5}'""",
            {"eval_bleu_args": "{"},
            {"eval_bleu_args": '{"beam": 1}'},
        ),
        (
            "--eval-bleu-detok-args 3: a JSON",
            {"eval_bleu_detok_args": "3"},
            {"eval_bleu_detok_args": "{}"},
        ),
        (
            "--eval-bleu-remove-bpe x: fairseq doesn't know it; leave its value out for subword-nmt",
            {"eval_bleu_remove_bpe": "x"},
            {"eval_bleu_remove_bpe": "letter"},
        ),
    ],
    "TRAINING": [
        ("--max-tokens: missing; give the tokens", {"max_tokens": None}, {"batch_size": 8}),
        ("--optimizer: missing; give srp_adam, or", {"optimizer": None}, {"optimizer": "adam"}),
        (
            "--lr: missing, and fairseq's default of 0.25 is for plain SGD; give one for",
            {"optimizer": "srp_adam"},
            {"typed": ("--lr",)},
        ),
        (
            "--total-num-update None: --lr-scheduler polynomial_decay needs the updates after which",
            {"lr_scheduler": "polynomial_decay"},
            {"total_num_update": "20"},
        ),
        (
            "--warmup-updates 0: must be at least 1 for --lr-scheduler inverse_sqrt, whose rate",
            {"lr_scheduler": "inverse_sqrt", "warmup_updates": 0},
            {"warmup_updates": 1},
        ),
        (
            "--write-checkpoints-asynchronously: needs package iopath; leave it out",
            {"write_checkpoints_asynchronously": True},
            {"write_checkpoints_asynchronously": False},
        ),
        ("--seed -1: must be from 0 to 4294967295", {"seed": -1}, {"seed": 0}),
    ],
}
# Of what prunes, be it channels or weights.
for _table, _option in (("WEIGHTS", "--sparsity-config"), ("CHANNELS", "--compression-rate")):
    EXAMPLES.setdefault(_table, []).extend(
        [
            (
                f"{_option}: needs whole weights and optimizer states in every process; leave out",
                {"zero_sharding": "os"},
                {"zero_sharding": "none"},
            ),
            (
                f"{_option}: --use-bmuf averages weights with those of before; leave it out",
                {"use_bmuf": True},
                {"use_bmuf": False},
            ),
        ]
    )


@pytest.fixture(autouse=True)
def no_optional_package(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda package: None)


(
    test_usual_options_are_accepted,
    test_every_rule_refuses_and_accepts,
    test_a_refusal_names_the_option_and_what_to_do,
) = rule_tests(TABLES, EXAMPLES)
