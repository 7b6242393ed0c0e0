"""SRP: structured pruning of Transformer translation models, as a fairseq plug-in.

Importing this package registers its parts with fairseq (``--user-dir src``).
"""

from . import checkpoint_utils, trainer
from .criterions import srp as _criterion  # noqa: F401
from .models import srp_legacy as _models  # noqa: F401
from .optim import srp_adam as _optimizer  # noqa: F401
from .tasks import srp_translation as _task  # noqa: F401

checkpoint_utils.install()
trainer.install()
