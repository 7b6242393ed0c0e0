"""Translates text with the exported model beside this file: CTranslate2, no PyTorch.

    python translator.py < source.txt > translations.txt

    from translator import Translator
    print(Translator("FOLDER").translate(["ein hund rennt ."]))

export.py puts this file into the folder of the model. With the tokenizer and the codes that
export.py was given (text.json) it translates raw text; without, tokens as the model's
training data have them. Needs ctranslate2, and sacremoses, subword-nmt or sentencepiece as
far as text.json names them.
"""

import hashlib
import json
import os
import sys
from typing import Dict, List, Optional, Sequence

TEXT, CODES, PIECES, MAP = "text.json", "bpe.codes", "sentencepiece.model", "vmap.txt"
SUMS = "SHA256SUMS"
VOCABULARY = "vocabulary.txt"  # types that codes may make
PAD, END, SEPARATOR = "<pad>", "</s>", "@@"
LONGEST = 200  # tokens of a translation, as fairseq's --max-len-b has it


def check(folder: str) -> None:
    """Compare a folder's files with their checksums, where it has any.

    Raises:
        ValueError: one is missing or damaged.
    """
    sums = os.path.join(folder, SUMS)
    if not os.path.isfile(sums):
        return
    with open(sums, encoding="utf-8", errors="replace") as stream:
        lines = stream.read().splitlines()
    for line in lines:
        digest, _, name = line.partition("  ")
        path = os.path.join(folder, name)
        if not name or not os.path.isfile(path):
            raise ValueError(f"{folder}: {name or SUMS} is missing or damaged; export anew")
        with open(path, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise ValueError(f"{path}: is damaged (not what {SUMS} says); export anew")


class Text:
    """Text to tokens and back, as fairseq's ``--tokenizer`` and ``--bpe`` do it.

    Args:
        folder: of the exported model.
        options: content of text.json.
    """

    def __init__(self, folder: str, options: Dict[str, object]):
        self.lowercase, self.bpe = options.get("lowercase", False), options.get("bpe")
        self.moses = None
        if options.get("tokenizer") == "moses":
            from sacremoses import MosesDetokenizer, MosesTokenizer

            self.moses = MosesTokenizer(options["source_lang"])
            self.detokenizer = MosesDetokenizer(options["target_lang"])
            self.dashes = not options.get("moses_no_dash_splits", False)
        if self.bpe == "subword_nmt":
            from subword_nmt.apply_bpe import BPE, read_vocabulary

            vocabulary, path = None, os.path.join(folder, VOCABULARY)
            if os.path.isfile(path):
                with open(path, encoding="utf-8") as stream:
                    vocabulary = read_vocabulary(stream, None)
            with open(os.path.join(folder, CODES), encoding="utf-8") as stream:
                self.codes = BPE(stream, vocab=vocabulary)
        elif self.bpe == "sentencepiece":
            from sentencepiece import SentencePieceProcessor

            self.pieces = SentencePieceProcessor(model_file=os.path.join(folder, PIECES))

    def encode(self, line: str) -> List[str]:
        if self.moses is not None:
            line = self.moses.tokenize(
                line, aggressive_dash_splits=self.dashes, return_str=True, escape=True
            )
        line = line.lower() if self.lowercase else line  # after Moses, as the data were made
        if self.bpe == "sentencepiece":
            return self.pieces.encode(line, out_type=str)
        return (self.codes.process_line(line) if self.bpe else line).split()

    def decode(self, tokens: Sequence[str]) -> str:
        line = " ".join(tokens)
        if self.bpe == "sentencepiece":
            line = line.replace(" ", "").replace("\u2581", " ").strip()
        elif self.bpe:
            line = f"{line} ".replace(f"{SEPARATOR} ", "").rstrip()
        return line if self.moses is None else self.detokenizer.detokenize(line.split())


def read_text(folder: str) -> Optional[Text]:
    """How text is split, as a folder says; None if it says nothing."""
    path = os.path.join(folder, TEXT)
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as stream:
        return Text(folder, json.load(stream))


class Translator:
    """The exported model of a folder.

    Args:
        folder: that export.py made.
        threads: 0 for all cores.

    Raises:
        ValueError: it is no such folder.
    """

    def __init__(self, folder: str, threads: int = 0):
        import ctranslate2

        config = os.path.join(folder, "config.json")
        if not os.path.isfile(config):
            raise ValueError(f"{folder}: holds no exported model; give a folder of export.py")
        check(folder)
        with open(config, encoding="utf-8") as stream:
            self.config = json.load(stream)
        self.text = read_text(folder)
        self.has_map = os.path.isfile(os.path.join(folder, MAP))
        self.engine = ctranslate2.Translator(folder, device="cpu", intra_threads=threads)

    def translate(
        self, sentences: Sequence[str], beam: int = 5, prefix: Optional[str] = None
    ) -> List[str]:
        """Translate sentences.

        Args:
            sentences: raw text where the folder has a tokenizer or codes, else tokens with
                spaces between.
            prefix: tokens that every translation begins with, a language tag for example; not
                part of what is returned.

        Raises:
            ValueError: a sentence is too long for the model's positions.
        """
        if isinstance(sentences, str):
            raise ValueError("sentences: give a list of them, not one string")
        sources = [self.text.encode(x) if self.text else x.split() for x in sentences]
        limit = self.config.get("max_source_positions", 1024)
        for number, source in enumerate(sources):
            if len(source) >= limit:
                raise ValueError(
                    f"sentence {number} has {len(source)} tokens, the model takes {limit - 1} "
                    "and an end of sentence; divide it"
                )
        target = self.config.get("max_target_positions", 1024)
        numbers = [n for n, source in enumerate(sources) if source]  # nothing out of nothing
        start = prefix.split() if prefix else []
        found = self.engine.translate_batch(
            [sources[n] for n in numbers],
            [start] * len(numbers) if start else None,
            beam_size=beam,
            max_batch_size=16,
            max_input_length=0,
            max_decoding_length=min(target - 1, LONGEST),
            suppress_sequences=[[PAD]],
            return_end_token=True,  # counts in the length, as in fairseq
            use_vmap=self.has_map,
        )
        texts = [""] * len(sources)
        for number, result in zip(numbers, found):
            tokens = [t for t in result.hypotheses[0][len(start) :] if t != END]
            texts[number] = self.text.decode(tokens) if self.text else " ".join(tokens)
        return texts


def main() -> None:
    """Translate standard input, a sentence a line."""
    folder = os.path.dirname(os.path.abspath(__file__))
    lines = [line.rstrip("\n") for line in sys.stdin]
    for line in Translator(folder).translate(lines):
        print(line)


if __name__ == "__main__":
    main()
