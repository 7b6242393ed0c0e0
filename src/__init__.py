"""SRP: structured pruning of Transformer translation models, as a fairseq plug-in.

Importing this package registers its parts with fairseq (``--user-dir src``). Where torch or
fairseq is missing, :func:`load` still translates with exported models.
"""

import logging
import os
import sys
from typing import Optional, Sequence


def _registered_as() -> Optional[str]:
    """The name under which this package is loaded already: as ``srp``, say, beside ``src``."""
    task = getattr(sys.modules.get("fairseq.tasks"), "TASK_REGISTRY", {}).get("SRPtranslation")
    return task and task.__module__.partition(".")[0]


_first = _registered_as()
if _first not in (None, __name__):
    # fairseq refuses to register anything twice: this name is another one for the first
    for _name in list(sys.modules):
        if _name == _first or _name.startswith(f"{_first}."):
            sys.modules[__name__ + _name[len(_first) :]] = sys.modules[_name]
else:
    from . import errors
    from .errors import UserError

    errors.install()

    _level = os.environ.get("LOGLEVEL", "INFO")
    if _level.upper() not in logging.getLevelNamesMapping():
        raise UserError(
            f"LOGLEVEL={_level}: must be DEBUG, INFO, WARNING, ERROR or CRITICAL in the environment"
        )

    if errors.missing() is None:
        # fairseq sets the root logger to DEBUG, and asks for tensorboardX, which only its speech
        # synthesis needs, whenever it is imported
        for _name in ("fairseq.tasks.text_to_speech", "matplotlib"):
            logging.getLogger(_name).setLevel(logging.WARNING)

        with errors.ending_at_once(os.path.dirname(os.path.abspath(__file__))):
            from . import fairseq_patches

            with fairseq_patches.deferring(*fairseq_patches.UNUSED):
                import fairseq  # noqa: F401

            from . import checkpoint_utils
            from .checkpoints import dictionary_record
            from .criterions import srp as _criterion  # noqa: F401
            from .models import srp_legacy as _models  # noqa: F401
            from .optim import srp_adam as _optimizer  # noqa: F401
            from .tasks import srp_translation as _task  # noqa: F401
            from .trainer import SRPTrainer

        fairseq_patches.install(
            {
                "load_checkpoint_to_cpu": checkpoint_utils.reading_checked,
                "load_model_ensemble_and_task": dictionary_record.loading_compared,
                "torch_persistent_save": checkpoint_utils.saving_durably,
                "PathManager": lambda original: checkpoint_utils.DurablePathManager,
                "Trainer": lambda original: SRPTrainer,
            },
            checkpoint_utils.SAFE_GLOBALS,
        )


def compress(data: str, path: str, output: str, training: Sequence[str] = (), **options):
    """Compress a trained model, as ``compress.py`` does.

    Args:
        data: folder of binarized data.
        path: the model's checkpoint.
        output: folder of all that is made.
        training: options of fairseq's trainings, as ``["--cpu-bf16"]``.
        options: compress.py's by their names, as ``speed_up=4`` or ``quick=True``.

    Returns:
        The figures before and after (``pipeline.headline.Headline``); None of a dry run.

    Raises:
        UserError: a mistake in an option or file.
    """
    from .pipeline.command import compress_from_python

    return compress_from_python(data, path, output, training, options)


def load(folder: str, threads: int = 0):
    """The model in a folder of ``compress.py`` or ``export.py``, to translate with.

        srp.load("checkpoints/compressed").translate(["ein hund rennt ."])

    See :func:`deployment.loading.load`.
    """
    from .deployment import loading

    return loading.load(folder, threads)
