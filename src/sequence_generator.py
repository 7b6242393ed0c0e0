"""Beam search with fairseq's hypotheses in a fraction of its time.

What is different inside: no keys, values or scores move when hypotheses are
reordered, keys and values of the source are computed once a sentence instead of
once a hypothesis (``modules/decoder_cache.py``), the first step has one hypothesis a
sentence, the best continuations are looked for in the blocks with the largest maxima
(``hypotheses.py``), and whole steps run on joined weights (``modules/decoder_step.py``).
With a beam of one nothing is masked, reordered or sorted.
"""

import logging
import math
from contextlib import nullcontext
from typing import Dict, List, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.search import BeamSearch, DiverseBeamSearch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from .acceleration.constant_products import use_sparse_products
from .acceleration.heap import HeapKeeper
from .decoding.hypotheses import BeamHypotheses, Hypotheses, SingleHypotheses
from .decoding.step import Cache, DecoderStep, fingerprint, unsupported
from .errors import UserError
from .modules.scriptable import ScriptForm

logger = logging.getLogger(__name__)


def _checked(results: List[List[dict]]) -> List[List[dict]]:
    """The results, once it is known that their scores are numbers.

    Raises:
        UserError: the weights give NaN, by which no hypothesis can be chosen.
    """
    if any(not h or any(math.isnan(float(x["score"])) for x in h) for h in results):
        raise UserError(
            "translating: the model's scores are NaN; its training diverged, or its "
            "numbers are too large for this precision; use an earlier checkpoint or float32"
        )
    return results


class FastSequenceGenerator(ScriptForm, SequenceGenerator):
    """fairseq's ``SequenceGenerator`` with a faster beam search.

    Takes its arguments and gives its results (``attention`` is empty). Whatever
    this search does not do, fairseq's does instead, and a line in the log says
    why: other search strategies (sampling, diverse beams, constraints), language
    models, --match-source-len, models that are no plain Transformer.

    Args:
        bfloat16: run matrix products in bfloat16 (``--cpu-bf16``).
        sparse: leave out zero weights where that is faster (``--sparse-inference``).
    """

    script_class = SequenceGenerator

    def __init__(self, models, tgt_dict, bfloat16: bool = False, sparse: bool = False, **kwargs):
        super().__init__(models, tgt_dict, **kwargs)
        self.bfloat16, self.sparse = bfloat16, sparse
        if sparse:
            for model in models:
                use_sparse_products(model)
        self.fallback = self._unsupported()
        self._steps: List[Tuple[tuple, DecoderStep]] = []
        self._heap: Optional[HeapKeeper] = None
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
            return self._leave_to_fairseq(sample, prefix_tokens, constraints, bos_token)
        source = sample["net_input"]["src_tokens"]
        max_len = min(int(self.max_len_a * source.shape[1] + self.max_len_b), self.max_len - 1)
        if self.min_len > max_len:
            raise UserError(
                f"--min-len {self.min_len}: sentences of {source.shape[1]} source tokens "
                f"get {max_len} at most; raise --max-len-a or --max-len-b"
            )
        with self._precision(source.device):
            encoded = self.model.forward_encoder(sample["net_input"])
        steps = self._folded()
        # fewer records are kept of each small operator than under no_grad
        with torch.inference_mode():
            caches = [
                step.start(self._in_type_of(step, out), self.beam_size)
                for step, out in zip(steps, encoded)
            ]
            hypotheses = self._hypotheses(len(source), max_len, source.device)
            first = self.eos if bos_token is None else bos_token
            tokens = source.new_full((len(source), 1), first)
            for step in range(max_len + 1):
                scores = self._log_probabilities(steps, caches, tokens, step)
                ended = self._constrain(scores, hypotheses, prefix_tokens, step, max_len)
                tokens, parents = hypotheses.choose(step, scores, ended, step == max_len)
                if hypotheses.done.all():
                    break
                for cache in caches:
                    cache.reorder(parents)
                stay = hypotheses.leave()
                if stay is not None:
                    stay = torch.from_numpy(stay).to(source.device)
                    tokens = tokens[stay]
                    for cache in caches:
                        cache.keep(stay)
        if source.device.type == "cpu":
            self._heap = self._heap or HeapKeeper()
            self._heap.after_step()
        return _checked(hypotheses.results())

    def _leave_to_fairseq(self, sample, *options):
        if isinstance(self.search, DiverseBeamSearch):
            # it takes these numbers for rows of the batch; those of a set go beyond them, and
            # fairseq-interactive gives none
            rows = len(next(iter(sample["net_input"].values())))
            sample = {**sample, "id": torch.arange(rows)}
        with self._precision(next(self.model.parameters()).device):
            return super()._generate(sample, *options)

    def _hypotheses(self, sentences: int, max_len: int, device) -> Hypotheses:
        def normalize(n: int):
            return n**self.len_penalty if self.normalize_scores else 1

        if self.beam_size == 1:
            return SingleHypotheses(sentences, self.eos, normalize, max_len + 1)
        return BeamHypotheses(sentences, self.eos, normalize, self.beam_size, device)

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

    def _constrain(self, scores, hypotheses: Hypotheses, prefix, step, max_len) -> Optional[Tensor]:
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
