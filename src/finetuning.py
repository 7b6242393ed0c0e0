"""Finetune a cut model: training that starts from --pretrained-model.

The widths and the kind of layer normalization come from the checkpoint.

    python src/finetuning.py data-bin/multi30k.de-en \\
        --pretrained-model checkpoints/multi30k/stage2/checkpoint_last.pt ...
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.finetuning").main())

if __name__ != "__mp_main__":  # processes that a training starts read this file once more
    from .errors import UserError
    from .training.command import train


def check(args) -> None:
    """Finetuning starts from a checkpoint and prunes nothing."""
    if not getattr(args, "pretrained_model", None):
        raise UserError(
            "--pretrained-model: missing; finetuning.py needs the checkpoint to start from"
        )
    layers = [getattr(args, f"keep_{side}_layers", None) for side in ("encoder", "decoder")]
    budget = getattr(args, "compression_rate", 1) != 1 or getattr(args, "speed_up", None)
    if getattr(args, "srp", False) or budget or any(layers):
        raise UserError(
            "--srp/--compression-rate/--speed-up/--keep-...-layers: finetuning.py does not prune; "
            "use pruning.py"
        )


def main() -> None:
    """The command line tool."""
    train(__doc__, check)
