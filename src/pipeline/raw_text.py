"""Raw parallel text as the data of a pipeline: the step that makes binarized data of it."""

import os
from argparse import Namespace
from typing import Tuple

from ..checkpoint_utils import load_checkpoint
from ..checkpoints import dictionary_record
from ..errors import UserError
from .options import RAW
from .steps import Step, relative_command

STEP, DATA, TEXT = "0-data", "data", "text"  # the step, and what its folder has
_SCRIPT = os.path.join("scripts", "preprocess.py")
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _script() -> str:
    """preprocess.py: in the package, or beside the sources in a clone."""
    inside = os.path.join(_HERE, _SCRIPT)
    return inside if os.path.isfile(inside) else os.path.join(os.path.dirname(_HERE), _SCRIPT)


def languages_of(args: Namespace) -> Tuple[str, str]:
    """Source and target language: as given, or as the checkpoint says.

    Raises:
        UserError: neither says them.
    """
    noted = dictionary_record.languages_of(
        load_checkpoint(args.path, "--path", args.trust_checkpoint, mmap=True)
    )
    found = args.source_lang or noted[0], args.target_lang or noted[1]
    if not all(found):
        raise UserError(
            f"--path {args.path}: says no languages; add --source-lang and --target-lang"
        )
    return found


def data_step(args: Namespace) -> Step:
    """Raw text to binarized data of the model's dictionaries.

    Args:
        args: compress.py's options, with raw text.

    Raises:
        UserError: a file is missing, or the languages can't be found out.
    """
    languages = languages_of(args)
    dictionaries = [os.path.join(args.data, f"dict.{language}.txt") for language in languages]
    for path in dictionaries:
        if not os.path.isfile(path):
            raise UserError(f"data {args.data}: has no {os.path.basename(path)} of the model")
    texts = []
    for split in RAW:
        prefix = getattr(args, split)
        for language in languages:
            path = f"{prefix}.{language}"
            there = [name for name in (path, f"{path}.gz") if os.path.isfile(name)]
            if not there:
                raise UserError(f"--{split} {prefix}: there is no {path} (or {path}.gz)")
            texts.append(there[0])
    here = os.path.join(args.output, STEP)
    split_by = args.bpe_codes or args.sentencepiece_model
    arguments = ["--source-lang", languages[0], "--target-lang", languages[1]]
    arguments += [word for split in RAW for word in (f"--{split}", getattr(args, split))]
    arguments += ["--bpe-codes" if args.bpe_codes else "--sentencepiece-model", split_by]
    if args.bpe_codes and not args.tokenizer:
        arguments.append("--tokenized")
    if args.tokenizer and not args.moses_no_dash_splits:
        arguments.append("--dash-splits")
    if not args.lowercase:
        arguments.append("--cased")
    arguments += ["--out", os.path.join(here, TEXT), "--data-bin", os.path.join(here, DATA)]
    arguments += ["--", "--srcdict", dictionaries[0], "--tgtdict", dictionaries[1]]
    files = (*texts, split_by, *dictionaries)
    command = relative_command(_script(), arguments)
    return Step(STEP, command, tuple(dict.fromkeys(files)), results=(DATA,), whole=True)
