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
import hashlib  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import time  # noqa: E402
from typing import Dict, List, Optional  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fairseq import utils  # noqa: E402
from fairseq.data import Dictionary  # noqa: E402
from fairseq.data.indexed_dataset import make_builder  # noqa: E402
from torch import Tensor  # noqa: E402

from .checkpoints.adapters import adapter_files  # noqa: E402
from .checkpoints.pretrained import check_not_shrinking  # noqa: E402
from .checks import checksums  # noqa: E402
from .checks.values import model_overrides  # noqa: E402
from .commandline import parsing as cli  # noqa: E402
from .decoding.translate import make_batches, make_generator, translate  # noqa: E402
from .deployment import engine as ctranslate2_engine  # noqa: E402
from .deployment.export import FILES  # noqa: E402
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

TRANSLATIONS, SETTINGS = "translations.txt", "settings"
_NOT_COPIED = (".part", ".log")
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
        ("--tokenizer", cfg.tokenizer and cfg.tokenizer._name),
        ("--bpe", cfg.bpe and cfg.bpe._name),
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
    for path in files:
        with open(path, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    engine = [args.engine, args.quantization, args.ctranslate2_model]
    engine += [args.ctranslate2_vocabulary_map, cfg.common.fp16]
    engine += [cfg.dataset.skip_invalid_size_inputs_valid_test]
    if weighted and weighted != [(adapters, 1.0)]:
        engine += [weight for _, weight in weighted]
    task = {name: getattr(cfg.task, name, None) for name in _DECIDING}
    digest.update(str([dict(cfg.generation), engine, task]).encode())
    return digest.hexdigest()


def read_translations(path: str, dataset, dictionary: Dictionary) -> Dict[int, List[int]]:
    """Translations of an interrupted run, by sentence; a last line cut short is left out.

    Args:
        dataset: the sentences that it was to translate.
        dictionary: of the translations.

    Raises:
        UserError: names the line that this tool has not written.
    """
    found: Dict[int, List[int]] = {}
    if not os.path.isfile(path):
        return found
    with open(path, "rb") as stream:
        lines = stream.read().split(b"\n")[:-1]
    for place, line in enumerate(lines, 1):
        number, *tokens = (int(x) if x.isdigit() else -1 for x in line.split(b" "))
        if (
            not 0 <= number < len(dataset)
            or number in found
            or tokens[-1:] != [dictionary.eos()]
            or not all(0 <= token < len(dictionary) for token in tokens)
        ):
            raise UserError(
                f"{path}: line {place} ({line[:30].decode('ascii', 'backslashreplace')}) is no "
                "translation that this tool has written; remove the file to translate anew"
            )
        found[number] = tokens
    return found


def empty_lines(dataset) -> List[int]:
    """Numbers of the sentences whose source has no word."""
    return np.flatnonzero(np.asarray(dataset.src_sizes) <= 1).tolist()


def translate_set(args, cfg, loaded, path: str) -> Dict[int, List[int]]:
    """Translate what ``path`` doesn't hold yet, adding to it batch by batch.

    Returns:
        Token numbers of the best translation of each sentence, with the end.
    """
    task, models = loaded.task, loaded.models
    dataset = task.dataset(cfg.dataset.gen_subset)
    found = read_translations(path, dataset, task.target_dictionary)
    if found:
        logger.info(f"{len(found):,} sentences were translated before, in {path}")
    engine = ctranslate2_engine.prepare(args, cfg, task, models[0], loaded.skipped)
    generator = engine or make_generator(cfg, task, models)
    # whatever a model makes of an empty line is an invention
    left_out = {*found, *loaded.skipped, *empty_lines(dataset)}
    # what fairseq-generate prints lacks them as well
    no_words = task.target_dictionary.bos(), task.target_dictionary.pad()
    mode = "r+b" if os.path.isfile(path) else "wb"
    with refusing_failed_writes(path), open(path, mode) as stream:
        content = stream.read() if found else b""
        stream.truncate(content.rfind(b"\n") + 1)  # a line that a kill has cut short
        stream.seek(0, os.SEEK_END)
        batches = make_batches(cfg, task, models, left_out)
        for number, _, _, hypotheses in translate(task, models, generator, batches):
            tokens = hypotheses[0]["tokens"].tolist()
            found[number] = [token for token in tokens if token not in no_words]
            line = " ".join(map(str, [number, *found[number]]))
            stream.write(f"{line}\n".encode("ascii"))
            stream.flush()
    return found


def write_data(args, cfg, loaded, found: Dict[int, List[int]], part: str) -> int:
    """Fill the new folder of data.

    Args:
        part: the folder, which gets its name when it is complete.

    Returns:
        Number of training pairs.
    """
    task, source = loaded.task, cfg.task.data
    dataset = task.dataset(cfg.dataset.gen_subset)
    for entry in os.scandir(source):
        skipped = entry.name.startswith("train.") or entry.name.endswith(_NOT_COPIED)
        if entry.is_file() and not skipped:
            shutil.copyfile(entry.path, os.path.join(part, entry.name))
    languages = cfg.task.source_lang or task.cfg.source_lang, task.cfg.target_lang
    prefix = f"train.{'-'.join(languages)}"
    if not os.path.isfile(os.path.join(source, f"{prefix}.{languages[0]}.idx")):
        prefix = f"train.{'-'.join(languages[::-1])}"
    dictionaries = task.source_dictionary, task.target_dictionary
    # an empty translation teaches nothing
    distilled = [i for i in range(len(dataset)) if len(found.get(i, ())) > 1]
    own = [] if args.without_original else range(len(dataset))
    for side, (language, dictionary) in enumerate(zip(languages, dictionaries)):
        path = os.path.join(part, f"{prefix}.{language}")
        builder = make_builder(f"{path}.bin", "mmap", vocab_size=len(dictionary))
        texts: Optional[List[Tensor]] = (dataset.src, dataset.tgt)[side]  # None: no target
        for number in own:
            builder.add_item(texts[number])
        for number in distilled:
            builder.add_item(torch.tensor(found[number]) if side else texts[number])
        builder.finalize(f"{path}.idx")
    return len(own) + len(distilled)


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
    with atomic_write(mark) as stream:
        stream.write(key)
    begin = time.perf_counter()
    found = translate_set(args, cfg, loaded, path)
    seconds = time.perf_counter() - begin
    output = args.output.rstrip("/")
    with refusing_failed_writes(output), new_folder(output) as part:
        pairs = write_data(args, cfg, loaded, found, part)
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
        f"{compared}; {args.output} has {pairs:,} training pairs"
    )


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
