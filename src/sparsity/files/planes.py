"""Arrays of words as planes of bytes, deflated where that pays.

A float's top byte holds its sign and most of its exponent, which repeat themselves; the
lower bytes of a mantissa do not. So words are split by the significance of their bytes,
and each plane is deflated, or kept as it is, by the entropy of a sample. What is read
back may be anybody's, so everything is checked.
"""

import math
from functools import lru_cache
from typing import Any, Dict, FrozenSet, List, Optional, Tuple

import numpy as np
from isal import igzip_lib, isal_zlib

from ..errors import SparsityError

SMALL = 64  # bytes not worth any encoding
_SAMPLE = 1024  # words that a choice is made from
_INCOMPRESSIBLE = 7.6  # bits a byte (entropy) beyond which deflating gains too little
_REPETITIVE = 1.2  # bits a byte below which matches beat Huffman codes alone
_DEFLATE_RATIO = 1032  # the most that deflate can shrink anything
# how to deflate: level, and bits of the distance within which sequences are matched
_MATCHES = (3, 15)
_CODES = (1, 1)  # hardly any: Huffman codes alone, smallest and fastest for random bytes

# by how often a sample has a byte: c * log2(c), which its entropy lacks, less what a
# sample shows too little for every byte it has (correction of Miller and Madow)
_TERMS = np.arange(_SAMPLE + 1) * np.log2(np.maximum(np.arange(_SAMPLE + 1), 1))
_TERMS[1:] = _TERMS[1:] - 0.5 / math.log(2)
_FIRST_COUNTS = np.arange(8) * 256  # where the counts of each plane begin

Parts = List[np.ndarray]  # the bytes of an encoded tensor, one after another
Description = Dict[str, Any]  # of an encoding, for JSON


def entropy(words: np.ndarray) -> np.ndarray:
    """Entropy of each plane of bytes, from the lowest, in bits a byte: ``[width]``.

    Args:
        words: a sample, 1 to 1024.
    """
    n, width = len(words), words.itemsize
    data = np.ascontiguousarray(words).view(np.uint8).reshape(n, width)
    counts = np.bincount((data + _FIRST_COUNTS[:width]).ravel(), minlength=256 * width)
    terms = _TERMS[counts].reshape(width, 256).sum(1)
    return math.log2(n) - (terms + 0.5 / math.log(2)) / n


def sample_of(words: np.ndarray) -> np.ndarray:
    """A sample of words from the whole array."""
    # an odd step does not fall into the step of rows
    return words[:: (len(words) // _SAMPLE) | 1][:_SAMPLE]


def word_bytes(sample: np.ndarray, compress: bool) -> float:
    """Estimated bytes of a word like those of ``sample`` once packed."""
    width = sample.itemsize
    if not compress or len(sample) < SMALL:
        return width
    return float(np.minimum(1, np.maximum(entropy(sample), 0.02) / 8).sum())


def _deflate(plane: np.ndarray, how: Tuple[int, int]) -> bytes:
    level, window = how  # Intel's: three to four times as fast as zlib, hardly larger
    return igzip_lib.compress(plane, level, igzip_lib.COMP_DEFLATE, hist_bits=window)


def _inflate(data: np.ndarray, size: int) -> np.ndarray:
    if size > _DEFLATE_RATIO * (len(data) + 1):
        raise SparsityError("its compressed data are too short")
    stream = isal_zlib.decompressobj(-15)  # two to three times as fast as zlib's
    try:
        plane = stream.decompress(data, size)
        # asking for one byte more lets the stream see its end
        more = stream.decompress(stream.unconsumed_tail, 1)
    except isal_zlib.error:  # type: ignore[misc]  # its stub gives it no base
        raise SparsityError("its compressed data are damaged") from None
    if len(plane) != size or more or not stream.eof or stream.unused_data:
        raise SparsityError("its compressed data have the wrong length")
    return np.frombuffer(plane, np.uint8)


def _how_to_deflate(plane: np.ndarray, bits: float, patterned: bool) -> Optional[Tuple[int, int]]:
    """Level and window for a plane, or None if it would gain too little."""
    if bits < _REPETITIVE:
        return _MATCHES
    if patterned:
        middle = plane[len(plane) // 2 :][: 2 * _SAMPLE]
        matched = len(_deflate(middle, _MATCHES))
        if matched < 0.9 * min(bits / 8, 1) * len(middle):
            return _MATCHES
    return _CODES if bits < _INCOMPRESSIBLE else None


@lru_cache
def _runs(raw: FrozenSet[int]) -> List[Tuple[int, int]]:
    """(offset, width) of bytes kept as they are, in aligned pieces of 8, 4, 2, 1."""
    pieces = []
    for width in (8, 4, 2, 1):
        for offset in range(0, 8, width):
            piece = set(range(offset, offset + width))
            if piece <= raw:
                pieces.append((offset, width))
                raw -= piece
    return pieces


def _plane(words: np.ndarray, offset: int, width: int) -> np.ndarray:
    """View of ``width`` bytes of every word, from byte ``offset``."""
    return words.view(f"<u{width}")[offset // width :: words.itemsize // width]


def pack(words: np.ndarray, compress: bool, patterned: bool = False) -> Tuple[Description, Parts]:
    """Pack words of 1, 2, 4 or 8 bytes as planes, raw or deflated, or as one constant.

    Args:
        words: ``[n]``, unsigned.
        compress: whether planes may be deflated.
        patterned: whether repeated sequences are likely, as in positions.

    Returns:
        ``{"planes": [[offset, width, bytes stored], ...]}`` or ``{"constant": hex}``,
        and the bytes of the planes in that order.
    """
    n, width = len(words), words.itemsize
    if n == 0:
        return {"planes": []}, []
    if n * width > SMALL:
        first = words[0]
        if words[-1] == first == words[n // 2] and (words == first).all():
            return {"constant": f"{int(first):0{2 * width}x}"}, []
    deflated = {}
    if compress and n > SMALL:
        for byte, bits in enumerate(entropy(sample_of(words)).tolist()):
            if not patterned and bits >= _INCOMPRESSIBLE:
                continue
            # a narrower type is made from words faster than from a strided view
            plane = (words >> (8 * byte)).astype(np.uint8) if width > 1 else words
            how = _how_to_deflate(plane, bits, patterned)
            if how is not None:
                data = np.frombuffer(_deflate(plane, how), np.uint8)
                if len(data) < n:
                    deflated[byte] = data
    planes, parts = [], []
    for offset, piece in _runs(frozenset(range(width)) - set(deflated)):
        planes.append([offset, piece, n * piece])
        parts.append(np.ascontiguousarray(_plane(words, offset, piece)).view(np.uint8))
    for byte, data in deflated.items():
        planes.append([byte, 1, len(data)])
        parts.append(data)
    return {"planes": planes}, parts


class Bytes:
    """The stored bytes of one tensor, taken from the front."""

    def __init__(self, data: np.ndarray):
        self.data = data

    def take(self, size: int) -> np.ndarray:
        if size > len(self.data):
            raise SparsityError("its data end too early")
        taken, self.data = self.data[:size], self.data[size:]
        return taken


def integer(value: Any, least: int, most: int, name: str) -> int:
    """``value`` if it is an integer within bounds.

    Raises:
        SparsityError: with ``name``.
    """
    if type(value) is not int or not least <= value <= most:
        raise SparsityError(f"its {name} is wrong: {str(value)[:40]!r}")
    return value


def field(description: Any, name: str, kind: type) -> Any:
    if not isinstance(description, dict) or type(description.get(name)) is not kind:
        raise SparsityError(f"its description has no valid {name!r}")
    return description[name]


def unpack(description: Any, n: int, width: int, data: Bytes) -> np.ndarray:
    """Unpack words ``[n]`` of ``width`` bytes from what :func:`pack` made.

    Raises:
        SparsityError: the description or the data aren't what it makes.
    """
    dtype = np.dtype(f"<u{width}")
    if isinstance(description, dict) and "constant" in description:
        text = field(description, "constant", str)
        if len(text) != 2 * width or set(text) - set("0123456789abcdef"):
            raise SparsityError("its constant is wrong")
        return np.full(n, int(text, 16), dtype)
    planes = field(description, "planes", list)
    if n == 0 and planes == []:
        return np.empty(0, dtype)
    missing = set(range(width))
    unpacked = []
    for plane in planes:
        if type(plane) is not list or len(plane) != 3:
            raise SparsityError("its planes are described wrongly")
        offset = integer(plane[0], 0, width - 1, "plane")
        piece = integer(plane[1], 1, width - offset, "plane's width")
        covered = set(range(offset, offset + piece))
        if piece not in (1, 2, 4, 8) or offset % piece or not covered <= missing:
            raise SparsityError("its planes overlap or are out of line")
        missing -= covered
        stored = data.take(integer(plane[2], 0, n * piece, "plane's size"))
        if len(stored) < n * piece:
            stored = _inflate(stored, n * piece)
        unpacked.append((offset, piece, stored))
    if missing:
        raise SparsityError("a plane of its words is missing")
    if len(unpacked) == 1:
        return unpacked[0][2].view(dtype)
    words = np.empty(n, dtype)
    for offset, piece, stored in unpacked:
        _plane(words, offset, piece)[:] = stored.view(f"<u{piece}")
    return words
