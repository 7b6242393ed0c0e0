"""Translate a test set: fairseq-generate, then BLEU and a report.

    python src/generate.py data-bin/multi30k.de-en \\
        --path checkpoints/multi30k/base/checkpoint_best.pt --batch-size 128 --beam 5 \\
        --remove-bpe --report checkpoints/multi30k/base/report.json

Options and output lines are fairseq-generate's (log lines go to standard error);
then follow BLEU and chrF of the detokenized text with sacreBLEU's signatures. What
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

import json  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import shlex  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from typing import List, Optional, TextIO, Tuple  # noqa: E402

from fairseq import utils  # noqa: E402

from .commandline import parsing as cli  # noqa: E402
from .connectivity.groups import shrinking_groups  # noqa: E402
from .decoding.lines import OutputLines  # noqa: E402
from .decoding.translate import Step, make_batches, make_generator, translate  # noqa: E402
from .deployment import engine as ctranslate2_engine  # noqa: E402
from .evaluation import bleu  # noqa: E402
from .evaluation import measures as evaluation  # noqa: E402
from .files import atomic_write, make_output_folder  # noqa: E402
from .translation import options  # noqa: E402
from .translation.loading import Loaded, load  # noqa: E402

logger = logging.getLogger(__name__)


def get_parser():
    """fairseq-generate's options and this tool's own."""
    parser = options.get_parser(__doc__)
    parser.usage = "%(prog)s DATA --path CHECKPOINT [options]"
    return parser


def translate_set(cfg, loaded: Loaded, stream: TextIO, engine=None) -> Tuple[dict, List[Step]]:
    """Translate ``--gen-subset``, with fairseq-generate's lines going to ``stream``.

    Args:
        engine: what generates instead of PyTorch, from ``ctranslate2_engine``.

    Returns:
        Hypotheses by sentence number, and the time of each batch.
    """
    task, models, steps = loaded.task, loaded.models, []
    generator = engine or make_generator(cfg, task, models, loaded.language_model)
    lines = OutputLines(cfg, task, generator, stream, loaded.replacements)
    batches = make_batches(cfg, task, models)
    prefix = cfg.generation.prefix_size
    for translation in translate(task, models, generator, batches, prefix, steps):
        lines.write(translation)
    seconds, tokens = sum(step.seconds for step in steps), sum(step.tokens for step in steps)
    sentences = len(lines.hypotheses)
    logger.info("NOTE: hypothesis and token scores are output in base 2")
    logger.info(
        f"Translated {sentences:,} sentences ({tokens:,} tokens) in {seconds:.1f}s "
        f"({sentences / seconds:.2f} sentences/s, {tokens / seconds:.2f} tokens/s)"
    )
    lines.finish()
    return lines.hypotheses, steps


def output_stream(cfg):
    """Context of the stream for output lines: --results-path's file or standard output."""
    folder = cfg.common_eval.results_path
    if folder is None:
        return nullcontext(sys.stdout)
    make_output_folder(folder, "--results-path")
    name = os.path.join(folder, f"generate-{cfg.dataset.gen_subset}.txt")
    return atomic_write(name, encoding="utf-8")


def run(args, cfg) -> None:
    """Check everything, translate, score and report.

    Raises:
        UserError: a mistake in an option or file, before any translation.
    """
    loaded = load(args, cfg)
    task, models, skipped = loaded.task, loaded.models, loaded.skipped
    dataset, facts = task.dataset(cfg.dataset.gen_subset), {}
    if args.report:
        evaluation.check_countable(models[0], f"--report {args.report}")
        lengths = args.flops_source_length, args.flops_target_length
        facts = evaluation.report_model(cfg, models[0], dataset, lengths, skipped)
    engine = ctranslate2_engine.prepare(args, cfg, task, models[0], skipped)
    for path, model in zip(utils.split_paths(cfg.common_eval.path), models):
        shrinking = shrinking_groups(model)
        if shrinking:  # what it translates is worth a look, no more
            logger.warning(
                f"--path {path}: a pruning stage is under way, channels of {shrinking[0]} are "
                "shrinking; what counts is the model after its end"
            )
    with output_stream(cfg) as stream:
        hypotheses, steps = translate_set(cfg, loaded, stream, engine)
        scores = bleu.score(
            [hypotheses.get(number, "") for number in range(len(dataset))],
            bleu.target_side(cfg, task),
            loaded.references,
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
            **facts,
            **evaluation.report_translation(cfg, steps, engine),
            "detok": args.detok or _usual_detok(cfg),
            "target_lang": task.cfg.target_lang,
            "reference": args.reference,
            "skipped_sentences": len(skipped),
            "num_updates": loaded.updates,
            "command": args.command,
        }
        with atomic_write(args.report, encoding="utf-8") as stream:
            json.dump(facts, stream, indent=1)
            stream.write("\n")


def _usual_detok(cfg) -> str:
    return "moses" if cfg.tokenizer is None else "none"


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    cli.set_up_logging(sys.stderr)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args = cli.parse(get_parser(), arguments)
    args.command = shlex.join(["python", sys.argv[0], *arguments])
    cfg = options.configure(args)
    cli.log_to_file(args.log_file)
    with cli.ending_quietly("nothing was reported"):
        run(args, cfg)
