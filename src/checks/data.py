"""Data that can't be used or read: refused in one line, before any work."""

import os
import re
from typing import Callable, Optional, Sequence

import numpy as np
from fairseq import utils
from fairseq.data import data_utils
from fairseq.tasks import TASK_REGISTRY

from ..errors import UserError
from ..files import UNREADABLE, reason
from ..options import SRPTranslationConfig
from .data_files import check_set

_OF_A_PAIR = re.compile(r"[^.]+\.([^.-]+-[^.-]+)\.[^.]+\.idx")


def check_data(cfg: SRPTranslationConfig) -> None:
    """Refuse a data folder without dictionaries, before any work.

    Raises:
        UserError: names the option, folder or file.
    """
    if cfg.upsample_primary < 1 and cfg.upsample_primary != -1:
        raise UserError(
            f"--upsample-primary {cfg.upsample_primary}: must be at least 1, how often an "
            "epoch has the first part of the training data"
        )
    for side in ("source", "target"):
        positions = getattr(cfg, f"max_{side}_positions")
        if positions < 1:  # --truncate-source would leave the last token out
            raise UserError(f"--max-{side}-positions {positions}: must be at least 1")
    for folder in utils.split_paths(cfg.data or ""):
        if not os.path.isdir(folder):
            raise UserError(
                f"data {folder}: no such folder; make it with fairseq-preprocess or a "
                "script scripts/*_preprocess.sh"
            )
    folder = utils.split_paths(cfg.data or "")[0]
    languages = (cfg.source_lang, cfg.target_lang)
    if None in languages:
        languages = _inferred_languages(folder, languages)
    for language in languages:
        path = os.path.join(folder, f"dict.{language}.txt")
        if not os.path.isfile(path):
            raise UserError(f"data {folder}: {os.path.basename(path)} is missing there")


def _inferred_languages(folder: str, given: Sequence[Optional[str]]) -> Sequence[str]:
    """Source and target language that fairseq takes from the names of a folder's files.

    It takes both, whatever one is given, and those of any file where there are several.

    Raises:
        UserError: there are none, several, or others than the one that is given.
    """
    languages = data_utils.infer_language_pair(folder)
    if None in languages:
        raise UserError(
            f"data {folder}: holds no binarized pair (train.SRC-TGT.SRC.idx); give "
            "--source-lang and --target-lang or the right folder"
        )
    names = map(_OF_A_PAIR.fullmatch, os.listdir(folder))
    pairs = sorted({name[1] for name in names if name})
    if len(pairs) > 1:
        raise UserError(
            f"data {folder}: holds several pairs of languages, {', '.join(pairs)}; give "
            "--source-lang and --target-lang"
        )
    for side, language, in_files in zip(("source", "target"), given, languages):
        if language not in (None, in_files):
            raise UserError(
                f"--{side}-lang {language}: alone it has no effect, the data's files say "
                f"{'-'.join(languages)}; give --source-lang and --target-lang"
            )
    return languages


def check_buckets(cfg: SRPTranslationConfig) -> None:
    """Refuse --num-batch-buckets where fairseq's code for it does not run.

    Raises:
        UserError: names the option and the library.
    """
    if cfg.num_batch_buckets and not hasattr(np, "compat"):
        raise UserError(
            f"--num-batch-buckets {cfg.num_batch_buckets}: fairseq's code for it calls what "
            f"numpy {np.__version__} no longer has; leave it out"
        )


def check_subsets(cfg: SRPTranslationConfig, run) -> None:
    """Refuse more validation sets in the data unless an option says what to do with them.

    fairseq refuses them too, with a traceback.

    Raises:
        UserError: names them and the options that say what to do with them.
    """
    names = ("ignore_unused_valid_subsets", "combine_valid_subsets", "disable_validation")
    if any(getattr(run, name, False) for name in names):
        return
    unused = {name.split(".")[0] for name in data_utils._find_extra_valid_paths(cfg.data)}
    if unused:  # as in fairseq, also those that --valid-subset names
        raise UserError(
            f"data {cfg.data}: has more validation sets, {', '.join(sorted(unused))}; add "
            "--combine-valid-subsets to make one of all, or --ignore-unused-valid-subsets to "
            "validate with those of --valid-subset"
        )


def set_up(make: Callable, folder: str):
    """A task from ``make``, which reads the dictionaries of a data folder.

    Raises:
        UserError: a dictionary is missing or damaged, or the languages are not known.
    """
    try:
        return make()
    except FileNotFoundError as error:
        raise UserError(f"data {folder}: {error}; run fairseq-preprocess") from None
    except Exception as error:  # fairseq raises plain Exceptions among others
        if "infer language pair" in str(error):
            raise UserError(
                f"data {folder}: its files name no languages; give --source-lang and --target-lang"
            ) from None
        if type(error) is not Exception and not isinstance(error, UNREADABLE):
            raise
        raise UserError(
            f"data {folder}: its dictionaries (dict.*.txt) can't be read "
            f"({reason(error)}); run fairseq-preprocess anew"
        ) from None


def task_of(folder: str, source_lang: Optional[str] = None, target_lang: Optional[str] = None):
    """The task with a folder's dictionaries, for tools without fairseq's options.

    Raises:
        UserError: a dictionary is missing or damaged, or the languages are not known.
    """
    config = SRPTranslationConfig(
        data=folder,
        source_lang=source_lang,
        target_lang=target_lang,
        # fairseq fills these in from its other options
        train_subset="train",
        dataset_impl=None,
        required_seq_len_multiple=1,
    )
    return set_up(lambda: TASK_REGISTRY["SRPtranslation"].setup_task(config), folder)


def load_set(task, subset: str, option: str):
    """A data set of a task, its files checked first.

    fairseq finds a damaged index only while it reads it, which leaves errors of its
    destructors on standard error, and a short data file only in the middle of the work.

    Args:
        option: what named the set, for messages.

    Raises:
        FileNotFoundError: there is no such set.
        UserError: it has no sentences, is damaged, or its sides differ in length.
    """
    folder = utils.split_paths(task.cfg.data)[0]
    check_set(task, folder, subset, option)
    try:
        task.load_dataset(subset)
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"{option} {subset}: its data in {folder} can't be read ({reason(error)}); run "
            "fairseq-preprocess anew"
        ) from None
    dataset = task.dataset(subset)
    if not len(dataset):
        raise UserError(f"{option} {subset}: has no sentences")
    return dataset
