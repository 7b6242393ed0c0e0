"""Layers compiled by ``torch.compile`` for training (``--compile``)."""

from contextlib import contextmanager

import torch
from torch import nn

BACKEND = "inductor"
# Variants of a layer's code that are kept before torch runs it uncompiled; with and
# without padding, gates and dropout there are more than its default of 8.
_VARIANTS = 64


def compile_layers(model: nn.Module) -> None:
    """Compile every encoder and decoder layer for training, in place.

    Layer by layer: layers of one shape share their code, and what lies between them
    (embeddings, the loss, distillation) stays as it is. Lengths and batch sizes are
    symbols in that code.

    Args:
        model: a model with ``encoder.layers`` and ``decoder.layers``.
    """
    torch._dynamo.config.recompile_limit = _VARIANTS
    for side in (model.encoder, model.decoder):
        for layer in side.layers:
            layer.compile(dynamic=True, backend=BACKEND)


def forget_compiled() -> None:
    """Drop the code of layers that are about to lose channels; they make it anew."""
    torch.compiler.reset()


@contextmanager
def uncompiled():
    """Run compiled layers as they are written, for validation and scoring.

    They would be compiled for each of its variants (no dropout, a beam search's cache,
    activations measured), for few batches.
    """
    with torch.compiler.set_stance("force_eager"):
        yield
