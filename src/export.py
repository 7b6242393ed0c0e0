"""Export a trained model, cut or not, to CTranslate2.

    python src/export.py data-bin/multi30k.de-en \\
        --path checkpoints/multi30k/finetuned/checkpoint_best.pt \\
        --output checkpoints/multi30k/finetuned/ctranslate2 --quantization int8

The folder holds the model (model.bin, config.json) and its vocabularies. The model is
built from the weights, cut to whatever widths, and compared with PyTorch before it is
kept: the log-probabilities of random sentences, and of a set of DATA, must be the
same to 1e-4 in float32. For a quantized model the difference is reported.

With --vocabulary-map the folder also says which target tokens can translate a source
token (vmap.txt), learnt from the training set of DATA. Only they are scored then, which
is faster where the output layer costs much.

To translate a test set with it: generate.py --engine ctranslate2. To use it, the folder has
translator.py, which needs CTranslate2 and no PyTorch, and with --tokenizer, --bpe-codes or
--sentencepiece-model translates raw text:

    python checkpoints/multi30k/finetuned/ctranslate2/translator.py < source.txt

Or with CTranslate2 itself:

    translator = ctranslate2.Translator("checkpoints/multi30k/finetuned/ctranslate2")
    translator.translate_batch(
        [tokens], beam_size=5, return_end_token=True, suppress_sequences=[["<pad>"]]
    )

where tokens are those of the training data (tokenized, BPE) without end of sentence.
return_end_token makes scores count the end of sentence in the length, as fairseq does;
use_vmap=True is needed for the vocabulary map.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.export").main())

import os  # noqa: E402
from typing import Dict, List, Optional, Sequence  # noqa: E402

from fairseq import checkpoint_utils  # noqa: E402

from .checkpoint_utils import load_checkpoint  # noqa: E402
from .checkpoints.pretrained import check_dictionaries, check_finite  # noqa: E402
from .checks.ctranslate2_package import MODEL, require_ctranslate2  # noqa: E402
from .checks.data import load_set, task_of  # noqa: E402
from .commandline.parsing import ArgumentParser, add_trust, run_writer  # noqa: E402
from .deployment import text, vocabulary_map  # noqa: E402
from .deployment.comparison import Pair, subset_pairs  # noqa: E402
from .deployment.export import export  # noqa: E402
from .deployment.folder import check_output  # noqa: E402
from .deployment.model import (  # noqa: E402
    QUANTIZATIONS,
    check_exportable,
    plain,
)
from .deployment.vocabulary_map import VocabularyMap  # noqa: E402
from .errors import UserError  # noqa: E402
from .files import new_folder, refusing_failed_writes  # noqa: E402

ENGINE_LENGTHS = (1024, 256)  # CTranslate2's default lengths of a source and of a translation


def get_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("data", metavar="DATA", help="folder of binarized data")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="the model to export")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder that will hold the model"
    )
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="float32",
        help="how weights are stored (default: float32); int8 is a quarter of the size "
        "and computes in 8-bit integers, int16, bfloat16 and float16 are half of the size; "
        "int8_float32, int8_float16 and int8_bfloat16 say what is computed beside; where the "
        "processor lacks a type (CPUs float16) CTranslate2 computes in another",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="longest source and target in tokens, with end of sentence (default: the "
        "model's, often 1024); the table of positions is stored in float32, so this "
        "can be a large part of a small model's file; with less than CTranslate2's default "
        "lengths give translate_batch max_input_length and max_decoding_length, which "
        "config.json holds as max_source_positions and max_target_positions",
    )
    parser.add_argument(
        "--vocabulary-map",
        type=int,
        nargs="?",
        const=vocabulary_map.CANDIDATES,
        metavar="K",
        help="add a vocabulary map: for each source token the K target tokens (default: "
        f"{vocabulary_map.CANDIDATES}) that most probably translate it, by IBM model 1 "
        "on the training set of DATA, and for all sentences the "
        f"{vocabulary_map.FREQUENT} times K most frequent ones; only these are scored, so "
        "probabilities are among them",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing model")
    parser.add_argument(
        "--check-subset",
        metavar="SUBSET",
        help="set of DATA whose first 200 pairs are compared with PyTorch, beside "
        "random sentences (default: valid if there is one)",
    )
    for side in ("source", "target"):
        parser.add_argument(
            f"-{side[0]}", f"--{side}-lang", help=f"{side} language (default: as in DATA)"
        )
    text.add_options(parser.add_argument_group("raw text, for the folder's translator.py"))
    add_trust(parser, "--path")
    return parser


def _pairs(task, subset: Optional[str], limits) -> Dict[str, List[Pair]]:
    """The pairs of ``--check-subset``, by name; by default none if there is no set."""
    try:
        dataset = load_set(task, subset or "valid", "--check-subset")
    except FileNotFoundError:
        if subset is None:
            return {}
        raise UserError(f"--check-subset {subset}: DATA has no such set") from None
    pairs = subset_pairs(dataset, limits) if dataset.tgt is not None else []
    if not pairs:
        if subset is None:
            return {}
        raise UserError(f"--check-subset {subset}: has no pairs that can be scored")
    return {f"set {subset or 'valid'}": pairs}


def run(args) -> None:
    """Check everything, export, report."""
    require_ctranslate2("export")
    text.check(args)
    check_output(args.output, args.force)
    if args.max_length is not None and args.max_length < 2:
        raise UserError(f"--max-length {args.max_length}: must be at least 2")
    if args.vocabulary_map is not None and args.vocabulary_map < 1:
        raise UserError(f"--vocabulary-map {args.vocabulary_map}: must be at least 1")
    origin = f"--path {args.path}"
    state = load_checkpoint(args.path, "--path", args.trust_checkpoint)
    task = task_of(args.data, args.source_lang, args.target_lang)
    dictionaries = task.source_dictionary, task.target_dictionary
    languages = task.cfg.source_lang, task.cfg.target_lang
    check_dictionaries(state, task, origin)
    check_finite(state["model"].items(), origin)
    (model,), _ = checkpoint_utils.load_model_ensemble([args.path], task=task, state=state)
    model = plain(model.eval())
    check_exportable(model, origin)
    limits = [side.max_positions() for side in (model.encoder, model.decoder)]
    if args.max_length is not None:
        if args.max_length > max(limits):
            raise UserError(f"--max-length {args.max_length}: the model's limit is {max(limits)}")
        limits = [min(limit, args.max_length) for limit in limits]
    pairs = _pairs(task, args.check_subset, limits)
    found = None
    if args.vocabulary_map is not None:
        found = vocabulary_map.learn(task, args.vocabulary_map)
    with (
        refusing_failed_writes(f"--output {args.output}"),
        new_folder(args.output, replace=True) as folder,
    ):
        computed = export(
            model,
            dictionaries,
            folder,
            args.quantization,
            origin,
            pairs,
            args.max_length,
            found,
            lambda folder: text.write(folder, args, args.data, languages),
        )
    _recommend_lengths(limits)
    size = os.path.getsize(os.path.join(args.output, MODEL))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"wrote {args.output}: {parameters:,} parameters in {size:,} bytes ({args.quantization})")
    if computed not in (args.quantization, f"{args.quantization}_float32"):
        print(f"stored in {args.quantization}: on this CPU CTranslate2 computes in {computed}")
    if found is not None:
        print(_describe(found, task, pairs))


def _recommend_lengths(limits: Sequence[int]) -> None:
    """Say what to give CTranslate2 where its default lengths are longer than the model's."""
    options = ("max_input_length", "max_decoding_length")
    short = [
        f"{option}={limit} (its default is {default})"
        for option, limit, default in zip(options, limits, ENGINE_LENGTHS)
        if limit < default
    ]
    if short:
        print(
            f"CTranslate2 fails for a whole batch in which one sentence is longer than the model's "
            f"table of positions: give translate_batch {' and '.join(short)}"
        )


def _describe(found: VocabularyMap, task, pairs: Dict[str, Sequence[Pair]]) -> str:
    """How many candidates a sentence has, of the checked set or of training."""
    dataset = task.dataset("train")
    sentences = {"set train": [dataset.src[i].tolist() for i in range(min(200, len(dataset)))]}
    sentences.update({name: [x for x, _ in some] for name, some in pairs.items()})
    name, sources = list(sentences.items())[-1]
    return (
        f"vocabulary map: a sentence has {found.mean_size(sources):.0f} candidates on "
        f"average, of {len(task.target_dictionary):,} target types "
        f"({len(sources)} sentences of {name})"
    )


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    run_writer(get_parser(), run, arguments)
