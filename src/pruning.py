"""Prune a trained model: one stage of SRP, or one shot.

    python src/pruning.py data-bin/multi30k.de-en \\
        --pretrained-model checkpoints/multi30k/base/checkpoint_best.pt \\
        --srp --compression-rate 0.2 --pruning-stage 1 --pruning-period 5 ...

With --srp the selected channels shrink during --pruning-period epochs and are
then cut; without, they are cut right away. Whole layers go with --keep-encoder-layers and
--keep-decoder-layers, with a rate or alone. With --speed-up in place of the rate the largest
model is looked for that is so many times as fast on this machine (see plan.py). Training
goes on until --max-epoch, by default the epoch of the (last) cut. What --save-dir holds in
the end is the cut model.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.pruning").main())

if __name__ != "__mp_main__":  # processes that a training starts read this file once more
    from .errors import UserError
    from .training.command import train


def check(args) -> None:
    """Pruning needs a model and a rate."""
    if not getattr(args, "pretrained_model", None):
        raise UserError("--pretrained-model: missing; pruning.py needs the trained model to prune")
    depth = args.keep_encoder_layers, args.keep_decoder_layers
    if args.compression_rate == 1 and depth == (None, None) and args.speed_up is None:
        raise UserError(
            "--compression-rate: missing or 1; pruning.py needs the share of parameters "
            "to keep, as 0.2, or numbers of layers: --keep-decoder-layers 1, or a speed: "
            "--speed-up 4 --speed-engine ctranslate2-int8"
        )


def main() -> None:
    """The command line tool."""
    train(__doc__, check)
