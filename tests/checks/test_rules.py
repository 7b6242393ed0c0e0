"""What commands refuse, rule by rule: options are namespaces here, and no parser is built.

Every rule of every table must refuse something, with its message, and accept it once repaired.
"""

from argparse import Namespace

import pytest
from fairseq.dataclass import configs

from src.checks import engine, fairseq_options, search, speed, training, translation, validation
from src.checks.values import AtLeast, IsFile, OneOf, Options, Unused, check
from src.connectivity.stage import StagePlan
from src.errors import UserError
from src.options import SRPTranslationConfig
from src.training import command

TASK = SRPTranslationConfig(data="data")
SEARCH = (configs.GenerationConfig(), configs.CommonConfig(), configs.DatasetConfig())
RUN = Namespace(criterion="srp", optimizer="srp_adam", train_subset="train", save_interval=1)
TRANSLATION = (
    *(*SEARCH, configs.CommonEvalConfig(path="model.pt"), configs.CheckpointConfig()),
    *(configs.DistributedTrainingConfig(distributed_world_size=1), TASK),
    Namespace(engine="pytorch", has_gpu=False, post_process=None),
)
PLAN = StagePlan(compression_rate=0.5, period=2, iterations=3, decreasing="sa")
COMMAND = Namespace(max_tokens=4096, optimizer="adam", lr=[0.25], typed=(), seed=1)
COMMAND.distributed_world_size = 1
# Every table, and options of which it refuses none.
TABLES = {
    "TASK": (training.TASK, (TASK, Namespace(criterion="fisher"))),
    "RUN": (training.RUN, (RUN, TASK)),
    "WEIGHTS": (training.WEIGHTS, (RUN, TASK)),
    "CHANNELS": (training.CHANNELS, (RUN, TASK, Namespace(plan=PLAN, last=PLAN.epochs))),
    "PARTS": (fairseq_options.PARTS, (RUN, TASK)),
    "START": (fairseq_options.START, (RUN,)),
    "METRIC": (validation.METRIC, (RUN, TASK, Namespace(metric="loss"))),
    "BLEU": (validation.BLEU, (TASK,)),
    "OPTIONS": (translation.OPTIONS, TRANSLATION),
    "DATA": (search.TASK, (*SEARCH, Namespace(has_target=True, types=9, gen_subset="test"))),
    "ENGINES": (engine.ENGINES, TRANSLATION),
    "CTRANSLATE2": (engine.CTRANSLATE2, (Namespace(engine="ctranslate2"), *TRANSLATION)),
    "TRAINING": (command.TRAINING, (COMMAND,)),
}
PRUNES = {"compression_rate": 0.5, "pretrained_model": "base.pt"}
ADAPTS = {"adapter": "splopa", "pretrained_model": "base.pt"}
UNCUT = {"compression_rate": 1.0}
# By table: the line, what is refused with it, and what repairs that.
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
            "--speed-up 1: must be above 1, which is the uncut model's own speed",
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
def surroundings(monkeypatch):
    """No optional package is there; of two checkpoints one has an average of weights."""
    for module in (fairseq_options, command):
        monkeypatch.setattr(module, "find_spec", lambda package: None)

    def load_checkpoint(path, option):
        return {"extra_state": {"ema": {}} if path == "an average" else {}}

    monkeypatch.setattr(fairseq_options, "load_checkpoint", load_checkpoint)


def options(name, changes=None):
    """A table's accepted options with some changed."""
    return Options(Namespace(**(changes or {})), *TABLES[name][1])


def own_examples(rule, accepted):
    """What a rule refuses by its kind, and what repairs that."""
    for name in rule.names:
        if isinstance(rule, AtLeast):
            yield {name: rule.least - 1}, {name: rule.least}
        elif isinstance(rule, OneOf):
            yield {name: "nonsense"}, {name: next(iter(rule.known))}
        elif isinstance(rule, IsFile):
            yield {name: "nowhere"}, {name: __file__}
        elif isinstance(rule, Unused):
            yield {name: "other"}, {name: getattr(accepted, name)}


@pytest.mark.parametrize("name", TABLES)
def test_usual_options_are_accepted(name):
    check(TABLES[name][0], options(name))


RULES = [(name, rule) for name, (table, _) in TABLES.items() for rule in table]


@pytest.mark.parametrize("name, rule", RULES, ids=[f"{n}-{r.names[0]}" for n, r in RULES])
def test_every_rule_refuses_and_accepts(name, rule):
    def refuses(changes):
        return any(rule.refuses(option, options(name, changes)) for option in rule.names)

    examples = [*own_examples(rule, options(name)), *(e[1:] for e in EXAMPLES.get(name, ()))]
    refused = [(bad, repair) for bad, repair in examples if refuses(bad)]
    assert refused
    assert not any(refuses({**bad, **repair}) for bad, repair in refused)


MESSAGES = [(name, *example) for name, examples in EXAMPLES.items() for example in examples]


@pytest.mark.parametrize("name, line, bad, repair", MESSAGES, ids=[m[1][:60] for m in MESSAGES])
def test_a_refusal_names_the_option_and_what_to_do(name, line, bad, repair):
    with pytest.raises(UserError) as error:
        check(TABLES[name][0], options(name, bad))
    assert str(error.value).startswith(line)
    check(TABLES[name][0], options(name, {**bad, **repair}))


def test_values_as_they_are_shown():
    """Rounded, with commas, left out of flags; in full where nothing heeds the option."""
    given = Options(Namespace(beam=[1, 0], lenpen=2.0, lenpen_mt=2.0, sampling=True, nbest=0))
    for rule, line in (
        (search.Must("beam", min) | "x", "--beam 1,0: x"),
        (search.Must("lenpen", lambda value: value < 2) | "x {o.nbest}", "--lenpen 2: x 0"),
        (Unused("lenpen_mt") | "x", "--lenpen-mt 2.0: x"),
        (Unused("sampling") | "x", "--sampling: x"),
        (AtLeast(1, "nbest"), "--nbest 0: must be at least 1"),
    ):
        with pytest.raises(UserError) as error:
            check([rule], given)
        assert str(error.value) == line


def test_speeds_that_are_no_gain():
    speed.check_speed_up(1.5)
    with pytest.raises(UserError, match="--speed-up 1000: must be above 1"):
        speed.check_speed_up(1000.0)
