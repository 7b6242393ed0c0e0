"""What an exported model needs to translate raw text: tokenizer, codes, a translator."""

import json
import os
import shutil
from typing import Optional, Tuple

from ..errors import UserError
from . import translator
from .translator import CODES, PIECES, TEXT, VOCABULARY

TRANSLATOR = "translator.py"
FILES = {TEXT, CODES, PIECES, VOCABULARY, TRANSLATOR}


def add_options(parser) -> None:
    """How text becomes the model's tokens; names and meaning as in fairseq."""
    parser.add_argument(
        "--tokenizer", choices=("moses",), help="text is tokenized by Moses, as fairseq does it"
    )
    parser.add_argument(
        "--moses-no-dash-splits", action="store_true", help="without dash split rules"
    )
    parser.add_argument(
        "--bpe",
        choices=("subword_nmt", "sentencepiece"),
        help="what splits words (default: that of the file that is given)",
    )
    parser.add_argument("--bpe-codes", metavar="FILE", help="codes of subword-nmt")
    parser.add_argument("--sentencepiece-model", metavar="FILE", help="SentencePiece's model")
    parser.add_argument(
        "--lowercase", action="store_true", help="the data are lower-cased, so is text"
    )


def check(args) -> None:
    """Refuse options that don't go together; completes ``--bpe``.

    Raises:
        UserError: names the option and what it needs.
    """
    files = {"subword_nmt": args.bpe_codes, "sentencepiece": args.sentencepiece_model}
    options = {"subword_nmt": "--bpe-codes", "sentencepiece": "--sentencepiece-model"}
    given = [name for name, path in files.items() if path]
    if len(given) > 1:
        raise UserError(f"{' '.join(options.values())}: exclude each other; give one of them")
    if args.bpe is None and given:
        args.bpe = given[0]
    if args.bpe is not None and given != [args.bpe]:
        raise UserError(f"--bpe {args.bpe}: needs {options[args.bpe]}")
    for name in given:
        if not os.path.isfile(files[name]):
            raise UserError(f"{options[name]} {files[name]}: no such file")
    if args.moses_no_dash_splits and not args.tokenizer:
        raise UserError("--moses-no-dash-splits: needs --tokenizer moses")


def as_arguments(args) -> Tuple[str, ...]:
    """The options again, for another command."""
    found = []
    for option in ("tokenizer", "bpe", "bpe_codes", "sentencepiece_model"):
        value = getattr(args, option)
        if value:
            found += [f"--{option.replace('_', '-')}", value]
    for option in ("moses_no_dash_splits", "lowercase"):
        if getattr(args, option):
            found.append(f"--{option.replace('_', '-')}")
    return tuple(found)


def vocabulary_file(data: str, language: str) -> Optional[str]:
    """Where trim_vocabulary.py has written what codes may make of text, if it has."""
    path = os.path.join(data, f"vocabulary.{language}")
    return path if os.path.isfile(path) else None


def write(folder: str, args, data: str, languages: Tuple[str, str]) -> None:
    """Write into an exported folder its translator, and what that needs.

    Args:
        args, data, languages: as of :func:`write_splitting`.
    """
    shutil.copyfile(translator.__file__, os.path.join(folder, TRANSLATOR))
    write_splitting(folder, args, data, languages)


def write_splitting(folder: str, args, data: str, languages: Tuple[str, str]) -> None:
    """Write into a folder how text is split, for ``translator.Text``; nothing if it is not.

    Args:
        args: with the options of :func:`add_options`, checked.
        data: the data's folder.
        languages: of source and target.
    """
    if not (args.tokenizer or args.bpe or args.lowercase):
        return
    restricted = vocabulary_file(data, languages[0])
    if args.bpe == "subword_nmt":
        shutil.copyfile(args.bpe_codes, os.path.join(folder, CODES))
        if restricted:
            shutil.copyfile(restricted, os.path.join(folder, VOCABULARY))
    elif args.bpe == "sentencepiece":
        own = os.path.join(data, f"sentencepiece.{languages[0]}.model")
        model = own if os.path.isfile(own) else args.sentencepiece_model
        shutil.copyfile(model, os.path.join(folder, PIECES))
    with open(os.path.join(folder, TEXT), "w", encoding="utf-8") as stream:
        content = {
            "tokenizer": args.tokenizer,
            "moses_no_dash_splits": args.moses_no_dash_splits,
            "bpe": args.bpe,
            "lowercase": args.lowercase,
            "source_lang": languages[0],
            "target_lang": languages[1],
        }
        json.dump(content, stream, indent=1)
        stream.write("\n")
