"""The new data folder and checkpoint, which appear when both are complete, and the report."""

import os
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from fairseq.data import Dictionary

from ..checkpoints import dictionary_record
from ..checkpoints.vocabulary_record import record
from ..checks import checksums
from ..errors import UserError
from ..files import atomic_write, new_folder, refusing_failed_writes
from .binarized import DataFolder, Lengths, Rewriter, write_parts
from .segmentation import Splitter
from .selection import save_dictionary
from .tables import State, count_parameters

Dictionaries = Tuple[Dictionary, Dictionary]


class Written(NamedTuple):
    """What was written.

    Attributes:
        lengths: of every part of the data, by its name.
        encoder_files: names in the folder of what an encoder needs.
        left_out: names in the old folder of what is not in the new one.
    """

    lengths: Dict[str, Lengths]
    encoder_files: List[str]
    left_out: List[str]


def check_outputs(folder: str, checkpoint: str) -> None:
    """Refuse outputs that exist or can't be made, before any work.

    Raises:
        UserError: names the option, the path and what to do.
    """
    for option, path in (("--output", folder), ("--output-checkpoint", checkpoint)):
        path = path.rstrip("/")
        parent = os.path.dirname(os.path.abspath(path))
        if os.path.lexists(path):
            raise UserError(f"{option} {path}: exists; give another name or remove it")
        if not os.path.isdir(parent):
            raise UserError(f"{option} {path}: there is no folder {parent}")
        if not os.access(parent, os.W_OK):
            raise UserError(f"{option} {path}: the folder {parent} can't be written to")


def write(
    data: DataFolder,
    state: State,
    dictionaries: Dictionaries,
    rewriters: Tuple[Rewriter, Rewriter],
    splitters: Tuple[Optional[Splitter], Optional[Splitter]],
    folder: str,
    checkpoint: str,
) -> Written:
    """Write the data and the checkpoint in the new dictionaries.

    Args:
        state: the checkpoint with its new rows.
        dictionaries: get the counts of the training data that are written.
        splitters: over the new dictionaries.

    Raises:
        UserError: a file can't be written; nothing is left.
    """
    with new_folder(folder.rstrip("/")) as part:
        with refusing_failed_writes(f"--output {folder}"):
            left_out = data.copy_others(part)
            lengths = write_parts(data, rewriters, part)
            _recount(data, dictionaries, part)
            encoder_files = []
            for side, language in enumerate(data.languages):
                save_dictionary(dictionaries[side], f"{part}/dict.{language}.txt")
                splitter, dictionary = splitters[side], dictionaries[side]
                if splitter is not None:
                    words = zip(dictionary.symbols, dictionary.count)
                    counted = list(words)[dictionary.nspecial :]
                    encoder_files += splitter.save(part, language, counted)
            checksums.write(part)
        with atomic_write(checkpoint, "wb") as stream:
            torch.save(state, stream)
    return Written(lengths, encoder_files, left_out)


def _recount(data: DataFolder, dictionaries: Dictionaries, folder: str) -> None:
    new = DataFolder(folder, data.languages, dictionaries).counts()
    if dictionaries[0] is dictionaries[1]:
        new = new.joined()
    for dictionary, found in zip(dictionaries, new.training):
        dictionary.count[dictionary.nspecial :] = found[dictionary.nspecial :].tolist()


def note(state: State, new: State, data: DataFolder, after: Dictionaries, how: str) -> None:
    """Note in the new checkpoint what was done, for those who count from it later.

    Args:
        data: in the old dictionaries.
        after: the new ones.
        how: the command and its limits.
    """
    new["extra_state"].update(dictionary_record.describe(after, data.languages))
    record(
        new,
        how=how,
        types_before=[len(d) for d in data.dictionaries],
        types_after=[len(d) for d in after],
        parameters_before=count_parameters(state),
        parameters_after=count_parameters(new),
    )


def report(
    data: DataFolder,
    before: Dictionaries,
    after: Dictionaries,
    facts: Dict[str, int],
    written: Written,
    sizes: Tuple[int, int],
) -> str:
    """What was done, in lines.

    Args:
        facts: the checkpoint's note, see :func:`note`.
        sizes: bytes of the checkpoint before and after.
    """
    lines = []
    for side, name in enumerate(("source", "target")):
        lines.append(f"{name} types: {len(before[side]):,} -> {len(after[side]):,}")
    old, new = facts["parameters_before"], facts["parameters_after"]
    lines.append(f"parameters: {old:,} -> {new:,} ({new / old:.1%})")
    lines.append(f"bytes of the checkpoint: {sizes[0]:,} -> {sizes[1]:,} (no optimizer's state)")
    for name, some in written.lengths.items():
        mean = some.before / max(1, some.sentences), some.after / max(1, some.sentences)
        lines.append(
            f"{name}: {some.sentences:,} sentences, {some.changed:,} of other length; "
            f"{mean[0]:.2f} -> {mean[1]:.2f} tokens a sentence ({some.growth:+.1%}), unknown "
            f"{some.unknown:,} -> {some.still_unknown:,}, longest {some.longest}"
        )
    parts = [part for part in data.parts if part.training and part.side == 1]
    targets = [written.lengths[part.name] for part in parts]
    growth = np.sum([t.after for t in targets]) / max(1, np.sum([t.before for t in targets])) - 1
    lines.append(f"time: {growth:+.1%} decoding steps a training sentence, each of them cheaper")
    if written.encoder_files:
        lines.append(f"for encoding text: {', '.join(dict.fromkeys(written.encoder_files))}")
    if written.left_out:
        lines.append(f"left out: {', '.join(written.left_out)}")
    return "\n".join(lines)
