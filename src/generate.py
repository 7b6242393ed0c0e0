"""Translate a test set: fairseq-generate, then BLEU and a report.

    python src/generate.py data-bin/multi30k.de-en \\
        --path checkpoints/multi30k/base/checkpoint_best.pt --batch-size 128 --beam 5 \\
        --remove-bpe --report checkpoints/multi30k/base/report.json

Options and output lines are fairseq-generate's (log lines go to standard error);
then follows BLEU of the detokenized text with sacreBLEU's signature. What
differs: this plug-in and its task are the defaults, and so are --num-workers 0 and
--required-batch-size-multiple 1, because fairseq's 8 leaves out the sentences of
an incomplete last batch.

References are the data's target side, detokenized, where words outside the
dictionary stand as <<unk>> and match nothing; --reference takes the raw text
instead. A sentence whose source line is empty is translated like any other and
keeps its number. Sentences longer than the model's position tables are refused;
with --skip-invalid-size-inputs-valid-test they are left out of the output and
count as empty translations in BLEU.

--engine ctranslate2 translates with the exported model (see export.py), in 8-bit
integers with --quantization int8.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.generate").main())

import argparse  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import shlex  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from typing import List, NamedTuple, Optional, TextIO  # noqa: E402

from fairseq import checkpoint_utils, options, utils  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from fairseq.models import ARCH_MODEL_REGISTRY, BaseFairseqModel  # noqa: E402
from fairseq.tasks import FairseqTask  # noqa: E402
from fairseq_cli import generate as fairseq_generate  # noqa: E402

from .checkpoint_utils import load_checkpoint, trusted_pickle  # noqa: E402
from .checkpoints.pretrained import check_finite  # noqa: E402
from .checks import search as search_checks  # noqa: E402
from .checks import translation as checks  # noqa: E402
from .checks.values import model_overrides  # noqa: E402
from .commandline import parsing as cli  # noqa: E402
from .connectivity.groups import shrinking_groups  # noqa: E402
from .deployment import engine as ctranslate2_engine  # noqa: E402
from .errors import UserError  # noqa: E402
from .evaluation import bleu  # noqa: E402
from .evaluation import measures as evaluation
from .files import atomic_write, refusing_failed_writes  # noqa: E402

logger = logging.getLogger(__name__)


def _known_arch(name: str) -> str:
    if name not in ARCH_MODEL_REGISTRY:
        known = ", ".join(n for n in ARCH_MODEL_REGISTRY if n.startswith("srp"))
        raise argparse.ArgumentTypeError(f"{name} is unknown; SRP's are {known}")
    return name


def get_parser() -> argparse.ArgumentParser:
    """fairseq-generate's options and this tool's own."""
    parser = cli.fairseq_parser(options.get_generation_parser)
    # a worker process costs seconds when it ends, and batches are made in no time
    parser.set_defaults(required_batch_size_multiple=1, num_workers=0)
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "%(prog)s DATA --path CHECKPOINT [options]"
    group = parser.add_argument_group("checks against the checkpoint")
    group.add_argument(
        "--arch",
        "-a",
        metavar="ARCH",
        type=_known_arch,
        default=argparse.SUPPRESS,
        help="architecture that the checkpoint is expected to have",
    )
    group.add_argument(
        "--weighted-layernorm",
        action="store_true",
        help="expect weighted layer normalization; a cut model keeps its own kind",
    )
    cli.add_trust(group, "--path and --lm-path")
    ctranslate2_engine.add_options(parser)
    group = parser.add_argument_group("BLEU and report")
    group.add_argument(
        "--detok",
        choices=("moses", "none"),
        help="how the output becomes text for BLEU (default: moses; none with --tokenizer, "
        "which does it already)",
    )
    group.add_argument(
        "--reference",
        metavar="FILE",
        help="raw references, one a line in the order of the test set (default: the "
        "data's target side, detokenized)",
    )
    group.add_argument(
        "--sacrebleu-lowercase", action="store_true", help="BLEU of lower-cased text"
    )
    group.add_argument(
        "--tokenized-bleu",
        action="store_true",
        help="also BLEU of the tokens against the data's target side",
    )
    group.add_argument(
        "--report",
        metavar="FILE.json",
        help="write BLEU, parameters, FLOPs, bytes and speed to this file",
    )
    for side in ("source", "target"):
        group.add_argument(
            f"--flops-{side}-length",
            type=int,
            metavar="N",
            help=f"{side} tokens of a sentence for FLOPs (default: the mean of those translated)",
        )
    return parser


def translate(args, cfg, task_class: type, stream: TextIO, engine=None):
    """Run fairseq-generate, its lines going to ``stream``.

    Args:
        engine: what generates instead of PyTorch, from ``ctranslate2_engine``.

    Returns:
        Hypotheses by sentence number, and the time of each batch.
    """
    with ctranslate2_engine.translating(task_class, engine, stream) as stream:
        lines = bleu.OutputLines(stream, cfg.common_eval.quiet)
        cfg.common_eval.quiet = False  # the lines are needed
        with trusted_pickle(args.trust_checkpoint):
            with evaluation.timed_inference(task_class) as steps:
                fairseq_generate._main(cfg, lines)
    return lines.hypotheses, steps


def output_stream(cfg):
    """Context of the stream for output lines: --results-path's file or standard output."""
    folder = cfg.common_eval.results_path
    if folder is None:
        return nullcontext(sys.stdout)
    with refusing_failed_writes(f"--results-path {folder}"):
        os.makedirs(folder, exist_ok=True)
    name = os.path.join(folder, f"generate-{cfg.dataset.gen_subset}.txt")
    return atomic_write(name, encoding="utf-8")


class Loaded(NamedTuple):
    """What a translation starts from.

    Attributes:
        skipped: numbers of sentences that are too long and are left out.
        updates: of the training; None for an average of checkpoints.
        references: those of ``--reference``.
    """

    task: FairseqTask
    models: List[BaseFairseqModel]
    skipped: List[int]
    updates: Optional[int]
    references: Optional[List[str]]


def load(args, cfg) -> Loaded:
    """Data and models, everything checked.

    Raises:
        UserError: a mistake in an option or file.
    """
    checks.check_options(args, cfg)
    paths = utils.split_paths(cfg.common_eval.path)
    states = [load_checkpoint(p, "--path", args.trust_checkpoint) for p in paths]
    overrides = model_overrides(cfg.common_eval.model_overrides)
    for path, state in zip(paths, states):
        search_checks.check_overrides(overrides, state["cfg"], path)
        checkpoint_utils.overwrite_args_by_name(state["cfg"], overrides)
    checks.truncate_for_models(cfg, states)
    task = checks.set_up_task(cfg)
    search_checks.check_task(cfg, task)
    search_checks.check_language_model(cfg, task, args.trust_checkpoint)
    dataset, references = task.dataset(cfg.dataset.gen_subset), None
    if args.reference:
        references = bleu.read_references(args.reference, len(dataset))
    if args.tokenized_bleu and dataset.tgt is None:
        raise UserError(
            f"--tokenized-bleu: --gen-subset {cfg.dataset.gen_subset} has no target side "
            "whose tokens to compare with; leave it out"
        )
    for path, state in zip(paths, states):
        checks.check_checkpoint(args, task, state, path)
    updates = None  # report.py finds a run's validation by them; an average has none
    if "averaged" not in states[0]:
        updates = (states[0].get("optimizer_history") or [{}])[-1].get("num_updates")
    models = []
    for path in paths:
        try:
            loaded, _ = checkpoint_utils.load_model_ensemble([path], task=task, state=states.pop(0))
        except RuntimeError as error:
            raise UserError(
                f"--path {path}: its weights don't fit its options, with --model-overrides "
                f"{overrides} ({' '.join(str(error).split())[:300]})"
            ) from None
        check_finite(loaded[0].named_parameters(), f"--path {path}")
        models += loaded
    skipped = checks.check_lengths(cfg, task, models)
    return Loaded(task, models, skipped, updates, references)


def run(args, cfg) -> None:
    """Check everything, translate, score and report.

    Raises:
        UserError: a mistake in an option or file, before any translation.
    """
    task, models, skipped, updates, references = load(args, cfg)
    dataset = task.dataset(cfg.dataset.gen_subset)
    if args.report:
        evaluation.check_countable(models[0], f"--report {args.report}")
    engine = ctranslate2_engine.prepare(args, cfg, task, models[0], skipped)
    for path, model in zip(utils.split_paths(cfg.common_eval.path), models):
        shrinking = shrinking_groups(model)
        if shrinking:  # what it translates is worth a look, no more
            logger.warning(
                f"--path {path}: a pruning stage is under way, channels of {shrinking[0]} are "
                "shrinking; what counts is the model after its end"
            )
    with output_stream(cfg) as stream:
        hypotheses, steps = translate(args, cfg, type(task), stream, engine)
        scores = bleu.score(
            [hypotheses.get(number, "") for number in range(len(dataset))],
            bleu.target_side(cfg, task),
            references,
            bleu.detokenizer(args.detok or _usual_detok(cfg), task.cfg.target_lang),
            lowercase=args.sacrebleu_lowercase,
            tokenized=args.tokenized_bleu,
        )
        notes = [result["line"] for result in scores.values()]
        if skipped:
            notes.append(f"left out {len(skipped)} too long sentences (empty in BLEU)")
        if not scores:
            notes.append("no BLEU: the data has no target side; give --reference")
        print("\n".join(notes), file=stream)
    if cfg.common_eval.results_path is not None:
        print("\n".join(notes))
    if args.report:
        facts = {
            **bleu.report(scores),
            **evaluation.report(cfg, models[0], dataset, steps, _lengths(args), engine, skipped),
            "reference": args.reference,
            "skipped_sentences": len(skipped),
            "num_updates": updates,
            "command": args.command,
        }
        with atomic_write(args.report, encoding="utf-8") as stream:
            json.dump(facts, stream, indent=1)
            stream.write("\n")


def configure(args):
    """fairseq's configuration of the parsed options.

    Raises:
        UserError: the tokenizer's languages are missing, which it can't be made without.
    """
    if args.tokenizer == "moses" and None in (args.source_lang, args.target_lang):
        raise UserError("--tokenizer moses: needs --source-lang and --target-lang")
    cfg = convert_namespace_to_omegaconf(args)
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        cfg.dataset.max_tokens = 12000  # as fairseq-generate does later
    return cfg


def _usual_detok(cfg) -> str:
    return "moses" if cfg.tokenizer is None else "none"


def _lengths(args):
    return args.flops_source_length, args.flops_target_length


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    cli.set_up_logging(sys.stderr)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args = cli.parse(get_parser(), arguments)
    args.command = shlex.join(["python", sys.argv[0], *arguments])
    cfg = configure(args)
    cli.log_to_file(args.log_file)
    with cli.ending_quietly("nothing was reported"):
        run(args, cfg)
