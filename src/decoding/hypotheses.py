"""Bookkeeping of a search: which hypotheses go on, who descends from whom, who has ended.

``BeamHypotheses`` does what fairseq's beam search does. With one hypothesis a sentence
nothing is reordered or sorted and the first end is the last: ``SingleHypotheses`` gives
what a beam of one gives.
"""

from typing import Callable, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

_BLOCK = 64  # scores among which one maximum is kept
# Finished sentences leave the batch when they are this share of it, 1/8: whenever some
# leave, all keys and values are copied.
_DEAD_SHARE = 8


def top(scores: Tensor, k: int) -> Tuple[Tensor, Tensor]:
    """``scores.topk(k, dim=1)`` of ``[B, M]`` for M much larger than k.

    The k largest lie in the k blocks with the largest maxima, or behind the last
    whole block; finding maxima is vectorized, sorting is not.
    """
    total = scores.shape[1]
    blocks = total // _BLOCK
    if blocks <= 2 * k:
        return scores.topk(k, dim=1)
    whole = blocks * _BLOCK
    maxima = scores[:, :whole].unflatten(1, (blocks, _BLOCK)).amax(dim=2)
    best = maxima.topk(k, dim=1).indices.unsqueeze(2) * _BLOCK
    offsets = torch.arange(_BLOCK, device=scores.device)
    index = (best + offsets).flatten(1)
    if whole < total:
        rest = torch.arange(whole, total, device=scores.device)
        index = torch.cat([index, rest.expand(len(index), -1)], dim=1)
    values, position = scores.gather(1, index).topk(k, dim=1)
    return values, index.gather(1, position)


def largest(scores: Tensor) -> Tuple[np.ndarray, np.ndarray]:
    """Values and indices of the maxima of ``[B, M]``, each ``[B]``."""
    if scores.device.type == "cpu":
        array = scores.numpy()  # whose search for a maximum is vectorized, PyTorch's not
        index = array.argmax(axis=1)
        return array[np.arange(len(array)), index], index
    return fetched(*scores.max(dim=1))


def fetched(values: Tensor, indices: Tensor) -> Tuple[np.ndarray, np.ndarray]:
    """Both on the CPU, from a GPU in one copy: every one of them waits for the GPU."""
    if values.device.type == "cpu":
        return values.numpy(), indices.numpy()
    wide = torch.float64  # holds either exactly
    both = torch.stack((values.to(wide), indices.to(wide))).cpu()
    found, places = both.unbind()
    return found.to(values.dtype).numpy(), places.long().numpy()


class Choice(NamedTuple):
    """Hypotheses ``[B, beam]`` after a step, for the original sentences of a batch."""

    parents: np.ndarray
    tokens: np.ndarray
    scores: np.ndarray  # cumulative


class Hypotheses:
    """What both kinds share: rows of the batch and the sentences that they are of.

    Args:
        sentences: number of sentences in the batch.
        eos: end of sentence.
        normalize: function of n, what the score of n tokens is divided by.
        beam: hypotheses a sentence.
    """

    def __init__(self, sentences: int, eos: int, normalize: Callable, beam: int):
        self.eos, self.normalize, self.beam = eos, normalize, beam
        self.rows = np.arange(sentences)  # sentence of each row of the batch
        self.done = np.zeros(sentences, dtype=bool)  # of each sentence
        self.finished: List[List[dict]] = [[] for _ in range(sentences)]

    def leave(self) -> Optional[np.ndarray]:
        """Rows that stay, once enough sentences have finished; else None."""
        stay = ~self.done[self.rows]
        rows = np.flatnonzero(stay)
        if (len(stay) - len(rows)) * _DEAD_SHARE < len(stay):
            return None
        self.rows = self.rows[stay]
        return rows

    def _end(self, sentences: np.ndarray, tokens: np.ndarray, cumulative: np.ndarray) -> None:
        """Add finished hypotheses to the sentences that don't have ``beam`` of them yet.

        Shapes:
            sentences ``[M]``, tokens ``[M, T]``, cumulative scores ``[M, T+1]``, the
            first 0.
        """
        totals = cumulative[:, -1] / self.normalize(tokens.shape[1])
        with torch.inference_mode(False):  # results are ordinary tensors
            tensors = map(torch.from_numpy, (tokens, np.diff(cumulative), totals))
            rows = zip(sentences.tolist(), *(x.unbind() for x in tensors))
            for sentence, kept, gained, total in rows:
                found = self.finished[sentence]
                if len(found) == self.beam:
                    continue
                found.append(
                    {
                        "tokens": kept,
                        "score": total,
                        "attention": torch.empty(0),
                        "alignment": torch.empty(0),
                        "positional_scores": gained,
                    }
                )
                self.done[sentence] = len(found) == self.beam

    def results(self) -> List[List[dict]]:
        """Per sentence its finished hypotheses, best first."""
        return [
            sorted(found, key=lambda h: float(h["score"]), reverse=True) for found in self.finished
        ]


class BeamHypotheses(Hypotheses):
    """Hypotheses of a beam search."""

    def __init__(self, sentences: int, eos: int, normalize: Callable, beam: int, device):
        super().__init__(sentences, eos, normalize, beam)
        self.total = torch.zeros(sentences, 1, device=device)  # cumulative scores
        self.history: List[Choice] = []

    def choose(
        self, step: int, scores: Tensor, ended: Optional[Tensor], last: bool
    ) -> Tuple[Tensor, Tensor]:
        """Finish what ends here, choose what goes on.

        Args:
            scores: ``[rows, n, N]`` log-probabilities of every continuation, which are
                overwritten.
            ended: rows whose prefix ends with this step, ``[rows]``, or None.
            last: no step follows.

        Returns:
            Tokens and parents, ``[rows, beam]``.
        """
        total, types = self.total, scores.shape[2]
        if ended is not None and ended.any():
            scores[ended] = scores[ended][:, :1]
            total[ended] = total[ended][:, :1]
        scores += total.unsqueeze(2)
        best, index = fetched(*top(scores.flatten(1), 2 * self.beam))
        beams, chosen = np.divmod(index, types)
        if ended is not None:  # the prefix has ended: all descend from the first
            beams[ended.cpu().numpy()] = 0
        choice = self.advance(step, best, chosen, beams, last)
        self.total = torch.from_numpy(choice.scores).to(scores.device)
        both = np.stack((choice.tokens, choice.parents))
        tokens, parents = torch.from_numpy(both).to(scores.device)
        return tokens, parents

    def advance(self, step: int, scores, tokens, beams, last: bool) -> Choice:
        """The same with ``[rows, 2*beam]`` best continuations.

        Args:
            scores, tokens, beams: descending: cumulative score, token, hypothesis that
                is continued.

        Returns:
            The choice, by row.
        """
        ends = (tokens == self.eos) & (scores != -np.inf)
        rows, places = np.nonzero(ends[:, : self.beam])
        alive = ~self.done[self.rows[rows]]
        rows, places = rows[alive], places[alive]
        if len(rows):
            self._finish(step, self.rows[rows], beams[rows, places], scores[rows, places])
        if last:
            self.done[:] = True
        order = np.argsort(ends, axis=1, kind="stable")[:, : self.beam]
        choice = Choice(*(np.take_along_axis(x, order, 1) for x in (beams, tokens, scores)))
        whole = Choice(*(np.zeros((len(self.done), self.beam), x.dtype) for x in choice))
        for values, chosen in zip(whole, choice):
            values[self.rows] = chosen
        self.history.append(whole)
        return choice

    def _finish(self, step: int, found: np.ndarray, beams, scores) -> None:
        tokens = np.full((len(found), step + 1), self.eos)
        cumulative = np.zeros((len(found), step + 2), dtype=scores.dtype)
        cumulative[:, -1] = scores
        for position in range(step - 1, -1, -1):
            choice = self.history[position]
            tokens[:, position] = choice.tokens[found, beams]
            cumulative[:, position + 1] = choice.scores[found, beams]
            beams = choice.parents[found, beams]
        self._end(found, tokens, cumulative)

    def ancestors(self, step: int) -> np.ndarray:
        """Tokens so far of every row's hypotheses, ``[rows, beam, step]``."""
        tokens = np.empty((len(self.rows), self.beam, step), dtype=np.int64)
        beams = np.broadcast_to(np.arange(self.beam), tokens.shape[:2])
        for position in range(step - 1, -1, -1):
            choice = self.history[position]
            tokens[:, :, position] = choice.tokens[self.rows[:, None], beams]
            beams = choice.parents[self.rows[:, None], beams]
        return tokens

    def leave(self) -> Optional[np.ndarray]:
        stay = super().leave()
        if stay is not None:
            self.total = self.total[torch.from_numpy(stay).to(self.total.device)]
        return stay


class SingleHypotheses(Hypotheses):
    """One hypothesis a sentence, continued by its best token until that is eos.

    Args:
        steps: the most that are made.
    """

    def __init__(self, sentences: int, eos: int, normalize: Callable, steps: int):
        super().__init__(sentences, eos, normalize, beam=1)
        self.tokens = np.full((sentences, steps), eos)
        self.cumulative: Optional[np.ndarray] = None  # [B, steps + 1]

    def choose(
        self, step: int, scores: Tensor, ended: Optional[Tensor], last: bool
    ) -> Tuple[Tensor, None]:
        """As :meth:`BeamHypotheses.choose`; nothing is reordered: no parents."""
        gained, tokens = largest(scores[:, 0])
        if self.cumulative is None:
            sentences, steps = self.tokens.shape
            self.cumulative = np.zeros((sentences, steps + 1), gained.dtype)
        rows = self.rows
        self.tokens[rows, step] = tokens
        total = self.cumulative[rows, step] + gained
        self.cumulative[rows, step + 1] = total
        ends = tokens == self.eos
        if ends.any():
            found = rows[ends & (total != -np.inf) & ~self.done[rows]]
            self._end(found, self.tokens[found, : step + 1], self.cumulative[found, : step + 2])
        if last:
            self.done[:] = True
        return torch.from_numpy(tokens).to(scores.device).unsqueeze(1), None

    def ancestors(self, step: int) -> np.ndarray:
        """Tokens so far of every row's hypothesis, ``[rows, 1, step]``."""
        return self.tokens[self.rows, None, :step]
