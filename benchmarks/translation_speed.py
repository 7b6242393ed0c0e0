"""Translation speed of checkpoints by several engines, side by side with fairseq.

    python benchmarks/translation_speed.py data-bin/multi30k.de-en \\
        checkpoints/multi30k/base/checkpoint_best.pt \\
        checkpoints/multi30k/finetuned/checkpoint_best.pt \\
        --engines pytorch,pytorch-bf16,ctranslate2-float32,ctranslate2-int8 --threads 1

The first line is the first checkpoint as fairseq's own transformer translates it,
with fairseq's beam search. Everything translates the same sentences once a round, in
a new random order each round; figures are medians of the ratios of tokens per second
to that line's in the same round. "identical" is the share of sentences whose best
hypothesis is the one that fairseq's search gives with the same checkpoint. The engine
that ends in -vmap scores only the candidates of a vocabulary map of the data's training
set, as export.py --vocabulary-map makes it.

On a GPU (--device cuda) the engines are PyTorch's, in float32 and with --fp16; with one
in fp16, the second line is fairseq's transformer in fp16.
"""

import copy
import os
import statistics
import tempfile
from typing import Callable, Dict, List

import numpy as np
import torch
from common import arguments, check, interleave, moved, report

STOCK = "fairseq"
WITH_MAP = "ctranslate2-int8-vmap"
QUANTIZATIONS = {
    "ctranslate2-float32": "float32",
    "ctranslate2-int8": "int8",
    WITH_MAP: "int8",
}
STOCK_HALF = "fairseq-fp16"
ENGINES = {
    "cpu": ("pytorch", "pytorch-bf16", "fairseq-search", *QUANTIZATIONS),
    "cuda": ("pytorch", "pytorch-fp16", "fairseq-search"),
}
EVERY_ENGINE = list(dict.fromkeys(name for names in ENGINES.values() for name in names))


def batches_of(task, subset: str, sentences: int, size: int) -> List[dict]:
    """Evenly spaced sentences of a data set, sorted by length."""
    task.load_dataset(subset)
    dataset = task.dataset(subset)
    order = dataset.ordered_indices()
    # of all lengths, the shortest and the longest among them
    chosen = np.linspace(0, len(order) - 1, min(sentences, len(order)))
    order = order[chosen.round().astype(int)]
    return [
        dataset.collater([dataset[i] for i in order[start : start + size]])
        for start in range(0, len(order), size)
    ]


def short_names(paths: List[str]) -> Dict[str, str]:
    """Every path from where they part, with its own folder at least."""
    whole = {path: os.path.abspath(path) for path in paths}
    common = os.path.commonpath([os.path.dirname(os.path.dirname(p)) for p in whole.values()])
    return {path: os.path.relpath(p, common) for path, p in whole.items()}


def as_fairseq_transformer(path: str, task):
    """An uncut SRP checkpoint's weights in fairseq's own model."""
    from fairseq import models

    from src.checkpoint_utils import load_checkpoint
    from src.checkpoints.pretrained import srp_arguments

    state = load_checkpoint(path, "checkpoint")
    options = srp_arguments(state)
    options.arch = options._name = "transformer"
    model = models.build_model(options, task)
    model.load_state_dict({name: state["model"][name] for name in model.state_dict()})
    return model


def generator_of(engine: str, model, task, search, vocabulary_map=None):
    """What ``task.inference_step`` takes as generator.

    Args:
        vocabulary_map: of the engine that has one.
    """
    model.make_generation_fast_(beamable_mm_beam_size=None, need_attn=False)
    if engine in QUANTIZATIONS:
        from src.deployment.export import export
        from src.deployment.generator import CTranslate2Generator

        both = task.source_dictionary, task.target_dictionary
        with tempfile.TemporaryDirectory() as folder:
            found = vocabulary_map if engine == WITH_MAP else None
            how = QUANTIZATIONS[engine]
            export(model, both, folder, how, "checkpoint", candidates=found)
            limit = model.max_decoder_positions()
            return CTranslate2Generator(folder, both, search, limit, "checkpoint")
    if engine.endswith("-fp16"):
        model = copy.deepcopy(model).half()
    task.cfg.fairseq_search = engine in (STOCK, STOCK_HALF, "fairseq-search")
    task.cfg.cpu_bf16 = engine == "pytorch-bf16"
    try:
        return task.build_generator([model], search)
    finally:
        task.cfg.cpu_bf16 = False


def main():
    parser = arguments(__doc__, gpu=True)
    parser.add_argument("data", help="fairseq data folder")
    parser.add_argument("checkpoints", nargs="+", help="the first one is uncut")
    parser.add_argument("--engines", default="pytorch", help=", ".join(EVERY_ENGINE))
    parser.add_argument("--subset", default="test", help="part of the data")
    parser.add_argument("--sentences", type=int, default=256, help="how many of them")
    parser.add_argument("--batch-size", type=int, default=64, help="sentences a batch")
    parser.add_argument("--beam", type=int, default=5, help="beam size")
    args = parser.parse_args()
    engines = args.engines.split(",")
    for engine in engines:
        if engine not in ENGINES[args.device]:
            parser.error(
                f"--engines {engine}: on {args.device} must be of {', '.join(ENGINES[args.device])}"
            )
    check(parser, args, sentences=1, batch_size=1, beam=1)
    for path in args.checkpoints:
        if not os.path.isfile(path):
            parser.error(f"{path}: no such checkpoint")
    if not os.path.isdir(args.data):
        parser.error(f"data {args.data}: no such folder")
    torch.set_num_threads(args.threads)
    from fairseq.dataclass.configs import GenerationConfig

    from src.checkpoints.rebuild import load_model
    from src.checks.data import task_of
    from src.connectivity.groups import channel_groups
    from src.deployment.vocabulary_map import CANDIDATES, learn

    search = GenerationConfig(beam=args.beam)
    task = task_of(args.data)
    names = short_names(args.checkpoints)
    variants: Dict[tuple, Callable] = {}
    found, sizes, batches, vocabulary_map = {}, {}, None, None
    for number, path in enumerate(args.checkpoints):
        model = load_model(path).to(args.device)
        groups = channel_groups(model).values()
        if number == 0 and any(group.width < group.original_width for group in groups):
            parser.error(
                f"{path}: is cut, and fairseq's transformer can't hold it; give the uncut one first"
            )
        if batches is None:
            batches = batches_of(task, args.subset, args.sentences, args.batch_size)
            batches = [moved(batch, args.device) for batch in batches]
            if WITH_MAP in engines:
                vocabulary_map = learn(task, CANDIDATES)
        sizes[path] = sum(p.numel() for p in model.parameters())
        stock = [STOCK, STOCK_HALF] if "pytorch-fp16" in engines else [STOCK]
        for engine in [*(stock if number == 0 else []), *engines]:
            used = model
            if engine in stock:
                used = as_fairseq_transformer(path, task).to(args.device)
            generator = generator_of(engine, used, task, search, vocabulary_map)

            def translate(key=(engine, path), generator=generator, model=used):
                found[key] = [
                    hypotheses[0]["tokens"].tolist()
                    for batch in batches
                    for hypotheses in task.inference_step(generator, [model], batch)
                ]

            variants[engine, path] = translate
        reference = generator_of("fairseq-search", model, task, search)
        found["reference", path] = [
            hypotheses[0]["tokens"].tolist()
            for batch in batches
            for hypotheses in task.inference_step(reference, [model], batch)
        ]
    times = interleave(variants, args.rounds, warmup=1)
    tokens = {key: sum(map(len, hypotheses)) for key, hypotheses in found.items()}
    base = STOCK, args.checkpoints[0]
    rows = []
    for key, seconds in times.items():
        engine, path = key
        quotients = [tokens[key] / s * b / tokens[base] for s, b in zip(seconds, times[base])]
        quartiles = statistics.quantiles(quotients, n=4)
        same = sum(map(list.__eq__, found[key], found["reference", path]))
        rows.append(
            {
                "checkpoint": names[path],
                "parameters": sizes[path],
                "engine": engine,
                "tokens/s": round(tokens[key] / statistics.median(seconds)),
                "speed-up": round(statistics.median(quotients), 2),
                "quartiles": f"{quartiles[0]:.2f}-{quartiles[2]:.2f}",
                "identical": f"{same / len(found[key]):.1%}",
            }
        )
    report(
        "Translation speed",
        rows,
        args.output,
        sentences=len(found[base]),
        batch=args.batch_size,
        beam=args.beam,
        rounds=args.rounds,
    )


if __name__ == "__main__":
    main()
