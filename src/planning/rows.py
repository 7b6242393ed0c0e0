"""What a plan is made of: candidates, and what was measured of them."""

from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence, Tuple

from ..checks.speed import UNCUT
from .timing import Ratio

Depths = Tuple[int, int]  # layers of encoder and decoder


@dataclass(frozen=True)
class Candidate:
    """Numbers of layers, and the share of the uncut model's parameters.

    A rate of 1 cuts nothing but layers.
    """

    encoder_layers: int
    decoder_layers: int
    rate: float

    @property
    def depths(self) -> Depths:
        return self.encoder_layers, self.decoder_layers

    @property
    def layers(self) -> str:
        return f"{self.encoder_layers}+{self.decoder_layers}"

    def __str__(self) -> str:
        return f"{self.layers} layers at {self.rate:g}"


@dataclass(frozen=True)
class Row:
    """A candidate in an engine.

    Attributes:
        as_given: it is the model as it was given, nothing cut, or the uncut one.
        share: of the uncut model's parameters.
        mflops: of a sentence of mean length, with the search's beam.
        checkpoint_bytes: of the weights in float32.
        export_bytes: of the engine's own folder, None in PyTorch.
        speed_up: how many times as fast as the uncut model in the same engine.
        times_fairseq: the same of fairseq's search with the uncut model, None if not timed.
    """

    engine: str
    candidate: Candidate
    as_given: bool
    parameters: int
    share: float
    mflops: float
    checkpoint_bytes: int
    export_bytes: Optional[int]
    tokens_per_second: float
    speed_up: Ratio
    times_fairseq: Optional[Ratio] = None

    def times(self, baseline: str) -> Ratio:
        """How many times as fast as one of ``BASELINES``."""
        return self.speed_up if baseline == UNCUT else self.times_fairseq


Measure = Callable[[Sequence[Candidate]], List[Row]]
