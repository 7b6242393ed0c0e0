"""The container of sparse files: a safetensors file's header, written and checked.

A safetensors file is the length of a header, the header in JSON, and buffers, which any
safetensors reader opens. Tensors that nothing makes smaller are such buffers as they
are. Others are buffers of bytes, which ``encodings.py`` makes and the text under
``sparse_tensors`` in the header's ``__metadata__`` describes::

    {"version": 1, "metadata": {...}, "tensors": [tensor, ...]}       in the given order
    tensor: {"name", "dtype", "shape", "crc32", "values", "positions"?, "signs"?, "key"?}
            {"name", "tied": index of an earlier tensor, "shape"?}

``key`` names the buffer where the tensor's own name can't. ``crc32`` is of the buffer;
``sparse_checksum``, the first thing in the header, is of the length and of everything
in the header that follows it. There is no pickle: nothing in a file can run.
"""

import json
import math
import os
import re
from typing import Any, BinaryIO, Dict, List, NamedTuple

import numpy as np
import torch
from isal.isal_zlib import crc32

from ..errors import SparsityError
from .planes import Description, field, integer

VERSION = 1
_START = b'{"__metadata__":{"sparse_checksum":"'
_CHECKED = len(_START) + 8  # the checksum's digits stand before this byte of the header
_HEADER_LIMIT = 100_000_000  # safetensors' own
_json = json.JSONEncoder(separators=(",", ":")).encode

# by torch's name, the code in safetensors; None: only as bytes
CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": None,
    "float4_e2m1fn_x2": None,
    "complex32": None,
    "complex64": "C64",
    "complex128": None,
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
DTYPES = {name: getattr(torch, name) for name in CODES if hasattr(torch, name)}


def width_of(dtype: torch.dtype) -> int:
    """Bytes of a word; a complex number is two words."""
    return dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize


def buffer_keys(names: List[str]) -> Dict[str, str]:
    """Names of the buffers of tensors whose own names no safetensors reader takes."""
    keys = {}
    for name in names:
        if name == "__metadata__" or re.search("[\ud800-\udfff]", name):
            key = f"tensor {len(keys)}"
            while key in names:
                key += "'"
            keys[name] = key
    return keys


def write_header(
    entries: Dict[str, Any], metadata: Dict[str, str], descriptions: List[Description]
) -> bytes:
    """The length and the header, up to the first buffer.

    Args:
        entries: dtype, shape and place of each buffer, as safetensors has them.
        metadata: the caller's strings.
        descriptions: of every tensor, in order.

    Raises:
        SparsityError: it is longer than safetensors allows.
    """
    text = {"version": VERSION, "metadata": metadata, "tensors": descriptions}
    facts = {"sparse_checksum": "0" * 8, "sparse_tensors": _json(text)}
    header = _json({"__metadata__": facts, **entries}).encode("ascii")
    header += b" " * (-len(header) % 8)
    if len(header) > _HEADER_LIMIT:
        raise SparsityError("names, shapes and metadata are too long for one file")
    length = len(header).to_bytes(8, "little")
    return length + _START + _checksum(length, header) + header[_CHECKED:]


def _checksum(length: bytes, header: bytes) -> bytes:
    return b"%08x" % crc32(memoryview(header)[_CHECKED:], crc32(length))


class Source:
    """The bytes of a file, read where they are wanted."""

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.size = stream.seek(0, os.SEEK_END)

    def read(self, start: int, size: int) -> np.ndarray:
        """Bytes ``[size]`` in memory of their own.

        Raises:
            SparsityError: the file ends before.
        """
        self.stream.seek(start)
        data = np.empty(size, np.uint8)
        view, done = memoryview(data), 0
        while done < size:
            number = self.stream.readinto(view[done:])
            if not number:
                raise SparsityError("it is truncated")
            done += number
        return data


class Buffer(NamedTuple):
    """A tensor's description, checked as far as the header tells, and its place."""

    name: str
    dtype: torch.dtype
    shape: List[int]
    description: Description
    start: int
    size: int


class Tie(NamedTuple):
    """A tensor that is another one, or has its memory in another shape."""

    name: str
    target: int
    shape: List[int]


class Header(NamedTuple):
    metadata: Dict[str, str]
    tensors: List[Any]  # Buffer or Tie, in the order of the state dict


def is_start(start: bytes) -> bool:
    """Whether a file that begins so is a sparse file."""
    return start[8 : 8 + len(_START)] == _START


START_LENGTH = 8 + len(_START)


def read_header(source: Source) -> Header:
    """Read and check everything that precedes the buffers.

    Raises:
        SparsityError: it is no sparse file, of a later version, or damaged.
    """
    start = source.read(0, min(START_LENGTH, source.size)).tobytes()
    if not is_start(start):
        raise SparsityError("is no sparse file, or damaged at its beginning")
    length = int.from_bytes(start[:8], "little")
    if not _CHECKED <= length <= min(_HEADER_LIMIT, source.size - 8):
        raise SparsityError("its header's length is wrong: it is truncated or damaged")
    header = source.read(8, length).tobytes()
    if header[len(_START) : _CHECKED] != _checksum(start[:8], header):
        raise SparsityError("its header is damaged (wrong checksum)")
    try:
        entries = json.loads(header)
        facts = field(entries.pop("__metadata__"), "sparse_tensors", str)
        text = json.loads(facts)
    except (ValueError, RecursionError, AttributeError, KeyError):
        raise SparsityError("its header can't be read") from None
    version = field(text, "version", int)
    if version != VERSION:
        raise SparsityError(f"it has version {version}; this release reads {VERSION}")
    metadata = field(text, "metadata", dict)
    if not all(type(value) is str for value in metadata.values()):
        raise SparsityError("its metadata are no strings")
    tensors = _tensors(field(text, "tensors", list), entries, 8 + length)
    _check_places(tensors, 8 + length, source.size)
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise SparsityError("two of its tensors have one name")
    return Header(metadata, tensors)


def _tensors(descriptions: List[Any], entries: Dict[str, Any], data: int) -> List[Any]:
    tensors: List[Any] = []
    for description in descriptions:
        name = field(description, "name", str)
        try:
            if "tied" in description:
                tensors.append(_tie(name, description, tensors))
                continue
            entry = entries.pop(description.get("key", name), None)
            tensors.append(_buffer(name, description, entry, data))
        except SparsityError as error:
            raise SparsityError(f"tensor {name!r}: {error}") from None
    if entries:
        raise SparsityError("it has a buffer that is no tensor's")
    return tensors


def _tie(name: str, description: Description, tensors: List[Any]) -> Tie:
    target = integer(description["tied"], 0, len(tensors) - 1, "tie")
    if isinstance(tensors[target], Tie):
        raise SparsityError("it is tied to a tied tensor")
    shape = tensors[target].shape
    if "shape" in description:
        size, shape = math.prod(shape), _shape(description)
        if math.prod(shape) != size:
            raise SparsityError("its shape contradicts the tensor it is tied to")
    return Tie(name, target, shape)


def _shape(description: Description) -> List[int]:
    shape = field(description, "shape", list)
    product = 1
    for size in shape:
        product *= max(1, integer(size, 0, 2**60, "shape"))
        if product > 2**60:
            raise SparsityError("its shape is too large")
    return shape


def _buffer(name: str, description: Description, entry: Any, data: int) -> Buffer:
    dtype = field(description, "dtype", str)
    if dtype not in DTYPES:
        raise SparsityError(f"its dtype {dtype[:40]!r} is unknown to this torch")
    shape = _shape(description)
    integer(description.get("crc32"), 0, 2**32 - 1, "checksum")
    offsets = field(entry, "data_offsets", list)
    if len(offsets) != 2:
        raise SparsityError("the place of its buffer is wrong")
    start = integer(offsets[0], 0, 2**62, "place")
    size = integer(offsets[1], start, 2**62, "place") - start
    if [entry.get("dtype"), entry.get("shape")] not in (
        ["U8", [size]],
        [CODES[dtype], shape],
    ):
        raise SparsityError("its buffer contradicts its description")
    return Buffer(name, DTYPES[dtype], shape, description, data + start, size)


def _check_places(tensors: List[Any], start: int, end: int) -> None:
    """The buffers must fill the file, without holes and without overlaps."""
    places = [(t.start, t.start + t.size) for t in tensors if isinstance(t, Buffer)]
    for first, last in sorted(places):
        if first != start:
            raise SparsityError("its buffers overlap or leave holes")
        start = last
    if start != end:
        raise SparsityError(f"it has {end} bytes instead of {start}: it is damaged")
