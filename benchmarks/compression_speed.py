"""Speed-up against FLOPs reduction: how much of the theoretical gain is realised.

    python benchmarks/compression_speed.py --output speed
    python benchmarks/compression_speed.py --engines pytorch,ctranslate2-int8 --rounds 8
    python benchmarks/compression_speed.py --depths 3+3,3+2,3+1 --rates 0.35,0.2
    python benchmarks/compression_speed.py --data data-bin/multi30k.de-en \\
        --engines ctranslate2-int8,ctranslate2-int8-vmap --sentences 64

Nothing is trained: models with random weights are cut to each number of layers and rate,
all widths at once, and translate the same random sentences (plan.py does so with a trained
model and its data). Every model generates the same number of tokens, --length for each
sentence, whatever its weights. All of them run once a round, in a new random order each
round; figures are medians of ratios within a round. Compared with fairseq's transformer and
its beam search, and each engine's cut models with its own uncut one. "realised" is
(speed-up - 1) / (FLOPs reduction - 1).

With --data the dictionaries are that folder's, and the sentences those of its test set
that have --length tokens. The engine that ends in -vmap needs it: its vocabulary map is of
the training set there, so as many target types are scored as with a trained model. FLOPs
are of the whole output layer all the same.

On a GPU (--device cuda) the engines are PyTorch's, in float32 and with --fp16.
"""

import argparse
import os
import sys
from typing import Callable, Dict, List, Optional, Tuple

import torch
from common import arguments, check, interleave, numbers, report
from compression_rates import SHAPES, Task

STOCK = "fairseq transformer"
WITH_MAP = "ctranslate2-int8-vmap"
ENGINES = {
    "cpu": ("pytorch", "fairseq-search", "ctranslate2-float32", "ctranslate2-int8", WITH_MAP),
    "cuda": ("pytorch", "pytorch-fp16", "fairseq-search"),
}
EVERY_ENGINE = list(dict.fromkeys(name for names in ENGINES.values() for name in names))
SENTENCES = {"multi30k": 256, "iwslt": 64}

Depths = Tuple[int, int]  # layers of encoder and decoder
Model = Tuple[Depths, float]  # and rate
Variant = Tuple[str, Optional[Model]]  # engine; None is fairseq's transformer


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


def variants_of(args):
    """What is timed, by engine and model.

    Returns:
        Its translations, and for each model the parameters and FLOPs of a sentence.
    """
    from src.connectivity.stage import StagePlan
    from src.deployment.vocabulary_map import CANDIDATES, learn
    from src.evaluation.flops import count_flops
    from src.planning.candidates import cut_to
    from src.planning.engines import translation
    from src.planning.rows import Candidate
    from src.planning.sentences import Sentence, Work

    arch = f"srp_{args.arch}_de_en"
    task = real_task(args) if args.data else Task(*SHAPES[arch][4:])
    dictionaries = task.source_dictionary, task.target_dictionary
    if args.data:
        sources = sentences_of_length(task, args.sentences, args.length)
    else:
        sources = random_sentences(args.sentences, args.length, dictionaries[0])
    sentences = [Sentence(source, args.length) for source in sources]
    work = Work(sentences, dictionaries, args.beam, args.batch_size, args.device)
    if WITH_MAP in args.engines:
        work.vocabulary_map = learn(task, CANDIDATES)
    uncut = build("srp", arch, task)
    stock = build("transformer", arch, task)
    weights = uncut.state_dict()
    stock.load_state_dict({name: weights[name] for name in stock.state_dict()})
    what = f"--arch {args.arch}"
    timed = {(STOCK, None): translation("fairseq-search", stock, work, what)}
    sizes: Dict[Model, Tuple[int, int]] = {}
    for depths, rate in models_of(args):
        model = uncut
        if (depths, rate) != args.uncut:
            model = cut_to(Candidate(*depths, rate), uncut, StagePlan(1.0, decreasing=None))
        if model is None:
            print(f"{depths[0]}+{depths[1]} layers can't have rate {rate:g}", file=sys.stderr)
            continue
        flops = count_flops(model, args.length, args.length, beam=args.beam)["total"]
        sizes[depths, rate] = sum(p.numel() for p in model.parameters()), flops
        for engine in args.engines:
            timed[engine, (depths, rate)] = translation(engine, model, work, what)
    return timed, sizes


def models_of(args) -> List[Model]:
    """The uncut model, and every depth at every rate and with nothing but layers cut."""
    models = [(depths, rate) for depths in args.depths for rate in (1, *args.rates)]
    return list(dict.fromkeys([args.uncut, *models]))


def table(args, times: Dict[Variant, List[float]], sizes, tokens: int) -> List[dict]:
    import statistics

    from src.planning.timing import ratio

    rows = []
    for (engine, model), seconds in times.items():
        (layers, rate), (parameters, flops) = model or args.uncut, sizes[model or args.uncut]
        reduction = sizes[args.uncut][1] / flops
        row = {
            "engine": engine,
            "layers": "{}+{}".format(*layers),
            "rate": rate,
            "parameters": parameters,
            "MFLOPs": round(flops / 1e6, 1),
            "FLOPs reduction": round(reduction, 2),
            "tokens/s": round(tokens / statistics.median(seconds)),
            "times fairseq": round(ratio(times[STOCK, None], seconds).median, 2),
        }
        if model not in (None, args.uncut):
            found = ratio(times[engine, args.uncut], seconds)
            row["speed-up"] = round(found.median, 2)
            row["quartiles"] = f"{found.low:.2f}-{found.high:.2f}"
            row["realised"] = f"{(found.median - 1) / (reduction - 1):.0%}"
        rows.append(row)
    return rows


def draw(args, times: Dict[Variant, List[float]], sizes, path: str) -> None:
    """The picture: speed-up against FLOPs reduction, and speed against fairseq's."""
    from matplotlib.figure import Figure

    from src.evaluation.report_picture import FAINT, INK

    reductions = {model: sizes[args.uncut][1] / flops for model, (_, flops) in sizes.items()}
    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title("Speed-up over the uncut model", loc="left", color=INK)
    ends = [1, max(reductions.values())]
    left.plot(ends, ends, linestyle="--", color=FAINT, label="all of the FLOPs' gain")
    _draw_lines(left, times, reductions, lambda engine: times[engine, args.uncut])
    left.legend(frameon=False, fontsize=9, labelcolor=INK)
    right.set_title("Speed against fairseq's transformer", loc="left", color=INK)
    right.axhline(1, linestyle="--", color=FAINT)
    _draw_lines(right, times, reductions, lambda engine: times[STOCK, None])
    for axes in (left, right):
        _dress(axes, reductions)
    figure.savefig(path, format="png", facecolor="white")


def _draw_lines(axes, times, reductions, base: Callable[[str], List[float]]) -> None:
    """A line with quartiles for each engine and depth; side by side, so that bars don't hide."""
    from src.evaluation.report_picture import ACCENT, INK
    from src.planning.timing import ratio

    colours = dict(zip(EVERY_ENGINE, (ACCENT, INK, "#1f5f93", "#3a9a78", "#8a5fa8", "#b0662a")))
    depths = list(dict.fromkeys(layers for layers, _ in reductions))
    engines = list(dict.fromkeys(engine for engine, model in times if model))
    lines = [(engine, layers) for engine in engines for layers in depths]
    for place, (engine, layers) in enumerate(lines):
        aside = 1.02 ** (place - (len(lines) - 1) / 2)
        models = [model for model in reductions if model[0] == layers]
        found = [ratio(base(engine), times[engine, model]) for model in models]
        several = "" if len(depths) == 1 else ", {}+{} layers".format(*layers)
        axes.errorbar(
            [reductions[model] * aside for model in models],
            [x.median for x in found],
            yerr=[[x.median - x.low for x in found], [x.high - x.median for x in found]],
            label=f"{engine}{several}",
            color=colours[engine],
            linestyle=("-", "--", ":", "-.")[depths.index(layers) % 4],
            marker="o",
            markersize=5,
            capsize=3,
        )


def _dress(axes, reductions: Dict[Model, float]) -> None:
    """Logarithmic axes with the numbers of the table."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    from src.evaluation.report_picture import INK

    axes.set_xscale("log")
    axes.set_yscale("log")
    uncut = next(iter(reductions))
    ticks = {x: f"{x:.3g}\nrate {r:g}" for (d, r), x in reductions.items() if d == uncut[0]}
    axes.set_xticks(list(ticks), list(ticks.values()))
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


def depths_from(parser, text: Optional[str], layers: int) -> List[Depths]:
    """The depths of --depths, of a model that has so many layers on each side."""
    found = []
    for part in (text or f"{layers}+{layers}").split(","):
        sides = part.split("+")
        if len(sides) != 2 or not all(x.isdecimal() and 0 < int(x) <= layers for x in sides):
            parser.error(f"--depths {part}: must be as {layers}+1, at most {layers}+{layers}")
        found.append((int(sides[0]), int(sides[1])))
    return found


def parse() -> argparse.Namespace:
    parser = arguments(__doc__, gpu=True)
    parser.add_argument("--arch", choices=SENTENCES, default="multi30k", help="shape of the model")
    parser.add_argument("--rates", default="0.5,0.2,0.1,0.05", help="compression rates")
    parser.add_argument(
        "--depths", help="layers of encoder and decoder, as 3+3,3+1 (default: those of --arch)"
    )
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
    layers = SHAPES[f"srp_{args.arch}_de_en"][3]
    args.uncut, args.depths = ((layers, layers), 1), depths_from(parser, args.depths, layers)
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
    timed, sizes = variants_of(args)
    runs = {name: found.run for name, found in timed.items()}
    times = interleave(runs, args.rounds, warmup=1)
    order = [STOCK, *args.engines]
    times = dict(sorted(times.items(), key=lambda item: order.index(item[0][0])))
    report(
        f"Speed-up against FLOPs reduction, {args.arch}",
        table(args, times, sizes, args.sentences * args.length),
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
        draw(args, times, sizes, f"{os.path.abspath(args.output)}.png")


if __name__ == "__main__":
    main()
