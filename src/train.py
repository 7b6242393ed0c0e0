"""Train a model: fairseq-train with this plug-in loaded.

    python src/train.py data-bin/multi30k.de-en --arch srp_multi30k_de_en \\
        --task SRPtranslation --criterion srp --optimizer srp_adam ...
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.train").main())

if __name__ != "__mp_main__":  # processes that a training starts read this file once more
    from .training.command import train


def main() -> None:
    """The command line tool."""
    train(__doc__)
