"""Encodings of one tensor's words: dense, bitmap or gaps, with deflated byte planes.

A tensor is seen as ``n`` words, unsigned integers of the elements' width, so every bit
survives. A word is zero where all its bits are. The words that aren't zero are the
*values*; where they stand is kept as a *bitmap* (a bit for each of the n words) or as
*gaps* (how many words are passed over before each value; the largest number a gap can
hold means "pass over as many, no value here"). Words with nothing but the top bit, as
multiplying with a mask leaves (-0.0), have positions and no values. The choice is by
estimated size, from the counts and a sample; nothing is encoded twice to compare.

Values, bitmap and gaps are arrays of words alike, and packed alike (:func:`pack`): split
into planes of bytes, the planes that pay deflated. In floats that is the top one, of
sign and exponent. What is read back may be anybody's, so everything is checked.
"""

import math
from functools import lru_cache
from typing import Any, Iterator, Optional, Tuple

import numpy as np

from ..errors import SparsityError
from .planes import (
    SMALL,
    Bytes,
    Description,
    Parts,
    integer,
    pack,
    sample_of,
    unpack,
    word_bytes,
)

COMPRESSIONS = ("none", "index", "full")
GAP_WIDTHS = (1, 2, 4)
_CHUNK = 1 << 18  # words looked at together: they stay in the cache; divisible by 8


def position_bits(n: int, count: int) -> float:
    """Entropy of ``count`` positions among ``n`` if all are alike: ``n * H(count/n)``."""
    if count in (0, n):
        return 0.0
    p = count / n
    return -n * (p * math.log2(p) + (1 - p) * math.log2(1 - p))


def _gap_symbols(n: int, count: int, width: int) -> float:
    """Expected number of gaps, including escapes."""
    reach = count / n * (256**width - 1)  # values to expect where one gap can go
    return count * (1 + math.exp(-reach) / -math.expm1(-reach))


@lru_cache
def _best_gaps(n: int, count: int) -> Tuple[float, int]:
    """Bytes of the gaps, and their width."""
    return min((width * _gap_symbols(n, count, width), width) for width in GAP_WIDTHS)


def position_bytes(n: int, count: int, compress: bool) -> float:
    """Estimated size of ``count`` positions among ``n``."""
    if count == 0:
        return 0.0
    size = min(math.ceil(n / 8), _best_gaps(n, count)[0])
    return min(size, 1.03 * position_bits(n, count) / 8) if compress else size


def _as_gaps(n: int, count: int) -> bool:
    return count == 0 or _best_gaps(n, count)[0] < n / 8


def _pack_gaps(index: np.ndarray, n: int, compress: bool) -> Tuple[Description, Parts]:
    """Strictly increasing positions ``index`` as gaps."""
    width = _best_gaps(n, len(index))[1] if len(index) else 1
    most = 256**width - 1
    gaps = np.empty(len(index), np.int64)
    gaps[:1] = index[:1]
    np.subtract(index[1:], index[:-1], out=gaps[1:])
    gaps[1:] -= 1
    symbols = gaps.astype(f"<u{width}")
    wide = np.flatnonzero(gaps >= most)
    if len(wide):
        passed, symbols[wide] = np.divmod(gaps[wide], most)
        escapes = np.repeat(wide, passed)
        escapes += np.arange(len(escapes))  # moved on by those before
        ends = np.ones(len(symbols) + len(escapes), bool)
        ends[escapes] = False
        with_escapes = np.full(len(ends), most, symbols.dtype)
        with_escapes[ends] = symbols
        symbols = with_escapes
    packed, parts = pack(symbols, compress, patterned=True)
    where = {"as": "gaps", "width": width, "symbols": len(symbols), "words": packed}
    return {"count": len(index), **where}, parts


def _unpack_gaps(description: Description, n: int, count: int, data: Bytes):
    """Positions ``[count]``, strictly increasing and below ``n``."""
    width = description.get("width")
    if width not in GAP_WIDTHS:
        raise SparsityError("the width of its gaps is wrong")
    most = 256**width - 1
    number = description.get("symbols")
    bound = min(count + n // most, 2**62 >> 8 * width)  # the sum must fit 63 bits
    number = integer(number, count, bound, "number of gaps")
    symbols = unpack(description.get("words"), number, width, data)
    index = np.cumsum(symbols, dtype=np.int64)
    if number == count:
        if count and symbols.max() == most:
            raise SparsityError("its gaps contradict their count")
        index += np.arange(count)
    else:
        ends = symbols != most
        if np.count_nonzero(ends) != count or not ends[-1]:
            raise SparsityError("its gaps contradict their count")
        index = index[ends] + np.arange(count)
    if count and index[-1] >= n:
        raise SparsityError("a position is out of bounds")
    return index


def _bitmap_of(words: np.ndarray, top: int = 0) -> Tuple[np.ndarray, int]:
    """A bit for each word that isn't zero, or that equals ``top`` if given; their number."""
    bitmap, count = np.empty((len(words) + 7) // 8, np.uint8), 0
    for start in range(0, len(words), _CHUNK):
        chunk = words[start : start + _CHUNK]
        mask = chunk == top if top else chunk != 0
        count += int(np.count_nonzero(mask))
        bits = np.packbits(mask, bitorder="little")
        bitmap[start // 8 : start // 8 + len(bits)] = bits
    return bitmap, count


def _ones(bitmap: np.ndarray) -> Iterator[Tuple[int, np.ndarray]]:
    """Where the ones of a bitmap are, by chunks: their start and positions from there."""
    for start in range(0, 8 * len(bitmap), _CHUNK):
        chunk = bitmap[start // 8 : (start + _CHUNK) // 8]
        used = chunk != 0
        if 2 * np.count_nonzero(used) > len(chunk):
            yield start, np.flatnonzero(np.unpackbits(chunk, bitorder="little").view(bool))
        else:  # numpy is slow where there are few: empty bytes are left out
            used = np.flatnonzero(used)
            bits = np.unpackbits(chunk[used], bitorder="little").view(bool)
            index = np.flatnonzero(bits)
            yield start, 8 * used[index >> 3] + (index & 7)


def _index_of(bitmap: np.ndarray) -> np.ndarray:
    """Positions of a bitmap's ones, int64."""
    return np.concatenate([start + index for start, index in _ones(bitmap)])


def _values_at(words: np.ndarray, bitmap: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` words where a bitmap has ones."""
    values, done = np.empty(count, words.dtype), 0
    for start, index in _ones(bitmap):
        end = done + len(index)
        values[done:end] = words[start : start + _CHUNK].take(index)
        done = end
    return values


def _pack_bitmap(bitmap: np.ndarray, count: int, compress: bool):
    packed, parts = pack(bitmap, compress, patterned=True)
    return {"count": count, "as": "bitmap", "words": packed}, parts


def encode(words: np.ndarray, floating: bool, compression: str) -> Tuple[Description, Parts]:
    """Encode a tensor's words ``[n]`` in the encoding estimated to be smallest.

    Args:
        words: unsigned, 1 to 8 bytes wide.
        floating: whether the top bit is a sign.
        compression: one of :data:`COMPRESSIONS`: deflate nothing, positions only, or
            positions and planes of values.

    Returns:
        ``{"values": ..., "positions": ..., "signs": ...}``, the latter two only for
        sparse encodings, and the bytes.
    """
    compress, full = compression != "none", compression == "full"
    n, width = len(words), words.itemsize
    if n * width <= SMALL:
        packed, parts = pack(words, full)
        return {"values": packed}, parts
    bitmap, values = _bitmap_of(words)
    sample = sample_of(words)
    top = negatives = 0
    if floating and (sample == 1 << (8 * width - 1)).any():
        top = 1 << (8 * width - 1)
        signs, negatives = _bitmap_of(words, top)
        bitmap ^= signs
        values -= negatives
    if values == n:
        packed, parts = pack(words, full)
        return {"values": packed}, parts
    nonzero = sample[(sample != 0) & (sample != top)]
    size = position_bytes(n, values, compress) + position_bytes(n, negatives, compress)
    size += values * word_bytes(nonzero, full)
    # a sample of few values tells too little of what planes with them would take
    dense = n * word_bytes(sample, full) if 4 * values > n else n * width
    if size >= dense:
        packed, parts = pack(words, full)
        return {"values": packed}, parts
    if _as_gaps(n, values):
        index = _index_of(bitmap)
        packed, parts = pack(words.take(index), full)
        positions, more = _pack_gaps(index, n, compress)
    else:
        packed, parts = pack(_values_at(words, bitmap, values), full)
        positions, more = _pack_bitmap(bitmap, values, compress)
    parts += more
    description = {"values": packed, "positions": positions}
    if negatives:
        if _as_gaps(n, negatives):
            where, more = _pack_gaps(_index_of(signs), n, compress)
        else:
            where, more = _pack_bitmap(signs, negatives, compress)
        description["signs"] = where
        parts += more
    return description, parts


def encode_index(
    n: int, index: np.ndarray, values: np.ndarray, compression: str
) -> Optional[Tuple[Description, Parts]]:
    """As :func:`encode`, of ``values`` at strictly increasing positions ``index``.

    Returns:
        None where a dense encoding may be smaller.
    """
    compress, full = compression != "none", compression == "full"
    size = position_bytes(n, len(index), compress) + len(index) * values.itemsize
    if size >= n * values.itemsize:
        return None
    packed, parts = pack(values, full)
    if _as_gaps(n, len(index)):
        positions, more = _pack_gaps(index, n, compress)
    else:
        mask = np.zeros(n, bool)
        mask[index] = True
        bitmap = np.packbits(mask, bitorder="little")
        positions, more = _pack_bitmap(bitmap, len(index), compress)
    return {"values": packed, "positions": positions}, parts + more


def _place(out: np.ndarray, values: Optional[np.ndarray], where: Any, data: Bytes, top=0):
    """Write values, or the word ``top``, to their positions in zeroed words."""
    n = len(out)
    count = _count(where, n)
    kind = where.get("as")
    if kind == "gaps":
        index = _unpack_gaps(where, n, count, data)
        if values is None and out[index].any():
            raise SparsityError("two of its values have one position")
        out[index] = top if values is None else values
        return
    if kind != "bitmap":
        raise SparsityError(f"its positions are in an unknown form, {str(kind)[:40]!r}")
    bitmap = unpack(where.get("words"), (n + 7) // 8, 1, data)
    if n % 8 and bitmap[-1] >> (n % 8):
        raise SparsityError("a position is out of bounds")
    if int(np.bitwise_count(bitmap).sum()) != count:
        raise SparsityError("its bitmap contradicts the number of values")
    if values is None:
        _place_top(out, top, bitmap)
        return
    done = 0
    for start, index in _ones(bitmap):
        out[start : start + _CHUNK][index] = values[done : done + len(index)]
        done += len(index)


def _place_top(out: np.ndarray, top: int, bitmap: np.ndarray) -> None:
    """Write the word ``top`` where a bitmap has ones; there must be zeros."""
    for start in range(0, len(out), _CHUNK):
        chunk = out[start : start + _CHUNK]
        bits = bitmap[start // 8 : (start + _CHUNK) // 8]
        bits = np.unpackbits(bits, count=len(chunk), bitorder="little")
        if (bits.view(bool) & (chunk != 0)).any():
            raise SparsityError("two of its values have one position")
        chunk |= np.multiply(bits, top, dtype=chunk.dtype)


def _count(where: Any, n: int) -> int:
    if not isinstance(where, dict):
        raise SparsityError("its positions are not described")
    return integer(where.get("count"), 0, n, "number of values")


def decode(description: Description, n: int, width: int, data: np.ndarray) -> np.ndarray:
    """Decode what :func:`encode` returned, joined, to words ``[n]`` of ``width`` bytes.

    Raises:
        SparsityError: description or data can't be its result.
    """
    source = Bytes(data)
    packed = description.get("values")
    if description.get("positions") is None:
        if description.get("signs") is not None:
            raise SparsityError("it has signs without positions")
        words = unpack(packed, n, width, source)
    else:
        where = description["positions"]
        values = unpack(packed, _count(where, n), width, source)
        words = np.zeros(n, f"<u{width}")
        _place(words, values, where, source)
        if description.get("signs") is not None:
            _place(words, None, description["signs"], source, 1 << (8 * width - 1))
    if len(source.data):
        raise SparsityError("it has more data than described")
    return words
