"""The format of sparse files: safetensors files whose metadata describe their buffers.

Any safetensors reader opens them. Tensors that nothing makes smaller are buffers as they
are; others are buffers of bytes, which ``encodings.py`` makes. The one entry of the
header's ``__metadata__``, ``sparse_file``, is a checksum, a space and the text that it is
of::

    {"version": 2, "metadata": {...}, "tensors": [tensor, ...]}       in the given order
    tensor: {"name", "dtype", "shape", "crc32", "values", "positions"?, "signs"?, "key"?}
            {"name", "tied": index of an earlier tensor, "shape"?}

``key`` names the buffer where the tensor's own name can't. ``crc32`` is of the buffer.
Files of version 1, which releases before wrote, have the text as ``sparse_tensors``, and
first in the header a ``sparse_checksum`` of its length and of all of it that follows.
There is no pickle: nothing in a file can run.
"""

import json
import math
import re
from typing import Any, BinaryIO, Dict, List, NamedTuple, Set, Tuple, Union

import numpy as np
import torch
from isal.isal_zlib import crc32
from safetensors import SafetensorError, safe_open

from ..errors import SparsityError
from .planes import Description, field, integer

VERSION = 2
_KEY = "sparse_file"
_START = b'{"__metadata__":{"sparse_file":"'
_START_1 = b'{"__metadata__":{"sparse_checksum":"'
_HEADER_LIMIT = 100_000_000  # safetensors' own
START_LENGTH = 8 + len(_START_1)
_json = json.JSONEncoder(separators=(",", ":")).encode

_NAMES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    *("complex32", "complex64", "complex128", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "bool"),
)
DTYPES = {name: getattr(torch, name) for name in _NAMES if hasattr(torch, name)}
# what safetensors has no such dtype for
ONLY_BYTES = ("float4_e2m1fn_x2", "complex32", "complex128")


def width_of(dtype: torch.dtype) -> int:
    """Bytes of a word; a complex number is two words."""
    return dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize


def buffer_keys(names: List[str]) -> Dict[str, str]:
    """Names for the buffers of tensors whose own names can't be used in a safetensors file.

    So it is with those that have a code of their own in JSON, too: its letters may be
    large or small, and whichever bit of a file is flipped, it is noticed.
    """
    keys: Dict[str, str] = {}
    for name in names:
        if name == "__metadata__" or re.search("[\ud800-\udfff\0-\7\x0b\x0e-\x1f]", name):
            key = f"tensor {len(keys)}"
            while key in names:
                key += "'"
            keys[name] = key
    return keys


def describe(metadata: Dict[str, str], descriptions: List[Description]) -> Dict[str, str]:
    """The ``__metadata__`` of a file.

    Args:
        metadata: the caller's strings.
        descriptions: of every tensor, in order.
    """
    text = _json({"version": VERSION, "metadata": metadata, "tensors": descriptions})
    return {_KEY: f"{crc32(text.encode()):08x} {text}"}


class Buffer(NamedTuple):
    """The description of a tensor that has a buffer of its own."""

    name: str
    dtype: torch.dtype
    shape: List[int]
    description: Description
    key: str  # of its buffer

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Tie(NamedTuple):
    """A tensor that shares the memory of an earlier one, possibly in another shape."""

    name: str
    target: int
    shape: List[int]


Place = Union[Buffer, Tie]


class Header(NamedTuple):
    metadata: Dict[str, str]
    tensors: List[Place]  # in the order of the state dict


def is_start(start: bytes) -> bool:
    """Whether a file whose first ``START_LENGTH`` bytes these are is a sparse file."""
    return start[8:].startswith((_START, _START_1))


def open_checked(path: str) -> Tuple[Header, Any]:
    """Open a file and check its header.

    Returns:
        what it holds, and safetensors' reader of it.

    Raises:
        OSError: there is no such file, or it can't be read.
        SparsityError: it is no sparse file, of a later version, or damaged.
    """
    with open(path, "rb") as stream:
        start = stream.read(START_LENGTH)
        if not is_start(start):
            raise SparsityError("is no sparse file, or damaged at its beginning")
        if start[8:] == _START_1:
            _check_header_1(start[:8], stream)
    try:
        reader = safe_open(path, "pt", backend="pread")  # a map would be cut with the file
        facts, keys = reader.metadata(), set(reader.keys())
    except SafetensorError as error:
        raise SparsityError(f"is truncated or damaged ({error})") from None
    return _header(_text(facts), keys), reader


def _check_header_1(length: bytes, stream: BinaryIO) -> None:
    """Compare a header of version 1, whose start has been read, with its checksum."""
    size = min(int.from_bytes(length, "little"), _HEADER_LIMIT)
    rest = stream.read(max(0, size - len(_START_1)))
    if b"%08x" % crc32(rest[8:], crc32(length)) != rest[:8]:
        raise SparsityError("its header is damaged (wrong checksum)")


def _text(facts: Dict[str, str]) -> str:
    if "sparse_checksum" in facts:
        return facts.get("sparse_tensors", "")
    checksum, _, text = facts.get(_KEY, "").partition(" ")
    if checksum != f"{crc32(text.encode()):08x}":
        raise SparsityError("its header is damaged (wrong checksum)")
    return text


def _header(text: str, keys: Set[str]) -> Header:
    """Parse the text that :func:`describe` made.

    Raises:
        SparsityError: the text or the buffers aren't of a sparse file.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise SparsityError("its header can't be read") from None
    version = field(content, "version", int)
    if version > VERSION:
        raise SparsityError(f"it has version {version}; this release reads up to {VERSION}")
    metadata = field(content, "metadata", dict)
    if not all(type(value) is str for value in metadata.values()):
        raise SparsityError("its metadata are no strings")
    tensors = _tensors(field(content, "tensors", list), keys)
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise SparsityError("two of its tensors have one name")
    return Header(metadata, tensors)


def _tensors(descriptions: List[Any], keys: Set[str]) -> List[Place]:
    tensors: List[Place] = []
    for description in descriptions:
        name = field(description, "name", str)
        try:
            if "tied" in description:
                tensors.append(_tie(name, description, tensors))
                continue
            tensors.append(_buffer(name, description, keys))
        except SparsityError as error:
            raise SparsityError(f"tensor {name!r}: {error}") from None
    if keys:
        raise SparsityError("it has a buffer that is no tensor's")
    return tensors


def _tie(name: str, description: Description, tensors: List[Place]) -> Tie:
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


def _buffer(name: str, description: Description, keys: Set[str]) -> Buffer:
    dtype = field(description, "dtype", str)
    if dtype not in DTYPES:
        raise SparsityError(f"its dtype {dtype[:40]!r} is unknown to this torch")
    integer(description.get("crc32"), 0, 2**32 - 1, "checksum")
    key = description.get("key", name)
    if type(key) is not str or key not in keys:
        raise SparsityError("it has no buffer")
    keys.remove(key)
    return Buffer(name, DTYPES[dtype], _shape(description), description, key)


def read_buffers(header: Header, reader: Any) -> Dict[str, np.ndarray]:
    """Read all buffers as bytes ``[n]`` and compare them with their checksums.

    Args:
        header, reader: from :func:`open_checked`.

    Raises:
        SparsityError: one is damaged.
    """
    try:
        stored = reader.get_tensors()
    except SafetensorError as error:
        raise SparsityError(f"its data can't be read ({error})") from None
    buffers = {}
    for place in header.tensors:
        if isinstance(place, Buffer):
            tensor = stored.pop(place.key)
            form = [tensor.dtype, list(tensor.shape)]
            if form not in ([torch.uint8, [tensor.nbytes]], [place.dtype, place.shape]):
                raise SparsityError(
                    f"tensor {place.name!r}: its buffer contradicts its description"
                )
            data = buffers[place.name] = tensor.reshape(-1).view(torch.uint8).numpy()
            if crc32(data) != place.description["crc32"]:
                raise SparsityError(f"tensor {place.name!r}: its data are damaged (wrong checksum)")
    return buffers
