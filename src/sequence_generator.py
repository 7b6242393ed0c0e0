"""Beam search with fairseq's hypotheses in a fraction of its time.

What is different inside: no keys, values or scores move when hypotheses are
reordered, keys and values of the source are computed once a sentence instead of
once a hypothesis, the first step has one hypothesis a sentence, the best
continuations are looked for in the blocks with the largest maxima, and whole
steps run on joined weights (``modules/decoder_step.py``).
"""

import logging
import math
from contextlib import nullcontext
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from fairseq.search import BeamSearch
from fairseq.sequence_generator import SequenceGenerator

from .modules.decoder_step import Cache, DecoderStep, fingerprint, unsupported
from .modules.linear import use_sparse_products

logger = logging.getLogger(__name__)

_BLOCK = 64  # scores among which one maximum is kept
_DEAD_SHARE = 8  # finished sentences leave the batch when they are 1/8 of it


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


class Choice(NamedTuple):
    """Hypotheses ``[B, beam]`` after a step, for the original sentences of a batch."""

    parents: np.ndarray
    tokens: np.ndarray
    scores: np.ndarray  # cumulative


class Hypotheses:
    """Bookkeeping of a beam search: who descends from whom, who has finished.

    Args:
        sentences: number of sentences in the batch.
        beam: hypotheses a sentence.
        eos: end of sentence.
        normalize: float by which the score of n tokens is divided.
    """

    def __init__(self, sentences: int, beam: int, eos: int, normalize):
        self.beam, self.eos, self.normalize = beam, eos, normalize
        self.finished: List[List[dict]] = [[] for _ in range(sentences)]
        self.rows = np.arange(sentences)  # sentence of each row of the batch
        self.done = np.zeros(sentences, dtype=bool)  # of each sentence
        self.history: List[Choice] = []

    def advance(self, step: int, scores, tokens, beams, last: bool) -> Choice:
        """Finish what ends here, choose what goes on.

        Args:
            scores, tokens, beams: ``[rows, 2*beam]`` best continuations,
                descending: cumulative score, token, hypothesis that is continued.
            last: no step follows.

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
        whole = Choice(
            *(np.zeros((len(self.done), self.beam), x.dtype) for x in choice)
        )
        for mine, chosen in zip(whole, choice):
            mine[self.rows] = chosen
        self.history.append(whole)
        return choice

    def _finish(self, step: int, sentences, beams, scores) -> None:
        tokens = np.full((len(sentences), step + 1), self.eos)
        cumulative = np.zeros((len(sentences), step + 2), dtype=scores.dtype)
        cumulative[:, -1] = scores
        for position in range(step - 1, -1, -1):
            choice = self.history[position]
            tokens[:, position] = choice.tokens[sentences, beams]
            cumulative[:, position + 1] = choice.scores[sentences, beams]
            beams = choice.parents[sentences, beams]
        tokens, gained = torch.from_numpy(tokens), torch.from_numpy(np.diff(cumulative))
        totals = torch.from_numpy(scores / self.normalize(step + 1))
        for i, sentence in enumerate(sentences.tolist()):
            finished = self.finished[sentence]
            if len(finished) < self.beam:
                finished.append(
                    {
                        "tokens": tokens[i],
                        "score": totals[i],
                        "attention": torch.empty(0),
                        "alignment": torch.empty(0),
                        "positional_scores": gained[i],
                    }
                )
                self.done[sentence] = len(finished) == self.beam

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
        """Rows that stay, once enough sentences have finished; else None."""
        stay = ~self.done[self.rows]
        if (~stay).sum() * _DEAD_SHARE < len(stay):
            return None
        self.rows = self.rows[stay]
        return np.flatnonzero(stay)

    def results(self) -> List[List[dict]]:
        """Per sentence its finished hypotheses, best first."""
        return [
            sorted(found, key=lambda h: float(h["score"]), reverse=True)
            for found in self.finished
        ]


class FastSequenceGenerator(SequenceGenerator):
    """fairseq's ``SequenceGenerator`` with a faster beam search.

    Takes its arguments and gives its results (``attention`` is empty). Whatever
    this search does not do, fairseq's does instead, and a line in the log says
    why: other search strategies (sampling, diverse beams, constraints), language
    models, --match-source-len, models that are no plain Transformer.

    Args:
        bfloat16: run matrix products in bfloat16 (``--cpu-bf16``).
        sparse: leave out zero weights where that is faster (``--sparse-inference``).
    """

    def __init__(
        self, models, tgt_dict, bfloat16: bool = False, sparse: bool = False, **kwargs
    ):
        super().__init__(models, tgt_dict, **kwargs)
        self.bfloat16, self.sparse = bfloat16, sparse
        if sparse:
            for model in models:
                use_sparse_products(model)
        self.fallback = self._unsupported()
        self._steps: List[Tuple[tuple, DecoderStep]] = []
        if self.fallback:
            logger.info(f"translating with fairseq's own search: {self.fallback}")

    def _unsupported(self) -> Optional[str]:
        if type(self.search) is not BeamSearch:
            return f"{type(self.search).__name__} was asked for"
        if self.lm_model is not None:
            return "--lm-path was given"
        if self.match_source_len:
            return "--match-source-len was given"
        if self.vocab_size <= 2 * self.beam_size + 1:
            return f"a beam of {self.beam_size} is too many for {self.vocab_size} types"
        return next(filter(None, map(unsupported, self.model.models)), None)

    def _generate(self, sample, prefix_tokens=None, constraints=None, bos_token=None):
        if self.fallback or constraints is not None or "src_tokens" not in sample["net_input"]:
            return super()._generate(sample, prefix_tokens, constraints, bos_token)
        source = sample["net_input"]["src_tokens"]
        max_len = min(
            int(self.max_len_a * source.shape[1] + self.max_len_b), self.max_len - 1
        )
        if self.min_len > max_len:
            raise ValueError(f"min_len {self.min_len} is larger than max_len {max_len}")
        with self._precision(source.device):
            encoded = self.model.forward_encoder(sample["net_input"])
        steps = self._folded()
        encoded = [self._in_type_of(step, out) for step, out in zip(steps, encoded)]
        caches = [step.start(out) for step, out in zip(steps, encoded)]

        sentences, device = len(source), source.device
        hypotheses = Hypotheses(
            sentences,
            self.beam_size,
            self.eos,
            (lambda n: n**self.len_penalty) if self.normalize_scores else (lambda n: 1),
        )
        tokens = source.new_full((sentences, 1), self.eos if bos_token is None else bos_token)
        total = torch.zeros(sentences, 1, device=device)
        for step in range(max_len + 1):
            scores = self._log_probabilities(steps, caches, tokens, step)
            ended = self._constrain(scores, total, hypotheses, prefix_tokens, step, max_len)
            scores += total.unsqueeze(2)
            best, index = top(scores.flatten(1), 2 * self.beam_size)
            beams = torch.div(index, self.vocab_size, rounding_mode="floor")
            if ended is not None:  # the prefix has ended: all descend from the first
                beams.masked_fill_(ended.unsqueeze(1), 0)
            choice = hypotheses.advance(
                step,
                best.cpu().numpy(),
                (index % self.vocab_size).cpu().numpy(),
                beams.cpu().numpy(),
                last=step == max_len,
            )
            if hypotheses.done.all():
                break
            parents, tokens, total = (torch.from_numpy(x).to(device) for x in choice)
            for cache in caches:
                cache.follow(parents)
            stay = hypotheses.leave()
            if stay is not None:
                stay = torch.from_numpy(stay).to(device)
                tokens, total = tokens[stay], total[stay]
                for cache in caches:
                    cache.keep(stay)
        return hypotheses.results()

    def _precision(self, device):
        if self.bfloat16 and device.type == "cpu":
            return torch.autocast("cpu", torch.bfloat16)
        return nullcontext()

    @staticmethod
    def _in_type_of(step: DecoderStep, out: Dict[str, List[Tensor]]):
        """Encoder outputs in the decoder's type, which autocast has changed."""
        dtype = step.decoder.embed_tokens.weight.dtype
        return {**out, "encoder_out": [x.to(dtype) for x in out["encoder_out"]]}

    def _folded(self) -> List[DecoderStep]:
        """The decoders, folded anew only when their weights have changed."""
        prints = [fingerprint(model) for model in self.model.models]
        if [known for known, _ in self._steps] != prints:
            self._steps = [
                (known, DecoderStep(model.decoder, self.bfloat16, self.sparse))
                for known, model in zip(prints, self.model.models)
            ]
        return [step for _, step in self._steps]

    def _log_probabilities(self, steps, caches: List[Cache], tokens, step) -> Tensor:
        """``[B, n, N]`` in float32 or better, of one model or averaged over several."""
        several = []
        for decode, cache in zip(steps, caches):
            logits = decode(tokens, cache, step)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if self.temperature != 1:
                logits = logits / self.temperature
            several.append(F.log_softmax(logits, dim=1).view(*tokens.shape, -1))
        if len(several) == 1:
            return several[0]
        return torch.logsumexp(torch.stack(several), dim=0) - math.log(len(several))

    def _constrain(
        self, scores, total, hypotheses: Hypotheses, prefix, step, max_len
    ) -> Optional[Tensor]:
        """Apply to ``scores [B, n, N]``, in place, what the options ask for.

        Returns:
            Rows whose prefix ends with this step, ``[B]``, or None without any.
        """
        scores[:, :, self.pad] = -math.inf
        if self.unk_penalty:
            scores[:, :, self.unk] -= self.unk_penalty
        if step >= max_len:
            scores[:, :, : self.eos] = -math.inf
            scores[:, :, self.eos + 1 :] = -math.inf
        ended = None
        if prefix is not None and step < prefix.shape[1] and step < max_len:
            forced = prefix[torch.from_numpy(hypotheses.rows).to(prefix.device), step]
            ended = forced.eq(self.eos)
            if ended.any():
                scores[ended] = scores[ended][:, :1]
                total[ended] = total[ended][:, :1]
            rows = forced.ne(self.pad).nonzero().squeeze(1)
            own = scores[rows, :, forced[rows]]
            scores[rows] = -math.inf
            scores[rows, :, forced[rows]] = own
        else:
            if step < self.min_len:
                scores[:, :, self.eos] = -math.inf
            if self.token_indices_to_suppress is not None:
                scores[:, :, self.token_indices_to_suppress] = -math.inf
        if self.repeat_ngram_blocker is not None and step:
            self._block_repetitions(scores, hypotheses, step)
        return ended

    def _block_repetitions(self, scores, hypotheses: Hypotheses, step: int) -> None:
        """Forbid tokens that would repeat an n-gram of their hypothesis.

        fairseq's search on CPUs looks at the padding behind the tokens instead
        and forbids nothing; its CUDA extension forbids what this does.
        """
        size = self.repeat_ngram_blocker.no_repeat_ngram_size
        if step < size:
            return
        tokens = hypotheses.ancestors(step)
        windows = np.lib.stride_tricks.sliding_window_view(tokens, size, axis=2)
        current = tokens[:, :, None, step - size + 1 :]
        repeats = (windows[..., :-1] == current).all(axis=3)
        rows, beams, places = np.nonzero(repeats)
        scores[rows, beams, windows[rows, beams, places, -1]] = -math.inf
