"""What a translation starts from: data and models, read once and checked."""

from typing import Dict, List, NamedTuple, Optional

import numpy as np
from fairseq import checkpoint_utils, utils
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask

from ..checkpoint_utils import load_checkpoint
from ..checkpoints.pretrained import check_finite
from ..checks import search as search_checks
from ..checks import translation as checks
from ..checks.values import model_overrides
from ..errors import UserError
from ..evaluation import bleu
from ..files import reason


class Loaded(NamedTuple):
    """What a translation starts from.

    Attributes:
        language_model: of ``--lm-path``, or None.
        replacements: of ``--replace-unk``, by source word; None without the option.
        skipped: numbers of sentences that are too long and are left out.
        updates: of the training; None for an average of checkpoints.
        references: those of ``--reference``.
    """

    task: FairseqTask
    models: List[BaseFairseqModel]
    language_model: Optional[BaseFairseqModel]
    replacements: Optional[Dict[str, str]]
    skipped: List[int]
    updates: Optional[int]
    references: Optional[List[str]]


def read_replacements(path: Optional[str]) -> Optional[Dict[str, str]]:
    """What ``--replace-unk`` names: a file of source words and their translations.

    Returns:
        Empty where the option has no file; None without the option.

    Raises:
        UserError: there is no such file, or it holds other lines.
    """
    try:
        # fairseq's own value of the option alone is none that its reader can open
        return utils.load_align_dict("" if path == "@@ " else path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--replace-unk {path}: can't be read ({reason(error)})") from None
    except IndexError:
        raise UserError(
            f"--replace-unk {path}: every line must have a source word and a target word"
        ) from None


def load(args, cfg) -> Loaded:
    """Data and models, everything checked.

    With ``--seed`` the random numbers that are drawn later (``--sampling``) are
    fairseq-generate's: it draws the models' first weights before.

    Raises:
        UserError: a mistake in an option or file.
    """
    checks.check_translation_options(args, cfg)
    paths = utils.split_paths(cfg.common_eval.path)
    states = [load_checkpoint(p, "--path", args.trust_checkpoint) for p in paths]
    overrides = model_overrides(cfg.common_eval.model_overrides)
    for path, state in zip(paths, states):
        search_checks.check_overrides(overrides, state["cfg"], path)
        checkpoint_utils.overwrite_args_by_name(state["cfg"], overrides)
    checks.truncate_for_models(cfg, states)
    task = checks.set_up_task(cfg)
    search_checks.check_task(cfg, task)
    of_language_model = search_checks.read_language_model(cfg, task, args.trust_checkpoint)
    replacements = read_replacements(cfg.generation.replace_unk)
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
    if cfg.common.seed is not None and not cfg.generation.no_seed_provided:
        np.random.seed(cfg.common.seed)
        utils.set_torch_seed(cfg.common.seed)
    models = []
    for path in paths:
        try:
            (model,), _ = checkpoint_utils.load_model_ensemble(
                [path], task=task, state=states.pop(0)
            )
        except RuntimeError as error:
            raise UserError(
                f"--path {path}: its weights don't fit its options, with --model-overrides "
                f"{overrides} ({' '.join(str(error).split())[:300]})"
            ) from None
        check_finite(model.named_parameters(), f"--path {path}")
        models.append(model.eval())  # with LayerDrop, layers are left out while training
    language_model = None
    if of_language_model is not None:
        data = {**overrides, "data": cfg.task.data}  # where its dictionary is
        checkpoint_utils.overwrite_args_by_name(of_language_model["cfg"], data)
        (language_model,), _ = checkpoint_utils.load_model_ensemble(
            [cfg.generation.lm_path], state=of_language_model
        )
    skipped = checks.check_lengths(cfg, task, models)
    return Loaded(task, models, language_model, replacements, skipped, updates, references)
