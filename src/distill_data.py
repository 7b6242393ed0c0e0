"""Training data whose target side a model has translated: sequence-level distillation.

    python src/distill_data.py data-bin/multi30k.de-en \\
        --path checkpoints/multi30k/base/checkpoint_best.pt \\
        --output data-bin/multi30k.de-en.distilled
    python src/finetuning.py data-bin/multi30k.de-en.distilled ...

A small model learns the translations of a larger one more easily than people's (Kim and
Rush, 2016, Sequence-Level Knowledge Distillation), and unlike --prob-kd it needs no
teacher while it trains. The output is a folder of binarized data like the given one, with
the same dictionaries, validation and test data. Its training part holds every sentence
twice: with its own translation, and with the model's best one. So an epoch is twice as
long: halve the epochs. --without-original leaves people's translations out.

--source-text FILE ... adds further sentences that only the model translates: the more, the
closer a small model comes to a large one. Lines are as the data's tokens, or raw with
fairseq's --tokenizer and --bpe (and --lowercase); what the data holds already, validation and
test sets among it, is left out, and so are repetitions.

Options of the search are generate.py's (--beam 5 is the default here), and so is
--engine ctranslate2 --quantization int8, which is the fastest on a CPU. What was
translated is kept in OUTPUT.part: an interrupted run goes on.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.distill_data").main())

import argparse  # noqa: E402
import copy  # noqa: E402
import hashlib  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import time  # noqa: E402
from contextlib import suppress  # noqa: E402
from typing import List, Optional, Sequence  # noqa: E402

from fairseq import utils  # noqa: E402
from torch import Tensor  # noqa: E402

from .checkpoints.adapters import adapter_files  # noqa: E402
from .checkpoints.pretrained import check_not_shrinking  # noqa: E402
from .checks import checksums  # noqa: E402
from .checks.values import model_overrides  # noqa: E402
from .commandline import parsing as cli  # noqa: E402
from .decoding.translate import make_generator  # noqa: E402
from .deployment import engine as ctranslate2_engine  # noqa: E402
from .deployment.folder import FILES  # noqa: E402
from .distillation import source_text  # noqa: E402
from .distillation.output import write_data  # noqa: E402
from .distillation.translations import (  # noqa: E402
    above,
    best_bleu,
    best_score,
    empty_lines,
    translate_set,
)
from .errors import UserError  # noqa: E402
from .files import (  # noqa: E402
    atomic_write,
    check_output_folder,
    new_folder,
    refusing_failed_writes,
    sole_process,
)
from .translation import options  # noqa: E402
from .translation.loading import load  # noqa: E402

logger = logging.getLogger(__name__)

TRANSLATIONS, ADDED, SETTINGS = "translations.txt", "source_text.txt", "settings"
# Options of the task that decide what is translated, and how.
_DECIDING = (
    *("source_lang", "target_lang", "max_source_positions", "max_target_positions"),
    *("left_pad_source", "dataset_impl", "cpu_bf16", "fairseq_search", "sparse_inference"),
)


def get_parser() -> argparse.ArgumentParser:
    """generate.py's options and this tool's own."""
    parser = options.get_parser(__doc__)
    parser.set_defaults(gen_subset="train", beam=5)
    parser.usage = "%(prog)s DATA --path CHECKPOINT --output DIR [options]"
    group = parser.add_argument_group("distilled data")
    group.add_argument(
        "--output", required=True, metavar="DIR", help="folder to make, with the new data"
    )
    group.add_argument(
        "--without-original",
        action="store_true",
        help="leave the data's own translations out of the training part",
    )
    group.add_argument(
        "--choose",
        choices=("score", "bleu"),
        default="score",
        help="which of the --beam hypotheses of a training sentence is taken: the model's best "
        "one, or the one with the highest sentence BLEU against the data's own translation "
        "(default: score)",
    )
    group.add_argument(
        "--source-text",
        nargs="+",
        default=[],
        metavar="FILE",
        help="further source sentences to translate, one a line, plain or gzipped (.gz)",
    )
    group.add_argument(
        "--lowercase", action="store_true", help="make --source-text lower case first"
    )
    group.add_argument(
        "--least-score",
        type=float,
        metavar="S",
        help="leave out translations of --source-text whose mean log-probability of a token, "
        "as on H- lines of generate.py, is lower (default: keep all)",
    )
    return parser


def check(args, cfg) -> None:
    """Refuse what this tool can't do.

    Raises:
        UserError: names the option, its value and what to do.
    """
    output = args.output.rstrip("/")
    parent = os.path.dirname(output) or "."
    if not os.path.isdir(parent):
        raise UserError(f"--output {args.output}: there is no folder {parent}")
    if os.path.lexists(output):
        raise UserError(f"--output {args.output}: exists; give another name or remove it")
    check_output_folder(f"{output}.part", "--output")
    if cfg.dataset.gen_subset != "train":
        raise UserError(
            f"--gen-subset {cfg.dataset.gen_subset}: the training data, train, is what is "
            "distilled; leave the option out"
        )
    for option, given in (
        ("--reference", args.reference),
        ("--report", args.report),
        ("--results-path", cfg.common_eval.results_path),
        ("--prefix-size", cfg.generation.prefix_size),
        ("--sampling", cfg.generation.sampling),
        ("--score-reference", cfg.generation.score_reference),
        ("--lm-path", cfg.generation.lm_path),
        ("--replace-unk", cfg.generation.replace_unk),
        ("--print-alignment", cfg.generation.print_alignment),
        ("--model-overrides", model_overrides(cfg.common_eval.model_overrides)),
        ("--tokenizer", not args.source_text and cfg.tokenizer and cfg.tokenizer._name),
        ("--bpe", not args.source_text and cfg.bpe and cfg.bpe._name),
        ("--remove-bpe/--post-process", cfg.common_eval.post_process),
        ("--detok", args.detok),
        ("--sacrebleu-lowercase", args.sacrebleu_lowercase),
        ("--tokenized-bleu", args.tokenized_bleu),
        ("--flops-source-length", args.flops_source_length),
        ("--flops-target-length", args.flops_target_length),
    ):
        if given:
            raise UserError(f"{option} {given}: has no part in distilling; leave it out")
    for option, given in (
        ("--truncate-source", cfg.task.truncate_source),
        ("--num-batch-buckets", cfg.task.num_batch_buckets),
    ):
        if given:
            raise UserError(
                f"{option}: would change the sentences that are written, people's "
                "translations too; leave it out"
            )
    for option, given in (
        ("--lowercase", args.lowercase),
        (f"--least-score {args.least_score}", args.least_score is not None),
    ):
        if given and not args.source_text:
            raise UserError(f"{option}: is of --source-text; give files, or leave it out")
    for path in args.source_text:
        if not os.path.isfile(path):
            raise UserError(f"--source-text {path}: no such file")
    multiple = cfg.dataset.required_batch_size_multiple
    if multiple != 1:
        raise UserError(
            f"--required-batch-size-multiple {multiple}: leaves sentences out; leave it out"
        )
    if cfg.generation.nbest != 1:
        raise UserError(
            f"--nbest {cfg.generation.nbest}: the best translation is taken; leave it out"
        )
    folders = utils.split_paths(cfg.task.data or "")
    if len(folders) != 1:
        raise UserError(f"data {cfg.task.data}: give one folder")
    if os.path.isdir(folders[0]) and any(
        name.startswith("train1.") for name in os.listdir(folders[0])
    ):
        raise UserError(
            f"data {folders[0]}: its training data is in several parts (train1); give a "
            "folder with one"
        )


def settings(args, cfg) -> str:
    """Digest of what decides the translations: data, models, options of the search.

    Args:
        cfg: its languages are known, from the data if they were not given.
    """
    digest = hashlib.sha256()
    folder = cfg.task.data
    names = (n for n in os.listdir(folder) if n.startswith(("train.", "dict.")))
    files = [os.path.join(folder, name) for name in sorted(names)]
    adapters = getattr(cfg.task, "adapter_path", None)
    weighted = adapter_files(adapters) if adapters else []
    files += [*utils.split_paths(cfg.common_eval.path), *(file for file, _ in weighted)]
    if args.ctranslate2_model:  # may have been exported anew under the same name
        names = sorted(FILES & set(os.listdir(args.ctranslate2_model)))
        files += [os.path.join(args.ctranslate2_model, name) for name in names]
    for path in [*files, *args.source_text]:
        with open(path, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    engine = [args.engine, args.quantization, args.ctranslate2_model]
    engine += [args.ctranslate2_vocabulary_map, cfg.common.fp16]
    engine += [cfg.dataset.skip_invalid_size_inputs_valid_test]
    if weighted and weighted != [(adapters, 1.0)]:
        engine += [weight for _, weight in weighted]
    if args.choose != "score":
        engine += [args.choose]
    if args.source_text:
        engine += [args.lowercase, args.least_score, str(cfg.tokenizer), str(cfg.bpe)]
    task = {name: getattr(cfg.task, name, None) for name in _DECIDING}
    digest.update(str([dict(cfg.generation), engine, task]).encode())
    return digest.hexdigest()


def run(args, cfg) -> None:
    """Check, translate, write.

    Raises:
        UserError: a mistake in an option or file, before any translation.
    """
    check(args, cfg)
    loaded = load(args, cfg)
    for path, model in zip(utils.split_paths(cfg.common_eval.path), loaded.models):
        check_not_shrinking(model, f"--path {path}")
    dataset = loaded.task.dataset(cfg.dataset.gen_subset)
    if dataset.tgt is None and not args.without_original:
        raise UserError(
            f"data {cfg.task.data}: its training part has no target side; add "
            "--without-original to write the model's translations alone"
        )
    folder = args.output.rstrip("/") + ".part"
    with refusing_failed_writes(folder):
        os.makedirs(folder, exist_ok=True)

    def occupied() -> UserError:
        return UserError(
            f"--output {args.output}: another process is making it; wait for it, or give "
            "another name"
        )

    with sole_process(folder, occupied):
        make(args, cfg, loaded, folder)


def make(args, cfg, loaded, folder: str) -> None:
    """Translate and write, in a folder that holds what is made until it is complete."""
    path, key = os.path.join(folder, TRANSLATIONS), settings(args, cfg)
    mark = os.path.join(folder, SETTINGS)
    before = Path(mark).read_bytes() if os.path.isfile(mark) else None
    if os.path.isfile(path) and before != key.encode():
        logger.warning(f"{folder}: is of other data, models or options; starting over")
        os.remove(path)
        with suppress(FileNotFoundError):
            os.remove(os.path.join(folder, ADDED))
    with atomic_write(mark) as stream:
        stream.write(key)
    begin = time.perf_counter()
    choose = best_score
    if args.choose == "bleu":
        choose = best_bleu(loaded.task.target_dictionary)
        cfg.generation.nbest = cfg.generation.beam  # what an engine gives back
    engine = ctranslate2_engine.prepare(args, cfg, loaded.task, loaded.models[0], loaded.skipped)
    generator = engine or make_generator(cfg, loaded.task, loaded.models)
    found = translate_set(cfg, loaded, generator, path, choose)
    added, of_text = [], ""
    if args.source_text:
        limit = min(model.max_positions()[0] for model in loaded.models)
        text = source_text.add_set(loaded.task, cfg, args.source_text, args.lowercase, limit)
        added = translate_text(args, cfg, loaded, generator, os.path.join(folder, ADDED), text)
        of_text = f", {len(added):,} of them of {len(text.sentences):,} sentences of --source-text"
    seconds = time.perf_counter() - begin
    output = args.output.rstrip("/")
    with refusing_failed_writes(output), new_folder(output) as part:
        pairs = write_data(args, cfg, loaded, found, part, added)
        checksums.write(part)
    shutil.rmtree(folder)
    dataset, compared = loaded.task.dataset(cfg.dataset.gen_subset), ""
    if dataset.tgt is not None:
        same = sum(found[i] == dataset.tgt[i].tolist() for i in found)
        compared = f", {same / max(1, len(found)):.1%} as in the data"
    empty = len(empty_lines(dataset))
    left_out = f", {empty:,} empty lines left out" if empty else ""
    print(
        f"{len(found):,} of {len(dataset):,} sentences translated in {seconds:.0f} s{left_out}"
        f"{compared}; {args.output} has {pairs:,} training pairs{of_text}"
    )


def translate_text(args, cfg, loaded, generator, path: str, text) -> List[Sequence[Tensor]]:
    """Pairs of the sentences of ``--source-text`` and their translations."""
    of_text = copy.deepcopy(cfg)
    of_text.dataset.gen_subset = source_text.NAME
    loaded = loaded._replace(skipped=[])
    choose = best_score if args.least_score is None else above(args.least_score)
    return source_text.pairs(text, translate_set(of_text, loaded, generator, path, choose))


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    cli.set_up_logging(sys.stderr)
    args = cli.parse(get_parser(), arguments)
    cfg = options.configure(args)
    cli.log_to_file(args.log_file)
    with cli.ending_quietly("the same command goes on"):
        run(args, cfg)
