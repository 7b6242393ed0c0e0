"""Plan a pruning: how fast a model becomes on this machine by layers and widths.

    python src/plan.py data-bin/multi30k.de-en \\
        --path checkpoints/multi30k/base/checkpoint_best.pt \\
        --engines pytorch,ctranslate2-int8 --speed-up 4 --picture plan.png

Candidates are cut from the checkpoint to numbers of layers and compression rates. They
are not trained: what they translate is worth nothing, how long they take is what trained
ones take. They translate sentences of DATA in as many steps as the model's own translations
take, all of them once a round, in a new order each round.

"speed-up" is tokens per second over those of the uncut model in the same engine, "x fairseq"
over those of fairseq's own search with the uncut model; both are medians of ratios within
a round, with quartiles. MFLOPs are of a sentence of mean length with the search's beam.

--speed-up says which candidate has most parameters among those that are so much faster,
in the (first) engine: rates between those of the table are timed for it. It counts from the
uncut model in that engine, with --speed-baseline fairseq from stock fairseq. pruning.py
--speed-up does the same, and prunes to it.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.plan").main())

import argparse  # noqa: E402
import json  # noqa: E402
from functools import partial  # noqa: E402
from typing import List, Optional, Tuple  # noqa: E402

import pandas as pd  # noqa: E402
import torch  # noqa: E402

from .adapters import adapted_layers, fuse  # noqa: E402
from .checkpoint_utils import load_checkpoint  # noqa: E402
from .checkpoints.pretrained import (  # noqa: E402
    check_dictionaries,
    check_finite,
    check_not_shrinking,
    set_layernorm,
)
from .checkpoints.rebuild import model_of  # noqa: E402
from .checks.data import load_set, task_of  # noqa: E402
from .checks.speed import ENGINES, MAP, UNCUT  # noqa: E402
from .commandline.parsing import (  # noqa: E402
    ArgumentParser,
    add_trust,
    ending_quietly,
    set_up_logging,
)
from .connectivity.stage import StagePlan  # noqa: E402
from .deployment import vocabulary_map  # noqa: E402
from .errors import UserError  # noqa: E402
from .evaluation.measures import machine  # noqa: E402
from .files import atomic_write  # noqa: E402
from .planning.candidates import RATES, candidates, depths_of, is_uncut, usual_depths  # noqa: E402
from .planning.choice import Choice, choose  # noqa: E402
from .planning.engines import SENTENCES, make_work, translation  # noqa: E402
from .planning.measure import ROUNDS, Planner  # noqa: E402
from .planning.options import add_baseline, check, parse_depths, parse_engines, parse_rates  # noqa: E402
from .planning.picture import draw  # noqa: E402
from .planning.rows import Row  # noqa: E402
from .planning.table import readable, to_records  # noqa: E402


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("data", metavar="DATA", help="folder of binarized data")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="the model to prune")
    group = parser.add_argument_group("candidates")
    group.add_argument(
        "--depths",
        metavar="E+D,...",
        help="layers of encoder and decoder, as 3+3,3+1 (default: all of the encoder; all, half, "
        "two and one of the decoder)",
    )
    group.add_argument(
        "--rates",
        default=",".join(f"{rate:g}" for rate in RATES),
        metavar="RATE,...",
        help="compression rates, shares of the uncut model's parameters (default: %(default)s); "
        "every depth is timed with nothing but layers cut, too",
    )
    group.add_argument(
        "--prune-heads", action="store_true", help="cut whole heads, as pruning.py does with it"
    )
    group.add_argument(
        "--embedding-ratio",
        type=float,
        default=1.0,
        metavar="K",
        help="as pruning.py has it (default: 1)",
    )
    group.add_argument(
        "--weighted-layernorm",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="cut an uncut model with it, as pruning.py does with the option of this name "
        "(default); without, CTranslate2 computes all embedding channels. A cut model keeps "
        "its own kind",
    )
    group.add_argument(
        "--speed-up",
        type=float,
        metavar="S",
        help="find the candidate with most parameters that is S times as fast as "
        "--speed-baseline, in the first engine",
    )
    add_baseline(group)
    group = parser.add_argument_group("what is timed")
    group.add_argument(
        "--engines",
        metavar="ENGINE,...",
        help=f"of {', '.join(ENGINES)} (default: those that are installed; on a GPU "
        "pytorch alone); pytorch is generate.py's search",
    )
    group.add_argument(
        "--vocabulary-map",
        type=int,
        nargs="?",
        const=vocabulary_map.CANDIDATES,
        metavar="K",
        help="time CTranslate2 with a vocabulary map as well, see export.py (engines whose "
        f"names end with {MAP}); it is learnt from the training set of DATA",
    )
    group.add_argument(
        "--gen-subset",
        default="valid",
        metavar="SUBSET",
        help="set of DATA whose sentences are translated (default: valid)",
    )
    group.add_argument(
        "--sentences",
        type=int,
        default=SENTENCES,
        metavar="N",
        help=f"sentences that each model translates in a round (default: {SENTENCES})",
    )
    group.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N", help=f"rounds (default: {ROUNDS})"
    )
    group.add_argument("--beam", type=int, default=5, metavar="N", help="beam size (default: 5)")
    group.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="sentences a batch (default: 64)"
    )
    group.add_argument(
        "--cpu-threads",
        type=int,
        default=1,
        metavar="N",
        help="threads of every engine (default: 1; with several, those of PyTorch and of "
        "CTranslate2 wait for each other here)",
    )
    group.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where PyTorch translates; cuda is the first GPU (default: cpu)",
    )
    for side in ("source", "target"):
        group.add_argument(
            f"-{side[0]}", f"--{side}-lang", help=f"{side} language (default: as in DATA)"
        )
    group = parser.add_argument_group("output, beside the table")
    for kind, text in (
        ("csv", "plain numbers, a row for each model and engine"),
        ("json", "the same with the conditions and the choice"),
        ("picture", "speed-up against parameters, as PNG"),
    ):
        group.add_argument(f"--{kind}", metavar="FILE", help=text)
    add_trust(parser, "--path")
    return parser


def set_up_task(args):
    """The task with its dictionaries, and the set to translate.

    Raises:
        UserError: the data lack a file, or one of them is damaged.
    """
    task = task_of(args.data, args.source_lang, args.target_lang)
    try:
        return task, load_set(task, args.gen_subset, "--gen-subset")
    except FileNotFoundError as error:
        raise UserError(f"--gen-subset {args.gen_subset}: {error}") from None


def measure(args, names: List[str]) -> Tuple[List[Row], Optional[Choice], dict]:
    """Cut and time what the options ask for.

    Returns:
        Rows, what ``--speed-up`` chooses, and the conditions.
    """
    origin = f"--path {args.path}"
    state = load_checkpoint(args.path, "--path", args.trust_checkpoint)
    task, dataset = set_up_task(args)
    dictionaries = task.source_dictionary, task.target_dictionary
    check_dictionaries(state, task, origin)
    check_finite(state["model"].items(), origin)
    model = model_of(state, origin).float()
    check_not_shrinking(model, origin)
    if adapted_layers(model):
        model = fuse(model)
    if is_uncut(model):
        set_layernorm(model, args.weighted_layernorm)
    plan = StagePlan(
        1.0, decreasing=None, prune_heads=args.prune_heads, embedding_ratio=args.embedding_ratio
    )
    depths, rates = usual_depths(model, plan), parse_rates(args.rates)
    if args.depths is not None:
        depths = parse_depths(args.depths, depths_of(model))
    found = None
    if args.vocabulary_map is not None:
        found = vocabulary_map.learn(task, args.vocabulary_map)
    search = {"beam": args.beam, "batch_size": args.batch_size, "device": args.device}
    option = f"--gen-subset {args.gen_subset}"
    work = make_work(
        model, dataset, dictionaries, args.sentences, vocabulary_map=found, option=option, **search
    )
    make = partial(translation, work=work, origin=origin)
    planner = Planner(model, plan, work, make, names, args.rounds, cpu_threads=args.cpu_threads)
    rows, choice = planner(candidates(depths, rates)), None
    if args.speed_up is not None:
        first = [row for row in rows if row.engine == names[0]]
        choice = choose(
            first, partial(planner, engines=names[:1]), args.speed_up, args.speed_baseline or UNCUT
        )
        rows = choice.rows + [row for row in rows if row.engine != names[0]]
    conditions = {
        "checkpoint": args.path,
        "gen_subset": args.gen_subset,
        "sentences": len(work.sentences),
        "steps": round(sum(x.steps for x in work.sentences) / len(work.sentences), 2),
        "beam": args.beam,
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        **machine(),
        "threads": args.cpu_threads,
    }
    return rows, choice, conditions


def write(args, rows: List[Row], choice: Optional[Choice], conditions: dict) -> None:
    """The files that were asked for."""
    records = to_records(rows)
    if args.csv is not None:
        with atomic_write(args.csv, encoding="utf-8") as stream:
            pd.DataFrame(records).to_csv(stream, index=False)
    if args.json is not None:
        facts = {"rows": records, "conditions": conditions}
        if choice is not None:
            facts["speed_up"] = args.speed_up
            facts["speed_baseline"] = choice.baseline
            facts["chosen"] = to_records([choice.row])[0]
        with atomic_write(args.json, encoding="utf-8") as stream:
            json.dump(facts, stream, indent=1)
            stream.write("\n")
    if args.picture is not None:
        with atomic_write(args.picture, "wb") as stream:
            draw(rows, stream, choice and choice.row)


def run(args) -> None:
    """Check everything, measure, report."""
    check(args)
    names = parse_engines(args)
    rows, choice, conditions = measure(args, names)
    write(args, rows, choice, conditions)
    print(readable(rows))
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    if choice is not None:
        print(f"--speed-up {args.speed_up:g}: {choice.reasons(args.speed_up)}")
        candidate = choice.row.candidate
        print(
            f"pruning.py --compression-rate {candidate.rate:g} --keep-encoder-layers "
            f"{candidate.encoder_layers} --keep-decoder-layers {candidate.decoder_layers}"
        )


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    set_up_logging(sys.stderr)
    args = get_parser().parse_args(arguments)
    with ending_quietly("nothing was written"):
        run(args)
