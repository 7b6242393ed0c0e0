"""Speed-up against FLOPs reduction: how much of the theoretical gain is realised.

    python benchmarks/compression_speed.py --output speed
    python benchmarks/compression_speed.py --engines pytorch,ctranslate2-int8 --rounds 8
    python benchmarks/compression_speed.py --data data-bin/multi30k.de-en \\
        --engines ctranslate2-int8,ctranslate2-int8-vmap --sentences 64

Nothing is trained: models with random weights are cut to each rate, all widths at
once, and translate the same random sentences. Every model generates the same number
of tokens, --length for each sentence, whatever its weights. All of them run once a
round, in a new random order each round; figures are medians of ratios within a round.
Compared with fairseq's transformer and its beam search, and each engine's cut models
with its own uncut one. "realised" is (speed-up - 1) / (FLOPs reduction - 1).

With --data the dictionaries are that folder's, and the sentences those of its test set
that have --length tokens. The engine that ends in -vmap needs it: its vocabulary map is of
the training set there, so as many target types are scored as with a trained model. FLOPs
are of the whole output layer all the same.

On a GPU (--device cuda) the engines are PyTorch's, in float32 and with --fp16.
"""

import argparse
import copy
import os
import statistics
import sys
import tempfile
from typing import Callable, Dict, List, Tuple

import torch
from common import arguments, check, interleave, moved, numbers, report
from compression_rates import SHAPES, Task, prune

STOCK = "fairseq transformer"
WITH_MAP = "ctranslate2-int8-vmap"
QUANTIZATIONS = {
    "ctranslate2-float32": "float32",
    "ctranslate2-int8": "int8",
    WITH_MAP: "int8",
}
ENGINES = {
    "cpu": ("pytorch", "fairseq-search", *QUANTIZATIONS),
    "cuda": ("pytorch", "pytorch-fp16", "fairseq-search"),
}
EVERY_ENGINE = list(dict.fromkeys(name for names in ENGINES.values() for name in names))
SENTENCES = {"multi30k": 256, "iwslt": 64}

Variant = Tuple[str, float]  # engine, rate
Translate = Callable[[], int]  # returns the number of tokens


def dimensions(arch: str) -> dict:
    embed, ffn, heads, layers = SHAPES[arch][:4]
    sizes = {"embed_dim": embed, "ffn_embed_dim": ffn}
    sizes.update(attention_heads=heads, layers=layers)
    sides = ("encoder", "decoder")
    return {f"{side}_{name}": size for side in sides for name, size in sizes.items()}


def build(model: str, arch: str, dictionaries: Task):
    """A model with random weights, of SRP (``srp``) or of fairseq (``transformer``)."""
    from fairseq import models

    import src  # noqa: F401  registers the plug-in

    torch.manual_seed(1)
    options = argparse.Namespace(arch=model, _name=model, **dimensions(arch))
    options.share_decoder_input_output_embed = True
    options.weighted_layernorm = True
    return models.build_model(options, dictionaries).eval()


def random_sentences(number: int, length: int, dictionary) -> torch.Tensor:
    """Sources ``[number, length]`` of random words that end with the end of sentence."""
    generator = torch.Generator().manual_seed(1)
    types = dictionary.nspecial, len(dictionary)
    words = torch.randint(*types, (number, length), generator=generator)
    words[:, -1] = dictionary.eos()
    return words


def real_task(args):
    """The task of ``--data``, with its dictionaries."""
    from src.tasks.srp_translation import SRPTranslationConfig, SRPTranslationTask

    return SRPTranslationTask.setup_task(
        SRPTranslationConfig(
            data=args.data,
            train_subset="train",
            dataset_impl=None,
            required_seq_len_multiple=1,
        )
    )


def sentences_of_length(task, number: int, length: int) -> torch.Tensor:
    """Evenly spaced sources ``[number, length]`` of the test set, of one length."""
    task.load_dataset("test")
    dataset = task.dataset("test")
    fitting = [i for i, size in enumerate(dataset.src_sizes) if size == length]
    if len(fitting) < number:
        print(
            f"error: --sentences {number}: the test set has {len(fitting)} of {length} "
            "tokens; ask for fewer, or for another --length",
            file=sys.stderr,
        )
        sys.exit(2)
    chosen = fitting[:: len(fitting) // number][:number]
    return torch.stack([dataset.src[i].long() for i in chosen])


def in_pytorch(args, model, dictionaries: Task, own_search: bool, half: bool = False) -> Translate:
    """Translation in PyTorch, with generate.py's search or with fairseq's."""
    from fairseq.dataclass.configs import GenerationConfig
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    from src.tasks.srp_translation import SRPTranslationConfig, SRPTranslationTask

    both = dictionaries.source_dictionary, dictionaries.target_dictionary
    task = TranslationTask(TranslationConfig(), *both)
    if own_search:
        task = SRPTranslationTask(SRPTranslationConfig(), *both)
    model = copy.deepcopy(model).to(args.device)
    if half:
        model.half()
    model.make_generation_fast_(beamable_mm_beam_size=None, need_attn=False)
    # one token is the end of the sentence, which fairseq does not count
    length = args.length - 1
    search = GenerationConfig(beam=args.beam, min_len=length, max_len_a=0, max_len_b=length)
    generator = task.build_generator([model], search)
    batches = [
        {"net_input": {"src_tokens": b, "src_lengths": torch.full((len(b),), b.shape[1])}}
        for b in args.batches
    ]
    batches = [moved(batch, args.device) for batch in batches]

    def translate() -> int:
        return sum(
            len(hypotheses[0]["tokens"])
            for batch in batches
            for hypotheses in task.inference_step(generator, [model], batch)
        )

    return translate


def in_ctranslate2(
    args, model, dictionaries: Task, quantization: str, vocabulary_map=None
) -> Translate:
    """Translation with the exported model, which is compared with PyTorch's first."""
    from src.deployment.comparison import load_translator
    from src.deployment.export import export
    from src.deployment.model import vocabulary

    both = dictionaries.source_dictionary, dictionaries.target_dictionary
    with tempfile.TemporaryDirectory() as folder:
        export(model, both, folder, quantization, "the model", candidates=vocabulary_map)
        translator = load_translator(folder, "the model")
    symbols = vocabulary(both[0])
    batches = [
        [[symbols[word] for word in sentence[:-1]] for sentence in batch.tolist()]
        for batch in args.batches
    ]
    search = {
        "beam_size": args.beam,
        "min_decoding_length": args.length,  # a step each: no end of sentence among them
        "max_decoding_length": args.length,
        "suppress_sequences": [[dictionaries.target_dictionary.pad_word]],
        "max_input_length": 0,
        "max_batch_size": 16,  # as generate.py has it
        "use_vmap": vocabulary_map is not None,
    }

    def translate() -> int:
        return sum(
            len(result.hypotheses[0])
            for batch in batches
            for result in translator.translate_batch(batch, **search)
        )

    return translate


def variants_of(args, rates: List[float], engines: List[str]):
    """What is timed, by engine and rate.

    Returns:
        Its translations, and for each rate the parameters and FLOPs of a sentence.
    """
    from src.deployment.vocabulary_map import CANDIDATES, learn
    from src.evaluation.flops import count_flops

    arch = f"srp_{args.arch}_de_en"
    dictionaries = real_task(args) if args.data else Task(*SHAPES[arch][4:])
    if args.data:
        sentences = sentences_of_length(dictionaries, args.sentences, args.length)
    else:
        source = dictionaries.source_dictionary
        sentences = random_sentences(args.sentences, args.length, source)
    args.batches = list(sentences.split(args.batch_size))
    vocabulary_map = None
    if WITH_MAP in engines:
        vocabulary_map = learn(dictionaries, CANDIDATES)
    timed: Dict[Variant, Translate] = {}
    sizes: Dict[float, Tuple[int, int]] = {}
    for rate in rates:
        model = build("srp", arch, dictionaries)
        if rate == 1:
            stock = build("transformer", arch, dictionaries)
            weights = model.state_dict()
            stock.load_state_dict({name: weights[name] for name in stock.state_dict()})
            timed[STOCK, 1] = in_pytorch(args, stock, dictionaries, own_search=False)
        else:
            prune(model, rate, stage=0)
        flops = count_flops(model, args.length, args.length, beam=args.beam)["total"]
        sizes[rate] = sum(p.numel() for p in model.parameters()), flops
        for engine in engines:
            if engine in QUANTIZATIONS:
                how = QUANTIZATIONS[engine]
                found = vocabulary_map if engine == WITH_MAP else None
                timed[engine, rate] = in_ctranslate2(args, model, dictionaries, how, found)
            else:
                own, half = engine != "fairseq-search", engine.endswith("-fp16")
                timed[engine, rate] = in_pytorch(args, model, dictionaries, own, half)
    return timed, sizes


def checked(name: Variant, translate: Translate, expected: int) -> Callable[[], None]:
    """A translation that fails where it generates another number of tokens."""

    def run() -> None:
        tokens = translate()
        if tokens != expected:
            raise RuntimeError(f"{name}: {tokens} tokens instead of {expected}")

    return run


def ratio(base: List[float], times: List[float]) -> Tuple[float, List[float]]:
    """Median and quartiles of ``base / times``, round by round."""
    quotients = [b / t for b, t in zip(base, times)]
    quartiles = statistics.quantiles(quotients, n=4, method="inclusive")
    return statistics.median(quotients), quartiles


def table(times: Dict[Variant, List[float]], sizes, tokens: int) -> List[dict]:
    rows = []
    for (engine, rate), seconds in times.items():
        parameters, flops = sizes[rate]
        row = {
            "engine": engine,
            "rate": rate,
            "parameters": parameters,
            "MFLOPs": round(flops / 1e6, 1),
            "FLOPs reduction": round(sizes[1][1] / flops, 2),
            "tokens/s": round(tokens / statistics.median(seconds)),
            "times fairseq": round(ratio(times[STOCK, 1], seconds)[0], 2),
        }
        if rate != 1:
            speed_up, quartiles = ratio(times[engine, 1], seconds)
            reduction = sizes[1][1] / flops
            row["speed-up"] = round(speed_up, 2)
            row["quartiles"] = f"{quartiles[0]:.2f}-{quartiles[2]:.2f}"
            row["realised"] = f"{(speed_up - 1) / (reduction - 1):.0%}"
        rows.append(row)
    return rows


def draw(times: Dict[Variant, List[float]], sizes, path: str) -> None:
    """The picture: speed-up against FLOPs reduction, and speed against fairseq's."""
    from matplotlib.figure import Figure

    from src.evaluation.report_picture import FAINT, INK

    reductions = [sizes[1][1] / flops for _, flops in sizes.values()]
    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title("Speed-up over the uncut model", loc="left", color=INK)
    ends = [1, max(reductions)]
    left.plot(ends, ends, linestyle="--", color=FAINT, label="all of the FLOPs' gain")
    _draw_engines(left, times, sizes, lambda engine: times[engine, 1])
    left.legend(frameon=False, fontsize=9, labelcolor=INK)
    right.set_title("Speed against fairseq's transformer", loc="left", color=INK)
    right.axhline(1, linestyle="--", color=FAINT)
    _draw_engines(right, times, sizes, lambda engine: times[STOCK, 1])
    for axes in (left, right):
        _dress(axes, reductions, list(sizes))
    figure.savefig(path, format="png", facecolor="white")


def _draw_engines(axes, times, sizes, base: Callable[[str], List[float]]) -> None:
    """A line with quartiles for each engine; side by side, so that bars don't hide."""
    from src.evaluation.report_picture import ACCENT, INK

    colours = dict(zip(EVERY_ENGINE, (ACCENT, INK, "#1f5f93", "#3a9a78", "#8a5fa8", "#b0662a")))
    engines = list(dict.fromkeys(engine for engine, _ in times if engine != STOCK))
    for place, engine in enumerate(engines):
        aside = 1.02 ** (place - (len(engines) - 1) / 2)
        found = [ratio(base(engine), times[engine, rate]) for rate in sizes]
        axes.errorbar(
            [sizes[1][1] / flops * aside for _, flops in sizes.values()],
            [median for median, _ in found],
            yerr=[
                [median - quartiles[0] for median, quartiles in found],
                [quartiles[2] - median for median, quartiles in found],
            ],
            label=engine,
            color=colours[engine],
            marker="o",
            markersize=5,
            capsize=3,
        )


def _dress(axes, reductions: List[float], rates: List[float]) -> None:
    """Logarithmic axes with the numbers of the table."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    from src.evaluation.report_picture import INK

    axes.set_xscale("log")
    axes.set_yscale("log")
    labels = [f"{x:.3g}\nrate {r:g}" for x, r in zip(reductions, rates)]
    axes.set_xticks(reductions, labels)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("FLOPs reduction", color=INK)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#e6ebf0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def parse() -> argparse.Namespace:
    parser = arguments(__doc__, gpu=True)
    parser.add_argument("--arch", choices=SENTENCES, default="multi30k", help="shape of the model")
    parser.add_argument("--rates", default="0.5,0.2,0.1,0.05", help="compression rates")
    parser.add_argument("--engines", default="pytorch", help=", ".join(EVERY_ENGINE))
    parser.add_argument("--beam", type=int, default=5, help="beam size")
    parser.add_argument("--batch-size", type=int, default=64, help="sentences a batch")
    usual = ", ".join(f"{number} for {arch}" for arch, number in SENTENCES.items())
    parser.add_argument("--sentences", type=int, help=f"sentences a round ({usual})")
    parser.add_argument(
        "--data", help="fairseq data folder to take dictionaries and sentences from"
    )
    parser.add_argument("--length", type=int, default=15, help="tokens of a source and of a target")
    args = parser.parse_args()
    args.rates = numbers(parser, "--rates", args.rates)
    args.engines = args.engines.split(",")
    for engine in args.engines:
        if engine not in ENGINES[args.device]:
            parser.error(
                f"--engines {engine}: on {args.device} must be of {', '.join(ENGINES[args.device])}"
            )
    if WITH_MAP in args.engines and not args.data:
        parser.error(f"--engines {WITH_MAP}: needs --data, its map is of real sentences")
    check(parser, args, beam=1, batch_size=1)
    if args.sentences is None:
        args.sentences = SENTENCES[args.arch]
    if args.sentences < 1 or not 2 <= args.length <= 200:
        parser.error("--sentences must be at least 1, --length from 2 to 200")
    return args


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    timed, sizes = variants_of(args, [1, *args.rates], args.engines)
    tokens = args.sentences * args.length
    timed = {name: checked(name, run, tokens) for name, run in timed.items()}
    times = interleave(timed, args.rounds, warmup=1)
    order = [STOCK, *args.engines]
    times = dict(sorted(times.items(), key=lambda item: order.index(item[0][0])))
    report(
        f"Speed-up against FLOPs reduction, {args.arch}",
        table(times, sizes, tokens),
        args.output,
        realised="(speed-up - 1) / (FLOPs reduction - 1)",
        sentences=args.sentences,
        batch=args.batch_size,
        length=args.length,
        beam=args.beam,
        rounds=args.rounds,
        data=args.data and os.path.basename(os.path.normpath(args.data)),
    )
    if args.output:
        draw(times, sizes, f"{os.path.abspath(args.output)}.png")


if __name__ == "__main__":
    main()
