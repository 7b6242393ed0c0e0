"""What is translated while candidates are timed: real sentences, with lengths that are given.

A candidate has never been trained after its cut, so when its search stops says nothing. So
each batch takes as many steps as the model's own translations of it take, and has as many
sentences as its steps have on average: finished sentences leave a search.
"""

from dataclasses import dataclass
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from fairseq.data import Dictionary, FairseqDataset, data_utils
from torch import Tensor

STOCK = "fairseq-search"  # fairseq's own search


class Sentence(NamedTuple):
    """A source ``[S]`` with its end of sentence, and the steps that a search for it takes."""

    source: Tensor
    steps: int


class Batch(NamedTuple):
    """Sources that are translated together, in so many steps each."""

    sources: List[Tensor]
    steps: int

    @property
    def tokens(self) -> int:
        """Target tokens, with ends of sentence."""
        return len(self.sources) * self.steps

    def padded(self, dictionary: Dictionary) -> Tensor:
        """``[B, S]``, padded as fairseq does."""
        return data_utils.collate_tokens(self.sources, dictionary.pad(), left_pad=True)


def choose(
    dataset: FairseqDataset, number: int, batch_size: int, limits: Sequence[int]
) -> List[Tensor]:
    """Sources of a set in whole batches, evenly spread over its lengths.

    Args:
        limits: most tokens of a source and a target; longer pairs are left out, and so are
            empty lines.

    Returns:
        At most ``number`` sources, in the order of their lengths.
    """
    sizes = np.asarray(dataset.src_sizes)
    order = np.argsort(sizes, kind="stable")
    fitting = [i for i in order.tolist() if 1 < sizes[i] <= min(limits)]
    number = min(number, len(fitting))
    batches = max(1, number // batch_size)
    size, sources = number // batches if batches else 0, []
    for batch in range(batches):
        start = (2 * batch + 1) * (len(fitting) - size) // (2 * batches)
        sources += [dataset.src[i].long() for i in fitting[start : start + size]]
    return sources


def in_batches(sentences: Sequence[Sentence], size: int) -> List[Batch]:
    """Sentences in batches of at most ``size``, as a search with finished ones leaving."""
    batches = []
    for begin in range(0, len(sentences), size):
        some = sentences[begin : begin + size]
        steps = max(sentence.steps for sentence in some)
        number = max(1, round(sum(sentence.steps for sentence in some) / steps))
        chosen = [some[i * len(some) // number].source for i in range(number)]
        batches.append(Batch(chosen, steps))
    return batches


@dataclass
class Work:
    """What every model translates.

    Attributes:
        sentences: in the order of their lengths.
        dictionaries: of source and target.
        beam, batch_size: of the search; CTranslate2 divides batches further.
        device: of engines that run in PyTorch.
        vocabulary_map: of ``deployment.vocabulary_map``, for the engines that take one.
    """

    sentences: Sequence[Sentence]
    dictionaries: Tuple[Dictionary, Dictionary]
    beam: int = 5
    batch_size: int = 64
    device: str = "cpu"
    vocabulary_map: Any = None


class Translation(NamedTuple):
    """Something to time.

    Attributes:
        run: translates everything once.
        tokens: target tokens of it, with ends of sentence.
        export_bytes: size of the engine's own file, None where it has none.
    """

    run: Callable[[], object]
    tokens: int
    export_bytes: Optional[int] = None
