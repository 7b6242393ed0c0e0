"""A corpus split by BPE with its text, and trim_vocabulary.py run here."""

import contextlib
import io
import random
from pathlib import Path
from typing import Dict, List

import torch
from fairseq.data import Dictionary, data_utils
from fairseq.data.indexed_dataset import make_builder
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe

from src import trim_vocabulary
from src.models.srp_decoder import SRPDecoder
from tests.support.training import RUN, TINY, run_training
from tests.support.translation import run_tool, sentence_lines

STEMS = ["haus", "baum", "katze", "hund", "strasse", "wagen", "garten", "berg", "fluss", "nacht"]
ENDINGS = ["", "e", "en", "er", "chen"]
LANGUAGES = ("de", "en")


def sentences(seed: int, number: int) -> List[str]:
    generator = random.Random(seed)
    words = [stem + ending for stem in STEMS for ending in ENDINGS]
    weights = [1 / (1 + rank) for rank in range(len(words))]
    return [
        " ".join(generator.choices(words, weights, k=generator.randint(3, 7)))
        for _ in range(number)
    ]


def translation(line: str) -> str:
    """A language of its own with some types in common."""
    return line.replace("a", "o").replace("ch", "k").replace("s", "z")


class Corpus:
    """A folder of data split by BPE.

    Attributes:
        text: sentences by split and language, before BPE.
        codes: path of the codes.
    """

    def __init__(self, folder: Path, joined: bool, unused: int = 7, merges: int = 60):
        folder.mkdir()
        self.folder, self.codes = str(folder), str(folder.parent / f"{folder.name}.codes")
        self.text: Dict[tuple, List[str]] = {}
        for seed, (split, number) in enumerate((("train", 200), ("valid", 11), ("test", 9))):
            lines = sentences(seed, number)
            self.text[split, "de"], self.text[split, "en"] = lines, list(map(translation, lines))
        learnt = io.StringIO()
        train = [line for lang in LANGUAGES for line in self.text["train", lang]]
        learn_bpe(train, learnt, merges)
        Path(self.codes).write_text(learnt.getvalue())
        bpe = BPE(io.StringIO(learnt.getvalue()))
        dictionaries = {lang: Dictionary() for lang in LANGUAGES}
        if joined:
            dictionaries["en"] = dictionaries["de"]
        for lang in LANGUAGES:
            for character in "abcdefghijklmnoprstuvwz":  # as a large model has them
                dictionaries[lang].add_symbol(character, 0)
                dictionaries[lang].add_symbol(f"{character}@@", 0)
            for split in ("train", "valid", "test"):
                for line in self.text[split, lang]:
                    dictionaries[lang].encode_line(bpe.segment(line), add_if_not_exist=True)
        for lang in LANGUAGES if not joined else LANGUAGES[:1]:
            dictionaries[lang].add_symbol("__en__", 0)
            for number in range(unused):
                dictionaries[lang].add_symbol(f"madeupword{number:04}", 0)
        for lang in LANGUAGES:
            dictionaries[lang].save(str(folder / f"dict.{lang}.txt"))
            for split in ("train", "valid", "test"):
                prefix = str(folder / f"{split}.de-en.{lang}")
                builder = make_builder(f"{prefix}.bin", "mmap", len(dictionaries[lang]))
                for line in self.text[split, lang]:
                    builder.add_item(dictionaries[lang].encode_line(bpe.segment(line)))
                builder.finalize(f"{prefix}.idx")
        (folder / "raw.test.en").write_text("\n".join(self.text["test", "en"]) + "\n")


def dictionary(folder, lang) -> Dictionary:
    return Dictionary.load(f"{folder}/dict.{lang}.txt")


def decoded(folder, split, lang) -> List[str]:
    words = dictionary(folder, lang)
    dataset = data_utils.load_indexed_dataset(f"{folder}/{split}.de-en.{lang}", words)
    return [words.string(dataset[i], "@@ ") for i in range(len(dataset))]


def train(data: str, folder: Path, *options: str) -> str:
    # only real losses: smoothing would teach the model to predict what never occurs
    arguments = [data, *TINY, *RUN, "--label-smoothing", "0", "--lr", "1e-2", *options]
    run_training([*arguments, "--max-epoch", "6", "--save-dir", folder])
    return str(folder / "checkpoint_last.pt")


def trim(corpus: Corpus, path: str, folder: Path, *options: str, data=None):
    """The new folder, the new checkpoint and what was printed."""
    output, checkpoint = str(folder / "data"), str(folder / "trimmed.pt")
    arguments = [data or corpus.folder, "--path", path, *options]
    if "--dry-run" not in options:
        arguments += ["--output", output, "--output-checkpoint", checkpoint]
    printed = run_tool(lambda: trim_vocabulary.main(arguments), arguments)
    return output, checkpoint, printed


@contextlib.contextmanager
def without_types(old: Dictionary, new: Dictionary):
    """Models of the old dictionary give what is not in the new one no probability."""
    gone = [number for number, symbol in enumerate(old.symbols) if symbol not in new]
    output_layer = SRPDecoder.output_layer

    def masked(self, features, **kwargs):
        return output_layer(self, features, **kwargs).index_fill(-1, torch.tensor(gone), -1e9)

    SRPDecoder.output_layer = masked
    try:
        yield
    finally:
        SRPDecoder.output_layer = output_layer


def scores(output: str) -> List[float]:
    """Log-probabilities of the hypotheses that generate.py printed."""
    return [float(line.split("\t")[1]) for line in sentence_lines(output, "H")]
