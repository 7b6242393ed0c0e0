"""The lines of translations, those of fairseq-generate to the letter, and their score."""

import copy
import math
from typing import Any, Dict, Optional, Sequence, TextIO

from fairseq import scoring
from fairseq.data.data_utils import post_process
from fairseq_cli.generate import get_symbols_to_strip_from_output

from .translate import Translation


class OutputLines:
    """Prints translations as fairseq-generate does, and keeps the best of each sentence.

    A generator without scores of tokens (``positional_scores`` None) gets no P- lines.

    Args:
        cfg: fairseq's configuration of the run.
        generator: what made the hypotheses.
        stream: where the lines go.
        replacements: source words to target words, for unknown words; without it they stay.

    Attributes:
        hypotheses: sentence number to the text of its best hypothesis, as in its D- line.
    """

    def __init__(
        self, cfg, task, generator, stream: TextIO, replacements: Optional[Dict[str, str]] = None
    ):
        self.cfg, self.stream = cfg, stream
        self.source, self.target = task.source_dictionary, task.target_dictionary
        self.ignored = get_symbols_to_strip_from_output(generator)
        self.tokenizer, self.bpe = task.build_tokenizer(cfg.tokenizer), task.build_bpe(cfg.bpe)
        self.symbol = cfg.common_eval.post_process
        self.scorer = scoring.build_scorer(cfg.scoring, self.target)
        self.scored = False
        self.replacements = replacements
        # text is scored by numbers of its words, and the words may be new
        same = self.symbol is None and replacements is None
        self.words = None if same else copy.deepcopy(self.target)
        self.hypotheses: Dict[int, str] = {}

    def write(self, translation: Translation) -> None:
        """Print a sentence's lines and count its best hypothesis."""
        number, quiet = translation.number, self.cfg.common_eval.quiet
        target = None
        if not quiet:
            text = self._plain(self.source.string(translation.source, self.symbol))
            self._print("S", number, text)
        if translation.target is not None:
            target = self._plain(self._string(translation.target, escape_unk=True))
            if not quiet:
                self._print("T", number, target)
        kept = translation.hypotheses[: 1 if quiet else self.cfg.generation.nbest]
        for rank, hypothesis in enumerate(kept):
            tokens = hypothesis["tokens"].int().cpu()
            text = self._string(tokens)
            if self.replacements is not None and len(hypothesis["alignment"]):
                text = self._replaced(tokens, hypothesis["alignment"], translation.source)
            plain = self._plain(text)
            if not quiet:
                self._print_hypothesis(number, hypothesis, text, plain)
            if rank == 0:
                self.hypotheses[number] = plain
                if target is not None:
                    self._score(translation.target, target, tokens, plain)

    def _string(self, tokens, **options) -> str:
        return self.target.string(
            tokens, self.symbol, extra_symbols_to_ignore=self.ignored, **options
        )

    def _replaced(self, tokens, alignment: Sequence[int], source) -> str:
        """Text of a hypothesis with source words, or theirs, in the place of unknown ones.

        fairseq looks for them after it has joined pieces of words, where numbers of tokens
        mean nothing.
        """
        words = []
        for token, place in zip(tokens.tolist(), alignment):
            word = self.target[token]
            if token == self.target.unk():
                word = self.source[int(source[place])]
                word = self.replacements.get(word, word)
            if token not in self.ignored:
                words.append(word)
        return post_process(" ".join(words), self.symbol)

    def _plain(self, text: str) -> str:
        """Text without the pieces of ``--bpe`` and the tokens of ``--tokenizer``."""
        text = text if self.bpe is None else self.bpe.decode(text)
        return text if self.tokenizer is None else self.tokenizer.decode(text)

    def _print(self, kind: str, number: int, *columns: Any) -> None:
        # format, not str: a score is a tensor
        print(f"{kind}-{number}", *map(format, columns), sep="\t", file=self.stream)

    def _print_hypothesis(self, number: int, hypothesis: Dict[str, Any], text, plain) -> None:
        score = hypothesis["score"] / math.log(2)  # to base 2
        self._print("H", number, score, text)
        self._print("D", number, score, plain)
        if hypothesis["positional_scores"] is not None:
            scores = hypothesis["positional_scores"].div(math.log(2)).tolist()
            self._print("P", number, " ".join(map("{:.4f}".format, scores)))
        kind, alignment = self.cfg.generation.print_alignment, hypothesis["alignment"]
        if kind == "hard":
            self._print("A", number, " ".join(f"{s}-{t}" for s, t in alignment))
        if kind == "soft":
            self._print("A", number, " ".join(",".join(row) for row in alignment))

    def _score(self, target_tokens, target: str, tokens, plain: str) -> None:
        self.scored = True
        if hasattr(self.scorer, "add_string"):
            self.scorer.add_string(target, plain)
            return
        if self.words is not None:
            target_tokens = self.words.encode_line(target, add_if_not_exist=True)
            tokens = self.words.encode_line(plain, add_if_not_exist=True)
        self.scorer.add(target_tokens, tokens)

    def finish(self) -> None:
        """Print fairseq-generate's last line, where there was something to compare with."""
        if self.scored:
            subset, beam = self.cfg.dataset.gen_subset, self.cfg.generation.beam
            try:
                result = self.scorer.result_string()
            except ZeroDivisionError:  # fairseq's, where every hypothesis is empty
                result = "no score, the translations are empty"
            print(f"Generate {subset} with beam={beam}: {result}", file=self.stream)
