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
    importlib.import_module(f"{FOLDER.name}.training.command").train()
