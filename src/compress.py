"""Compress a trained translation model: say how small, get a model ready to deploy.

    python src/compress.py data-bin/multi30k.de-en \\
        --path checkpoints/multi30k/base/checkpoint_best.pt \\
        --output checkpoints/multi30k/compressed --compression-rate 0.2

Translates the training data with the model, prunes it in the recipe that was found best for
the size, finetunes it on the translations, keeps the best checkpoint on the validation data,
exports it to CTranslate2 (where that is installed) and translates the test set before and
after. Every step is one of this project's commands, printed as it can be typed, in a folder
of its own in --output. Killed anywhere, the same command goes on; a step that is done is not
done again; where an option changed, what depends on it is made again, and what was there
before goes to --output/old.

Everything that the checkpoint knows is taken from it. Options of fairseq's trainings stand
after --, as: -- --cpu-bf16 --max-tokens 2048. What of the training differs by size is in
docs/compress.md.
"""

import importlib
import sys
import types
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.compress").main())

from .pipeline import command  # noqa: E402


class _Callable(types.ModuleType):
    """This module, which takes the place of the package's function of its name when imported."""

    def __call__(self, data, path, output, training=(), **options):
        return command.compress_from_python(data, path, output, training, options)


sys.modules[__name__].__class__ = _Callable


def main():
    """The command line tool."""
    return command.main(sys.argv[1:], __doc__)
