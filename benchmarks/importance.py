"""What importance scores are worth: validation nll after cutting without retraining.

    python benchmarks/importance.py data-bin/multi30k.de-en \\
        --path checkpoints/multi30k/base/checkpoint_best.pt

For each criterion and size of the scoring sample, channels are selected for
--rates (attention and feed-forward widths, or embedding widths), cut at once,
and the validation loss is measured. "agreement" is the share of the selected
channels on which two disjoint samples agree. --criteria NAME[+NORM][+example],...
chooses criteria, their normalization (l1, l2) and absolute values by sentence.
"""

import copy
import os
import re
import sys

import torch
from common import arguments, check, report


def load(data: str, path: str):
    from fairseq import checkpoint_utils

    import src  # noqa: F401

    overrides = {"data": data, "eval_bleu": False}
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [path], arg_overrides=overrides
    )
    task.load_dataset("train")
    task.load_dataset("valid")
    criterion = task.build_criterion(cfg.criterion)
    return models[0].eval(), task, criterion


@torch.no_grad()
def validation_nll(model, task, criterion) -> float:
    """nll in bits per token."""
    dataset = task.dataset("valid")
    iterator = task.get_batch_iterator(
        dataset, max_tokens=4096, required_batch_size_multiple=1
    ).next_epoch_itr(shuffle=False)
    total = tokens = 0.0
    for sample in iterator:
        _, _, log = criterion(model, sample)
        total += float(log["nll_loss"])
        tokens += log["ntokens"]
    return total / tokens / 0.6931471805599453


def selected(model, task, criterion, rate, stage, sample=0):
    """Channels that stay, per group, by one of several samples without common sentences."""
    from src.connectivity.budget import plan_widths
    from src.connectivity.selection import select
    from src.training import channel_scores

    number = task.cfg.scoring_batches
    task.cfg.scoring_batches = number * (sample + 1)
    try:
        samples = list(channel_scores.scoring_samples(task, "train", 1))
    finally:
        task.cfg.scoring_batches = number
    device, samples = torch.device("cpu"), samples[number * sample :]
    scores = channel_scores.score_model(task, model, criterion, "train", 1, device, samples=samples)
    return select(model, scores, plan_widths(model, rate, stage))


def batches_in(task, most: int, tokens: int) -> int:
    """How many batches for scoring the training data has, up to ``most``."""
    from src.training.channel_scores import scoring_samples

    task.cfg.scoring_batches, task.cfg.scoring_tokens = most, tokens
    return sum(1 for _ in scoring_samples(task, "train", 1))


def agreement(first, second) -> float:
    common = sum(len(set(first[n].tolist()) & set(second[n].tolist())) for n in first)
    return common / sum(len(kept) for kept in first.values())


def main():
    parser = arguments(__doc__, rounds=None)
    parser.add_argument("data", help="fairseq data folder")
    parser.add_argument("--path", required=True, help="checkpoint of an uncut model")
    parser.add_argument("--rates", default="2:0.7,1:0.8", help="STAGE:RATE,...")
    parser.add_argument(
        "--samples", default="10x4096,10x256,150x256,40x1024", help="BATCHESxTOKENS,..."
    )
    parser.add_argument("--criteria", help="default: all, as they are")
    args = parser.parse_args()
    check(parser, args)
    for option, form, text in (
        ("--rates", r"[012]:0?\.[0-9]+", "STAGE:RATE, as 2:0.7"),
        ("--samples", "[1-9][0-9]*x[1-9][0-9]*", "BATCHESxTOKENS, as 150x256"),
    ):
        for given in getattr(args, option[2:]).split(","):
            if not re.fullmatch(form, given):
                parser.error(f"{option} {given}: must be {text}")
    if not os.path.isfile(args.path):
        parser.error(f"--path {args.path}: no such checkpoint")
    if not os.path.isdir(args.data):
        parser.error(f"data {args.data}: no such folder")
    torch.set_num_threads(args.threads)
    model, task, criterion = load(args.data, args.path)
    from src.connectivity.cut import cut
    from src.connectivity.importance import IMPORTANCE, NORMS

    criteria = (args.criteria or ",".join(sorted(IMPORTANCE))).split(",")
    for given in criteria:
        name, *options = given.split("+")
        if name not in IMPORTANCE or set(options) - {*NORMS, "example"}:
            parser.error(f"--criteria {given}: must be NAME[+l1 or +l2][+example]")

    rows = []
    base = validation_nll(model, task, criterion)
    for pair in args.rates.split(","):
        stage, rate = pair.split(":")
        stage, rate = int(stage), float(rate)
        what = {1: "embedding", 2: "attention and ffn", 0: "all"}[stage]
        runs = []
        for given in criteria:
            if IMPORTANCE[given.split("+")[0]].uses_batches:
                for sample in args.samples.split(","):
                    runs.append((given, *map(int, sample.split("x"))))
            else:
                runs.append((given, None, None))
        for _, batches, tokens in runs:
            if batches and batches_in(task, 2 * batches, tokens) < 2 * batches:
                parser.error(
                    f"--samples {batches}x{tokens}: the training data is too small for two "
                    "samples without common sentences"
                )
        for given, batches, tokens in runs:
            name, *options = given.split("+")
            task.cfg.importance = name
            task.cfg.importance_norm = next((o for o in options if o in NORMS), "none")
            task.cfg.importance_per_example = "example" in options
            if batches:
                task.cfg.scoring_batches, task.cfg.scoring_tokens = batches, tokens
            keep = selected(model, task, criterion, rate, stage)
            row = {"cut": what, "rate": rate, "importance": given, "batches": batches}
            row["tokens a batch"] = tokens
            if batches:
                other = selected(model, task, criterion, rate, stage, sample=1)
                row["agreement"] = round(agreement(keep, other), 3)
            smaller = copy.deepcopy(model)
            cut(smaller, keep)
            row["valid nll"] = round(validation_nll(smaller, task, criterion), 3)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    report(
        f"Importance without retraining (uncut model: {base:.3f} bits per token)",
        rows,
        args.output,
    )


if __name__ == "__main__":
    main()
