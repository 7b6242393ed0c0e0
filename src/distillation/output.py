"""The folder of data that distillation makes."""

import os
import shutil
from typing import Dict, List, Optional, Sequence

import torch
from fairseq.data.indexed_dataset import make_builder
from torch import Tensor

_NOT_COPIED = (".part", ".log")


def write_data(
    args,
    cfg,
    loaded,
    found: Dict[int, List[int]],
    part: str,
    added: Sequence[Sequence[Tensor]] = (),
) -> int:
    """Fill the new folder of data.

    Args:
        found: translations of the training data, by sentence.
        part: the folder, which gets its name when it is complete.
        added: sources and targets of further pairs.

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
        for pair in added:
            builder.add_item(pair[side])
        builder.finalize(f"{path}.idx")
    return len(own) + len(distilled) + len(added)
