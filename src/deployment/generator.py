"""Beam search with CTranslate2 that gives fairseq's hypotheses.

The two searches are the same but for one thing: CTranslate2 leaves out tokens that
can't come (padding; the end of sentence at the start) before it normalizes
probabilities, fairseq does so after. For most sentences that is a thousandth of a
score; for an empty source line, where an end at the start is likely, it was 0.8.

With a vocabulary map it leaves out all types that are no candidates of the sentences
translated together: hypotheses have only candidates, and scores are higher.

It also leaves out tokens that would repeat an n-gram before it normalizes, and a prefix
from its scores. Where there is either, or sampling, all hypotheses are scored once more:
their scores and order are those of the model, among all types.
"""

import json
import os
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch
from fairseq.data import Dictionary

from ..checks import checksums
from ..checks.ctranslate2_package import MODEL, VOCABULARY_MAP, require_ctranslate2
from ..errors import UserError
from . import vocabulary_map
from .comparison import load_translator
from .folder import FILES
from .model import vocabulary
from .vocabulary_map import VocabularyMap

_SHARED = "shared_vocabulary.json"  # of a source and a target that have the same

Hypothesis = Tuple[List[str], float]  # tokens with end of sentence, and score


class CTranslate2Generator:
    """Translates fairseq's batches; in the place of ``SequenceGenerator``.

    Args:
        folder: an exported model.
        dictionaries: of source and target.
        generation: fairseq's options of the search.
        limit: most target tokens that the PyTorch model can take.
        origin: option that named the model, for messages.
        use_map: score only the candidates of the folder's vocabulary map, if it has one.

    Attributes:
        map: the vocabulary map in use, or None.

    Raises:
        UserError: the folder is damaged, or of other dictionaries.
    """

    def __init__(
        self,
        folder: str,
        dictionaries: Tuple[Dictionary, Dictionary],
        generation,
        limit: int,
        origin: str,
        use_map: bool = True,
    ):
        source, target = dictionaries
        self.what = origin
        self.files = {}
        for name in sorted(FILES & set(os.listdir(folder))):
            with open(os.path.join(folder, name), "rb") as stream:
                self.files[name] = stream.read()
        checksums.check_export(self.files, origin)
        self.names = vocabulary(source), vocabulary(target)
        self._check_vocabularies()
        self.map = self._map(target, source.eos()) if use_map else None
        # CTranslate2 gives back nothing for an end of sentence alone, which is what
        # fairseq makes of an empty line, unless it is a word like any other
        self.names[0][source.eos()] = "\n"  # in no dictionary
        self.config = self._json("config.json", dict)
        self.translator = load_translator(folder, origin, files=self._search_files())

        self.eos, self.pad, self.unknown = target.eos(), target.pad(), target.unk_string()
        self.numbers = {symbol: i for i, symbol in enumerate(self.names[1])}
        self.symbols_to_strip_from_output = {self.eos}
        self.beam = generation.beam
        if not generation.sampling:
            self.beam = min(self.beam, len(target) - 1)
        self.max_len_a, self.max_len_b = generation.max_len_a, generation.max_len_b
        self.limit = min(limit, self.config.get("max_target_positions", limit))
        self.options = {
            "beam_size": self.beam,
            # without normalization CTranslate2 would stop before --beam are finished
            "length_penalty": (not generation.unnormalized and generation.lenpen) or 1e-9,
            "min_decoding_length": generation.min_len,
            "suppress_sequences": [[target[self.pad]]],
            "return_end_token": True,  # counts in the length, as in fairseq
            "return_scores": True,
            "max_input_length": 0,
            "use_vmap": self.map is not None,
            # on a CPU small batches stay in its caches: 1.2 to 1.4 times the tokens per
            # second that 64 sentences at once give
            "max_batch_size": 16,
        }
        self.rescoring = bool(generation.prefix_size or generation.no_repeat_ngram_size)
        if generation.no_repeat_ngram_size:
            self.options["no_repeat_ngram_size"] = generation.no_repeat_ngram_size
        self.sampling = generation.sampling
        if self.sampling:
            nucleus = generation.sampling_topp > 0
            self.options.update(
                beam_size=1,  # with as many hypotheses, each a sample
                sampling_topk=0 if nucleus else max(generation.sampling_topk, 0),  # 0: all
                sampling_topp=generation.sampling_topp if nucleus else 1,
                sampling_temperature=generation.temperature,
            )
        self.aligning = generation.replace_unk is not None

    def _json(self, name: str, kind: type) -> Any:
        try:
            content = json.loads(self.files[name])
        except (KeyError, ValueError) as error:
            raise UserError(f"{self.what}: its {name} is missing or damaged ({error})") from None
        if not isinstance(content, kind):
            raise UserError(f"{self.what}: its {name} holds no {kind.__name__}; export anew")
        return content

    def _map(self, target: Dictionary, eos: int) -> Optional[VocabularyMap]:
        if VOCABULARY_MAP not in self.files:
            return None
        try:
            text = self.files[VOCABULARY_MAP].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.what}: its {VOCABULARY_MAP} is damaged ({error}); export anew"
            ) from None
        found = vocabulary_map.from_text(text, self.names, target, self.what)
        # the end of every source, which gets another name
        found.common.extend(found.candidates.pop(eos, ()))
        return found

    def _check_vocabularies(self) -> None:
        for side, names in zip(("source", "target"), self.names):
            name = _SHARED if _SHARED in self.files else f"{side}_vocabulary.json"
            its = self._json(name, list)
            if its != names:
                raise UserError(
                    f"{self.what}: its {side} vocabulary ({len(its)} types) is not that of "
                    f"the data ({len(names)} types); export with this data"
                )

    def _search_files(self) -> Dict[str, bytes]:
        """The folder's files, with vocabularies and ends of sentence as in ``names``."""
        files = {name: data for name, data in self.files.items() if name != _SHARED}
        for name, content in (
            ("config.json", {**self.config, "add_source_eos": False}),
            ("source_vocabulary.json", self.names[0]),
            ("target_vocabulary.json", self.names[1]),
        ):
            files[name] = json.dumps(content).encode()
        files.pop(checksums.NAME, None)
        files.pop(VOCABULARY_MAP, None)
        if self.map is not None:
            text = vocabulary_map.to_text(self.map, self.names)
            files[VOCABULARY_MAP] = text.encode()
        return files

    @property
    def quantization(self) -> str:
        return self.config.get("quantization", "unknown")

    def facts(self) -> Dict[str, Any]:
        """What the report says of the engine."""
        return {
            "engine": f"ctranslate2 {require_ctranslate2(self.what).__version__}",
            "quantization": self.quantization,
            "compute_type": self.translator.compute_type,
            "model_bytes": len(self.files[MODEL]),
            "device": "cpu",
            **({} if self.map is None else {"vocabulary_map": True}),
        }

    def check_lengths(self, dataset, skipped: List[int]) -> None:
        """Refuse sources that are longer than the exported table of positions.

        Args:
            skipped: numbers of the sentences that are left out.

        Raises:
            UserError: names the first such sentence.
        """
        limit = self.config.get("max_source_positions", np.inf)
        too_long = np.flatnonzero(np.asarray(dataset.src_sizes) > limit)
        too_long = np.setdiff1d(too_long, skipped)
        if len(too_long):
            first = int(too_long[0])
            raise UserError(
                f"{self.what}: was exported for {limit} source tokens, sentence {first} "
                f"has {dataset.src_sizes[first]}; export with a larger --max-length"
            )

    @torch.no_grad()
    def generate(
        self, models, sample: Dict[str, Any], prefix_tokens=None, constraints=None
    ) -> List[List[Dict[str, Any]]]:
        """Hypotheses of each sentence, best first, as fairseq's generator gives them.

        There are no scores of tokens. With ``--replace-unk``, those of a hypothesis with
        unknown tokens have an ``alignment``: a place in the source for each token.
        """
        tokens = sample["net_input"]["src_tokens"].cpu()
        names = self.names[0]
        sources = [[names[i] for i in row[row != self.pad].tolist()] for row in tokens]
        length = min(int(self.max_len_a * tokens.shape[1] + self.max_len_b), self.limit - 1)
        if prefix_tokens is None:
            found = self._search(sources, None, length)
        else:
            found = self._continue(sources, self._prefixes(prefix_tokens, length), length)
        if self.rescoring or self.sampling:
            found = self._rescored(sources, found)
        return [
            [self._as_fairseq(source, *h) for h in hypotheses]
            for source, hypotheses in zip(sources, found)
        ]

    def _prefixes(self, tokens, length: int) -> List[List[str]]:
        """The beginnings of translations; one that is all of it ends with its end."""
        prefixes = []
        for row in tokens.tolist():
            numbers = [number for number in row if number != self.pad]
            if self.eos in numbers:
                numbers = numbers[: numbers.index(self.eos) + 1]
            if len(numbers) > length or (len(numbers) == length and numbers[-1] != self.eos):
                numbers = [*numbers[:length], self.eos]
            prefixes.append([self.names[1][number] for number in numbers])
        return prefixes

    def _continue(self, sources, prefixes: List[List[str]], length: int):
        """Hypotheses that begin with prefixes, which are searched for by their length.

        CTranslate2 goes on after an end of sentence that comes right after a prefix, so a word
        comes first.
        """
        end = self.names[1][self.eos]
        found = [[(prefix, 0.0)] for prefix in prefixes]
        groups: Dict[int, List[int]] = {}
        for i, prefix in enumerate(prefixes):
            if prefix[-1] != end:
                groups.setdefault(len(prefix), []).append(i)
        for members in groups.values():
            parts = [sources[i] for i in members], [prefixes[i] for i in members]
            for i, hypotheses in zip(members, self._search(*parts, length)):
                found[i] = hypotheses
        return found

    def _options(self, prefixes) -> Dict[str, Any]:
        if prefixes is None:
            return self.options
        least = max(self.options["min_decoding_length"], len(prefixes[0]) + 1)
        return {**self.options, "min_decoding_length": least}

    def _search(self, sources, prefixes, length: int) -> List[List[Hypothesis]]:
        found = [
            self._hypotheses(result)
            for result in self.translator.translate_batch(
                sources,
                prefixes,
                num_hypotheses=self.beam,
                max_decoding_length=length + 1,  # with end of sentence
                **self._options(prefixes),
            )
        ]
        if self.sampling:
            end = self.names[1][self.eos]
            return [
                [(w if w[-1] == end else [*w[:length], end], score) for w, score in hypotheses]
                for hypotheses in found
            ]
        # a search that came to the last step shows it: too few had finished before
        at_limit = [
            i
            for i, hypotheses in enumerate(found)
            if any(len(words) > length for words, _ in hypotheses)
        ]
        if at_limit:
            parts = [[x[i] for i in at_limit] if x else None for x in (sources, prefixes)]
            for i, hypotheses in zip(at_limit, self._end_at_limit(*parts, length)):
                found[i] = hypotheses
        return found

    def _rescored(self, sources, found: List[List[Hypothesis]]) -> List[List[Hypothesis]]:
        """The hypotheses with the model's scores of all their tokens, best first."""
        penalty = self.options["length_penalty"]
        scored = self.translator.score_batch(
            [source for source, hypotheses in zip(sources, found) for _ in hypotheses],
            [words[:-1] for hypotheses in found for words, _ in hypotheses],
            max_input_length=0,
        )
        totals = (sum(result.log_probs) for result in scored)
        return [
            sorted(
                ((words, next(totals) / len(words) ** penalty) for words, _ in hypotheses),
                key=lambda hypothesis: -hypothesis[1],
            )
            for hypotheses in found
        ]

    def _align(self, source: List[str], words: List[str]) -> List[int]:
        """For each word of a hypothesis the word of the source that it looks at most."""
        (result,) = self.translator.translate_batch(
            [source],
            [words[:-1]],
            beam_size=1,
            max_decoding_length=len(words),
            return_attention=True,
            return_end_token=True,
            max_input_length=0,
        )
        attention = np.asarray(result.attention[0])[:, : max(1, len(source) - 1)]
        return attention.argmax(axis=1).tolist()

    @staticmethod
    def _hypotheses(result) -> List[Hypothesis]:
        return list(zip(result.hypotheses, result.scores))

    def _as_fairseq(self, source: List[str], words: List[str], score: float) -> Dict[str, Any]:
        unknown = self.aligning and self.unknown in words
        return {
            "tokens": torch.tensor([self.numbers[word] for word in words]),
            "score": torch.tensor(score),
            "attention": None,
            "alignment": self._align(source, words) if unknown else torch.empty(0),
            "positional_scores": None,
        }

    def _end_at_limit(self, sources: List[List[str]], prefixes, length: int):
        """Hypotheses where the limit is reached: fairseq ends them, CTranslate2 does not.

        fairseq lets all unfinished hypotheses of ``length`` tokens end there, and the
        best of them fill up the list. So all finished ones are collected, whatever
        their number, and the unfinished ones get the score of their end. (That is
        among all types, also with a vocabulary map: CTranslate2 has no other.)
        """
        end = self.names[1][self.eos]
        penalty = self.options["length_penalty"]
        number = 1 if self.beam == 1 else self.beam * length
        results = self.translator.translate_batch(
            sources,
            prefixes,
            num_hypotheses=number,
            patience=number / self.beam,
            max_decoding_length=length,
            **self._options(prefixes),
        )
        finished: List[List[Hypothesis]] = []
        unfinished = []  # sentence, words, sum of their scores
        for i, result in enumerate(results):
            hypotheses = self._hypotheses(result)
            finished.append([h for h in hypotheses if h[0][-1] == end])
            unfinished += [
                (i, words, score * length**penalty)
                for words, score in hypotheses
                if words[-1] != end
            ]
        scored = self.translator.score_batch(
            [sources[i] for i, _, _ in unfinished],
            [words for _, words, _ in unfinished],
            max_input_length=0,
        )
        ended: List[List[Hypothesis]] = [[] for _ in sources]
        for (i, words, total), result in zip(unfinished, scored):
            score = (total + result.log_probs[-1]) / (length + 1) ** penalty
            ended[i].append(([*words, end], score))
        for hypotheses, more in zip(finished, ended):
            more.sort(key=lambda h: -h[1])
            hypotheses += more[: self.beam - len(hypotheses)]
            hypotheses.sort(key=lambda h: -h[1])
        return finished
