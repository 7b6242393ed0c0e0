"""Options of the translation task; what is refused of them stands in checks/training.py."""

from dataclasses import dataclass, field
from typing import Dict, Optional

from fairseq.dataclass import ChoiceEnum
from fairseq.tasks.translation import TranslationConfig

from .connectivity.importance import IMPORTANCE, NORMS

# Options that mean something while translating; the others are for training.
FOR_TRANSLATION = (
    *("data", "source_lang", "target_lang", "left_pad_source", "left_pad_target"),
    *("max_source_positions", "max_target_positions", "truncate_source"),
    *("num_batch_buckets", "adapter_path", "sparse_inference", "cpu_bf16", "fairseq_search"),
)
IMPORTANCE_CHOICES = ChoiceEnum(sorted(IMPORTANCE))
ADAPTER_CHOICES = ChoiceEnum(["splora", "splopa"])


@dataclass
class SRPTranslationConfig(TranslationConfig):
    pretrained_model: Optional[str] = field(
        default=None,
        metadata={
            "help": "start from the weights (and, if it was cut, the widths) of this "
            "checkpoint of an SRP model or of fairseq's transformer"
        },
    )
    trust_checkpoint: bool = field(
        default=False,
        metadata={
            "help": "unpickle any object in --pretrained-model and --teacher-model: for "
            "old checkpoints of your own, since a pickle can run code"
        },
    )
    compression_rate: float = field(
        default=1.0,
        metadata={
            "help": "share of the uncut model's parameters (embeddings and all) to keep, "
            "in (0, 1]; below 1 this run prunes"
        },
    )
    speed_up: Optional[float] = field(
        default=None,
        metadata={
            "help": "in place of --compression-rate: prune to the largest model that translates "
            "so many times as fast as --speed-baseline in --speed-engine. Rates and numbers of "
            "decoder layers are timed on this machine, with this process's threads, when the run "
            "begins (plan.py shows what there is); the layers that --keep-...-layers gives stay "
            "so many"
        },
    )
    speed_engine: Optional[str] = field(
        default=None,
        metadata={
            "help": "what --speed-up is measured in: pytorch (generate.py's search, on this "
            "training's device), ctranslate2-float32 or ctranslate2-int8, on the CPU; both with "
            "-vmap at the end score a vocabulary map's types alone"
        },
    )
    speed_baseline: Optional[str] = field(
        default=None,
        metadata={
            "help": "what --speed-up counts from: uncut (default), the uncut model in the same "
            "engine, or fairseq, stock fairseq's search with the uncut model in PyTorch"
        },
    )
    srp: bool = field(
        default=False,
        metadata={
            "help": "shrink the selected channels' connectivity to zero during training "
            "before they are cut; without it they are cut right away (one-shot pruning)"
        },
    )
    pruning_stage: int = field(
        default=0,
        metadata={
            "help": "1: cut embedding widths; 2: cut attention and feed-forward widths "
            "(after stage 1); 0: cut all of them in one stage"
        },
    )
    prune_heads: bool = field(
        default=False,
        metadata={
            "help": "remove whole attention heads instead of channels of every head "
            "(stages 0 and 2); the heads of all layers are ranked together"
        },
    )
    embedding_ratio: float = field(
        default=1.0,
        metadata={
            "help": "embeddings keep so many times the share of their channels that the other "
            "widths keep of theirs (stages 0 and 1): above 1 a wider and thinner model"
        },
    )
    pruning_iter: int = field(
        default=1,
        metadata={
            "help": "number of iterations, each scoring anew, removing an equal ratio "
            "and lasting --pruning-period epochs"
        },
    )
    pruning_period: int = field(
        default=1, metadata={"help": "epochs that one pruning iteration lasts"}
    )
    warming_up: int = field(
        default=0, metadata={"help": "epochs of training before the first scoring"}
    )
    decreasing: str = field(
        default="sa",
        metadata={
            "help": "how connectivity shrinks: sa arithmetically, sg geometrically, sc as half "
            "a cosine, at every update; ea, eg, ec the same once per epoch"
        },
    )
    keep_encoder_layers: Optional[int] = field(
        default=None,
        metadata={
            "help": "cut the encoder to so many whole layers (stages 0 and 2), chosen by "
            "--importance; with --pruning-iter some in each iteration. --compression-rate "
            "counts from the uncut model all the same; 1 cuts nothing but layers"
        },
    )
    keep_decoder_layers: Optional[int] = field(
        default=None,
        metadata={"help": "the same of the decoder, whose layers are what translation waits for"},
    )
    importance: Optional[IMPORTANCE_CHOICES] = field(
        default=None,
        metadata={
            "help": "what ranks the channels, whole layers among them (default: 'ablation' for "
            "layers, 'fisher' for widths): 'ablation', the loss without a layer, the least "
            "important taken out first and the others measured again (widths are ranked by "
            "'fisher' beside it); 'fisher', the squared gradient of the loss "
            "by connectivity summed over scoring batches; 'connectivity', the signed "
            "negative gradient (SRP's own); 'taylor', activation times gradient; 'grad', "
            "the gradient; 'lrp', layer-wise relevance; 'weight', norms of weights; "
            "'random'"
        },
    )
    importance_norm: ChoiceEnum(sorted(NORMS)) = field(
        default="none",
        metadata={
            "help": "divide the importance of each group of channels by its L1 or L2 norm, "
            "so that layers that are ranked together (feed-forward units) compete alike"
        },
    )
    importance_per_example: bool = field(
        default=False,
        metadata={
            "help": "take the absolute value of each sentence's sum rather than of the sum "
            "over all sentences (grad, taylor) or of each token's part (lrp)"
        },
    )
    scoring_batches: int = field(
        default=150,
        metadata={"help": "number of training batches that importance is summed over"},
    )
    scoring_tokens: int = field(
        default=256,
        metadata={
            "help": "tokens in a scoring batch, by the longer side of each pair; small batches "
            "tell channels apart better, since gradients of many sentences cancel"
        },
    )
    teacher_model: Optional[str] = field(
        default=None,
        metadata={
            "help": "checkpoint of the teacher for --prob-kd and --attn-kd (default: "
            "--pretrained-model)"
        },
    )
    adapter: Optional[ADAPTER_CHOICES] = field(
        default=None,
        metadata={
            "help": "train adapters and the biases of the adapted layers, all other "
            "weights frozen: 'splora' adds low-rank updates to weights, 'splopa' updates "
            "made of shared blocks; fused they cost nothing in translation"
        },
    )
    adapter_rank: Optional[float] = field(
        default=None,
        metadata={
            "help": "rank of the updates (default 16), below 1 a share of each layer's "
            "outputs; for splopa rank of a prototype (default 1)"
        },
    )
    adapter_block_size: Optional[int] = field(
        default=None, metadata={"help": "rows and columns of a block of splopa (default 32)"}
    )
    adapter_prototypes: Optional[int] = field(
        default=None,
        metadata={"help": "number of blocks that the updates of splopa are made of (default 64)"},
    )
    adapter_include: Optional[str] = field(
        default=None,
        metadata={
            "help": "adapt the linear layers whose names match one of these patterns "
            "(with commas between: 'decoder.*,*.fc1'; default: all)"
        },
    )
    adapter_exclude: Optional[str] = field(
        default=None,
        metadata={
            "help": "leave out layers whose names match one of these patterns; an output "
            "projection tied to an embedding always is"
        },
    )
    adapter_path: Optional[str] = field(
        default=None,
        metadata={
            "help": "translate with this file of adapters (export_adapters.py makes it) "
            "added to the base checkpoint; a.pt:0.7,b.pt:0.3 adds up several by weight"
        },
    )
    sparsity_config: Optional[str] = field(
        default=None,
        metadata={
            "help": "remove single weights or blocks of them during this training as this "
            "YAML file says (pattern, score, schedule, layers); works with any --arch"
        },
    )
    release_zeros: bool = field(
        default=False,
        metadata={
            "help": "let all weights of a sparse model learn; without it those that are zero at "
            "the beginning of a training stay zero"
        },
    )
    sparse_inference: bool = field(
        default=False,
        metadata={
            "help": "translate with sparse products where a short timing of each layer "
            "finds them faster than dense ones, on CPUs"
        },
    )
    cpu_bf16: bool = field(
        default=False,
        metadata={
            "help": "run matrix products of training (with --criterion srp) and translation "
            "in bfloat16 on CPUs with AVX512-BF16 or AMX; weights, optimizer and loss stay in "
            "float32. A warning says where a short timing finds no gain by it"
        },
    )
    fairseq_search: bool = field(
        default=False,
        metadata={
            "help": "translate with fairseq's own beam search, which gives the same "
            "hypotheses and takes longer"
        },
    )


def kept_layers(cfg) -> Dict[str, int]:
    """Numbers of layers that a run is to keep, by option, where one is given."""
    both = (
        (f"--keep-{s}-layers", getattr(cfg, f"keep_{s}_layers")) for s in ("encoder", "decoder")
    )
    return {option: number for option, number in both if number is not None}


def prunes_channels(cfg) -> bool:
    """Whether a run has a pruning stage."""
    return cuts_widths(cfg) or cuts_layers(cfg)


def cuts_widths(cfg) -> bool:
    """Whether a run may cut channels within layers."""
    return cfg.compression_rate < 1 or cfg.speed_up is not None


def cuts_layers(cfg) -> bool:
    """Whether a run may cut whole layers."""
    return bool(kept_layers(cfg)) or (cfg.speed_up is not None and cfg.pruning_stage != 1)


def importance_of_widths(cfg) -> str:
    """The criterion that ranks channels within layers."""
    name = str(cfg.importance or "fisher")
    return "fisher" if IMPORTANCE[name].of_layers else name
