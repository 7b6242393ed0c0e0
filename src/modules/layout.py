"""How activations lie in memory."""

from torch import Tensor


def lies_transposed(x: Tensor) -> bool:
    """Whether ``x [T, B, D]`` lies in memory as ``[B, T, D]``.

    fairseq's layers take the former, embeddings and attention make the latter. What
    works row by row goes through the transposed view, which needs no copy.
    """
    return x.dim() == 3 and not x.is_contiguous() and x.transpose(0, 1).is_contiguous()
