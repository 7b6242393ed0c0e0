"""Sizes and measured speed of candidates, beside the uncut model and fairseq's own search."""

import logging
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from torch import nn

from ..connectivity.budget import ParameterCount
from ..connectivity.stage import StagePlan
from ..evaluation.flops import count_flops
from ..evaluation.measures import serialized_bytes
from .candidates import cut_to, depths_of, is_uncut, rebuilt
from .rows import Candidate, Row
from .sentences import STOCK, Translation, Work
from .timing import Ratio, interleave, ratio, threads

logger = logging.getLogger(__name__)

ROUNDS = 5


Make = Callable[[str, nn.Module], Translation]


class Planner:
    """Cuts candidates from one model and times them side by side.

    Args:
        model: to be pruned, in evaluation mode on the CPU; not changed.
        plan: how it would be, see ``candidates.cut_to``.
        work: what is translated.
        make: a model in an engine, see ``engines.translation``.
        engines: their names.
        rounds: how often everything is timed.
        stock: time fairseq's own search with the uncut model, too.
        cpu_threads: of every engine.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: StagePlan,
        work: Work,
        make: Make,
        engines: Sequence[str],
        rounds: int = ROUNDS,
        stock: bool = True,
        cpu_threads: int = 1,
    ):
        self._threads = cpu_threads
        self.model, self.plan, self.work = model, plan, work
        self._make, self.engines, self.rounds = make, list(engines), rounds
        uncut = model if is_uncut(model) else rebuilt("srp", model, work.dictionaries)
        with threads(cpu_threads):
            self._base: Dict[str, Translation] = {
                engine: make(engine, uncut) for engine in self.engines
            }
        self._uncut = Candidate(*depths_of(uncut), 1.0)
        self._given = self._uncut
        if uncut is not model:
            self._given = Candidate(*depths_of(model), round(ParameterCount(model).share, 4))
        self._sizes = {self._uncut: self._size(uncut)}
        if stock:
            self._base[STOCK] = make(STOCK, self._stock(uncut))

    def _stock(self, uncut: nn.Module) -> nn.Module:
        """fairseq's own model with the same weights."""
        stock, weights = rebuilt("transformer", uncut, self.work.dictionaries), uncut.state_dict()
        stock.load_state_dict({name: weights[name] for name in stock.state_dict()})
        return stock

    def _size(self, model: nn.Module) -> Tuple[int, float, float, int]:
        """Parameters, their share, MFLOPs and bytes."""
        sentences, count = self.work.sentences, ParameterCount(model)
        source = round(sum(len(x.source) for x in sentences) / len(sentences))
        target = round(sum(x.steps for x in sentences) / len(sentences))
        flops = count_flops(model, source, target, beam=self.work.beam)["total"]
        return count(count.current), count.share, flops / 1e6, serialized_bytes(model)

    def __call__(
        self, candidates: Sequence[Candidate], engines: Optional[Sequence[str]] = None
    ) -> List[Row]:
        """Time candidates together with the uncut model.

        Args:
            engines: some of the planner's (default: all).

        Returns:
            A row for each engine and model: the uncut one, the model as it is where it was
            cut, and the candidates that can be cut.
        """
        timed: Dict[Tuple[str, Candidate], Translation] = {}
        engines = self.engines if engines is None else engines
        for engine in engines:
            timed[engine, self._uncut] = self._base[engine]
        for candidate in dict.fromkeys((self._given, *candidates)):
            if candidate == self._uncut:
                continue
            given = candidate == self._given
            model = self.model if given else cut_to(candidate, self.model, self.plan)
            if model is None:
                continue
            self._sizes[candidate] = self._size(model)
            with threads(self._threads):
                for engine in engines:
                    timed[engine, candidate] = self._make(engine, model)
        runs = {name: found.run for name, found in timed.items()}
        if STOCK in self._base:
            runs[STOCK, None] = self._base[STOCK].run
        models = len({candidate for _, candidate in timed})
        logger.info(f"timing {models} models in {', '.join(engines)}")
        with threads(self._threads):
            seconds = interleave(runs, self.rounds, progress=_log_round)
        return [self._row(*name, found, seconds) for name, found in timed.items()]

    def _row(self, engine: str, candidate: Candidate, found: Translation, seconds) -> Row:
        times = seconds[engine, candidate]
        stock = seconds.get((STOCK, None))
        return Row(
            engine,
            candidate,
            candidate in (self._uncut, self._given),
            *self._sizes[candidate],
            found.export_bytes,
            found.tokens * len(times) / sum(times),
            self._ratio(seconds[engine, self._uncut], self._base[engine], times, found),
            stock and self._ratio(stock, self._base[STOCK], times, found),
        )

    @staticmethod
    def _ratio(base, of: Translation, times, found: Translation) -> Ratio:
        """Ratio of tokens per second: engines divide sentences into batches differently."""
        per_token = [[s / x.tokens for s in some] for some, x in ((base, of), (times, found))]
        return ratio(*per_token)


def _log_round(done: int, of: int) -> None:
    logger.info(f"round {done} of {of}")
