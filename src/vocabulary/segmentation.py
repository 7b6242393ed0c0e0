"""Splitting text anew into the types of another vocabulary.

A :class:`Splitter` knows how the tokens of some data were made: by subword-nmt's byte-pair
encoding (Sennrich et al., 2016, Neural Machine Translation of Rare Words with Subword
Units) or by a SentencePiece model (Kudo and Richardson, 2018). Restricted to a vocabulary
it splits words as the encoder does with that vocabulary, so that data which are split anew
and text which is encoded later come out alike.
"""

import copy
import io
from abc import ABC, abstractmethod
from contextlib import redirect_stderr
from typing import Collection, FrozenSet, Iterator, List, Optional, Sequence, Tuple

from subword_nmt.apply_bpe import BPE, recursive_split

from ..errors import UserError

Word = Tuple[str, ...]  # its types in order


class Splitter(ABC):
    """Splits words into the types of a vocabulary.

    Attributes:
        name: option and file, for messages.
        vocabulary: types that words may be split into.
    """

    name: str
    vocabulary: FrozenSet[str] = frozenset()

    @abstractmethod
    def over(self, vocabulary: Collection[str]) -> "Splitter":
        """The same splitter for another vocabulary."""

    @abstractmethod
    def makes(self, symbol: str) -> bool:
        """Whether the encoder can produce this type of more than one character."""

    @abstractmethod
    def text(self, word: Sequence[str]) -> str:
        """What the types of a word spell."""

    @abstractmethod
    def words(self, symbols: Sequence[str], isolated: Collection[str]) -> Iterator[Word]:
        """The words of a sentence.

        Args:
            isolated: types that are words of their own (unknown words, tags).
        """

    @abstractmethod
    def parts(self, symbol: str) -> Word:
        """Smaller types that spell a type, of the vocabulary where there are such."""

    @abstractmethod
    def is_character(self, symbol: str) -> bool:
        """Whether a type is one character or byte, without which text can't be written."""

    @abstractmethod
    def _encode(self, word: Word) -> Word:
        """What the encoder makes of a word's text."""

    @abstractmethod
    def save(self, folder: str, language: str, counts: Sequence[Tuple[str, int]]) -> List[str]:
        """Write what the encoder needs to use the vocabulary; returns the names.

        Args:
            counts: the vocabulary's types with their numbers in the training data.
        """

    def split(self, word: Word) -> Word:
        """The word in types of the vocabulary.

        Where the encoder's own way would leave the vocabulary or change the text, the
        word keeps its types and only those outside of the vocabulary are replaced.
        """
        found = self._encode(word)
        if self.vocabulary.issuperset(found) and self.text(found) == self.text(word):
            return found
        return tuple(
            part
            for symbol in word
            for part in ((symbol,) if symbol in self.vocabulary else self.parts(symbol))
        )

    def can_write(self, symbol: str) -> bool:
        """Whether smaller types of the vocabulary spell a type."""
        parts = self.parts(symbol)
        return len(parts) > 1 and self.vocabulary.issuperset(parts)


class BytePairs(Splitter):
    """Codes of subword-nmt; a type that continues ends with ``@@``.

    Raises:
        UserError: the file is no such code.
    """

    SEPARATOR = "@@"

    def __init__(self, path: str, option: str = "--bpe-codes"):
        self.name = f"{option} {path}"
        text = _read_text(path, self.name)
        lines = [line for line in text.split("\n") if line]
        for number, line in enumerate(lines):
            if not line.startswith("#version") and len(line.strip("\r ").split(" ")) != 2:
                raise UserError(
                    f"{self.name}: line {number + 1} is {line[:40]!r}, a merge of two types "
                    "is expected; give the codes of subword-nmt learn-bpe"
                )
        if not lines:
            raise UserError(f"{self.name}: is empty; give the codes of subword-nmt learn-bpe")
        with redirect_stderr(io.StringIO()):
            self._bpe = BPE(io.StringIO(text))

    def over(self, vocabulary):
        other = copy.copy(self)
        other._bpe = copy.copy(self._bpe)
        other.vocabulary = frozenset(vocabulary)
        other._bpe.vocab, other._bpe.cache = other.vocabulary, {}
        return other

    def makes(self, symbol):
        plain, final = self._plain(symbol)
        return plain + ("</w>" if final else "") in self._bpe.bpe_codes_reverse

    def text(self, word):
        joined = "".join(symbol.removesuffix(self.SEPARATOR) for symbol in word)
        return joined + ("" if self._plain(word[-1])[1] else self.SEPARATOR)

    def words(self, symbols, isolated):
        word: List[str] = []
        for symbol in symbols:
            if symbol in isolated:
                if word:
                    yield tuple(word)
                yield (symbol,)
                word = []
                continue
            word.append(symbol)
            if self._plain(symbol)[1]:
                yield tuple(word)
                word = []
        if word:
            yield tuple(word)

    def parts(self, symbol):
        plain, final = self._plain(symbol)
        codes = self._bpe.bpe_codes_reverse
        parts = list(recursive_split(plain, codes, self.vocabulary, self.SEPARATOR, final))
        marked = [part + self.SEPARATOR for part in parts]
        return (*marked[:-1], parts[-1] if final else marked[-1])

    def is_character(self, symbol):
        return len(self._plain(symbol)[0]) <= 1

    def save(self, folder, language, counts):
        name = f"vocabulary.{language}"
        with open(f"{folder}/{name}", "w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{symbol} {count}\n" for symbol, count in counts)
        return [name]

    def _encode(self, word):
        text = self.text(word)
        if text.endswith(self.SEPARATOR):  # cut off: no word of the text
            return word
        return tuple(self._bpe.segment_tokens([text]))

    def _plain(self, symbol: str) -> Tuple[str, bool]:
        """A type without its mark, and whether it ends a word."""
        plain = symbol.removesuffix(self.SEPARATOR)
        return (plain, plain == symbol) if plain else (symbol, True)


class Pieces(Splitter):
    """A SentencePiece model; a type that begins a word begins with ``▁``.

    Pieces outside of the vocabulary are marked as unused in a copy of the model.

    Raises:
        UserError: the file is no such model, or the package is not installed.
    """

    SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
    _UNUSED, _NORMAL = 5, 1  # of ModelProto.SentencePiece.Type

    def __init__(self, path: str, option: str = "--sentencepiece-model"):
        self.name = f"{option} {path}"
        try:
            from sentencepiece import SentencePieceProcessor
            from sentencepiece.sentencepiece_model_pb2 import ModelProto
        except ImportError as error:
            raise UserError(
                f"{self.name}: needs the packages sentencepiece and protobuf ({error}); run "
                "pip install -r requirements/run.txt"
            ) from None
        self._load = SentencePieceProcessor
        try:
            with open(path, "rb") as stream:
                self._model = ModelProto.FromString(stream.read())
            self._processor = self._load(model_proto=self._model.SerializeToString())
        except OSError as error:
            raise UserError(f"{self.name}: can't be read ({error.strerror})") from None
        except Exception:  # protobuf's DecodeError, sentencepiece's RuntimeError
            raise UserError(
                f"{self.name}: is no SentencePiece model; give the .model file of spm_train"
            ) from None
        self._pieces = {piece.piece for piece in self._model.pieces}

    def over(self, vocabulary):
        other = copy.copy(self)
        other.vocabulary = frozenset(vocabulary)
        other._model = copy.deepcopy(self._model)
        for piece in other._model.pieces:
            if piece.type == self._NORMAL and not self.is_character(piece.piece):
                if piece.piece not in other.vocabulary:
                    piece.type = self._UNUSED
        other._processor = self._load(model_proto=other._model.SerializeToString())
        return other

    def makes(self, symbol):
        return symbol in self._pieces

    def text(self, word):
        return "".join(word)

    def words(self, symbols, isolated):
        word: List[str] = []
        for symbol in symbols:
            alone = symbol in isolated
            if word and (alone or symbol.startswith(self.SPACE)):
                yield tuple(word)
                word = []
            if alone:
                yield (symbol,)
            else:
                word.append(symbol)
        if word:
            yield tuple(word)

    def parts(self, symbol):
        if self._byte(symbol):
            return (symbol,)
        return tuple(symbol)

    def is_character(self, symbol):
        return len(symbol) <= 1 or self._byte(symbol)

    def save(self, folder, language, counts):
        names = f"vocabulary.{language}", f"sentencepiece.{language}.model"
        with open(f"{folder}/{names[0]}", "w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{symbol}\t{count}\n" for symbol, count in counts)
        with open(f"{folder}/{names[1]}", "wb") as stream:
            stream.write(self._model.SerializeToString())
        return list(names)

    def _encode(self, word):
        text = self.text(word).replace(self.SPACE, " ")
        return tuple(self._processor.encode(text, out_type=str))

    @staticmethod
    def _byte(symbol: str) -> bool:
        return len(symbol) == 6 and symbol.startswith("<0x") and symbol.endswith(">")


def make_splitter(bpe_codes: Optional[str], model: Optional[str]) -> Optional[Splitter]:
    """The splitter that the command line names, None without one.

    Raises:
        UserError: both are named, or the file can't be used.
    """
    if bpe_codes and model:
        raise UserError(
            f"--bpe-codes {bpe_codes}, --sentencepiece-model {model}: the data's tokens come "
            "from one of them; leave the other out"
        )
    if bpe_codes:
        return BytePairs(bpe_codes)
    return Pieces(model) if model else None


def _read_text(path: str, name: str) -> str:
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as stream:
            return stream.read()
    except OSError as error:
        raise UserError(f"{name}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{name}: is no text; give the codes of subword-nmt learn-bpe") from None
