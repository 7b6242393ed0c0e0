"""Save and load sparse files: all tensors of a model in one safetensors file.

The container and its checks are in ``container.py``, what is done to a tensor is in
``encodings.py``. A file appears complete or not at all, and a damaged one is refused.
"""

import io
import math
import os
import secrets
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np
import torch
from isal.isal_zlib import crc32
from torch import Tensor, nn

from ..errors import SparsityError
from . import encodings
from .container import (
    CODES,
    DTYPES,
    START_LENGTH,
    Buffer,
    Source,
    Tie,
    buffer_keys,
    is_start,
    read_header,
    width_of,
    write_header,
)
from .planes import Description, Parts

_UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def _words(tensor: Tensor) -> np.ndarray:
    """The words of a dense tensor on the CPU, flat; shares its memory if it can."""
    flat = tensor.reshape(-1)
    if tensor.dtype is torch.bool:
        flat = flat.view(torch.uint8).ne(0)  # a byte that is neither 0 nor 1 means True
    if flat.stride(0) != 1:  # of one element or none; a view of other width needs 1
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(_UNSIGNED[width_of(tensor.dtype)]).numpy()


def _plain(name: str, value: Any) -> Tensor:
    """A tensor on the CPU: strided, or coalesced COO where ``value`` is sparse.

    Raises:
        SparsityError: it is nothing that a file can hold.
    """
    if not isinstance(value, Tensor):
        raise SparsityError(f"{name!r} is no tensor but {type(value).__name__}")
    if str(value.dtype)[6:] not in DTYPES or value.is_quantized:
        raise SparsityError(f"{name!r}: {value.dtype} can't be stored")
    if nn.parameter.is_lazy(value):
        raise SparsityError(f"{name!r} has no values yet")
    if value.device.type == "meta":
        raise SparsityError(f"{name!r} has no values, it is on the meta device")
    if value.requires_grad:
        value = value.detach()
    try:
        if value.layout is torch.strided:
            return value.resolve_conj().resolve_neg().cpu()
        if value.layout is torch.sparse_csr and value.dense_dim() == 0 and value.ndim == 2:
            value = value.to_sparse()
        if value.layout is torch.sparse_coo:
            # torch reads and writes beyond its memory for indices out of bounds
            indices = value._indices().cpu().numpy().view(np.uint64)
            # negative ones are large then
            largest = indices.max(1).tolist() if indices.size else []
            if any(index >= size for index, size in zip(largest, value.shape)):
                raise SparsityError(f"{name!r} has an index out of bounds")
            if value.dense_dim() == 0 and value.ndim:
                return value.coalesce().cpu()
        return value.to_dense().cpu()
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise SparsityError(f"{name!r}: {value.layout} can't be read: {reason}") from None


def _encode_coo(tensor: Tensor, compression: str) -> Optional[Tuple[Description, Parts]]:
    """A coalesced COO tensor from its indices, or None where that doesn't do."""
    shape, indices = tensor.shape, tensor.indices().numpy()
    n = math.prod(shape)
    if tensor.dtype.is_complex or not 0 < n < 2**62:
        return None
    index = indices[0]
    for size, along in zip(shape[1:], indices[1:]):
        index = index * size
        index += along
    words = _words(tensor.values())
    if not words.all():
        index, words = index[words != 0], words[words != 0]
    if (index[1:] <= index[:-1]).any():
        return None  # coalesced by its flag only
    return encodings.encode_index(n, index, words, compression)


def _encode(name: str, tensor: Tensor, compression: str) -> Tuple[Description, Parts]:
    """Description of one tensor and its bytes."""
    try:
        encoded = None
        if tensor.layout is torch.sparse_coo:
            encoded = _encode_coo(tensor, compression)
            tensor = tensor if encoded else tensor.to_dense()
        if encoded is None:
            floating = tensor.is_floating_point() or tensor.is_complex()
            encoded = encodings.encode(_words(tensor), floating, compression)
    except (RuntimeError, MemoryError) as error:
        reason = str(error).split("\n")[0]
        raise SparsityError(f"{name!r} can't be read: {reason}") from None
    description, parts = encoded
    crc = 0
    for part in parts:
        crc = crc32(part, crc)
    shape = list(tensor.shape)
    start = {"name": name, "dtype": str(tensor.dtype)[6:], "shape": shape, "crc32": crc}
    return {**start, **description}, parts


def _memory(tensor: Tensor) -> Tuple:
    """What two tensors have in common that are the same numbers in the same memory."""
    if nn.parameter.is_lazy(tensor):  # which has no size to ask for
        return (id(tensor),)
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return (id(tensor),)
    same = (tensor.device, tensor.dtype, tensor.data_ptr())
    same += (tensor.is_conj(), tensor.is_neg())
    if tensor.is_contiguous():
        return same + (tensor.numel(),)  # in whatever shape
    return same + (tuple(tensor.shape), tensor.stride())


def _as_is(description: Description) -> bool:
    """Whether a description is of nothing but the tensor's own bytes."""
    planes = description["values"].get("planes")
    if planes is None or "positions" in description:
        return False
    return (
        planes == []
        or len(planes) == 1
        and planes[0][2] == math.prod(description["shape"]) * DTYPES[description["dtype"]].itemsize
    )


def _assemble(
    state_dict: Mapping[str, Any], metadata: Optional[Mapping[str, str]], compression: str
) -> Tuple[bytes, Parts]:
    """A file's header with its length, and the bytes that follow."""
    if compression not in encodings.COMPRESSIONS:
        valid = ", ".join(encodings.COMPRESSIONS)
        raise SparsityError(f"compression {compression!r}: must be one of {valid}")
    if not isinstance(state_dict, Mapping):
        raise SparsityError(
            f"state_dict: a {type(state_dict).__name__} is none; give a dict of tensors by "
            "name, as a model's state_dict()"
        )
    metadata = dict(metadata or {})
    for item in (*state_dict, *metadata, *metadata.values()):
        if not isinstance(item, str):
            raise SparsityError(f"names and metadata must be strings, not {item!r}")
    items = list(state_dict.items())  # kept, so that no address is used twice
    keys = buffer_keys(list(state_dict))
    descriptions: List[Description] = []
    buffers = []  # (element size, key, entry, parts)
    seen: Dict[Tuple, int] = {}
    for name, value in items:
        memory = _memory(value) if isinstance(value, Tensor) else (id(value),)
        if memory in seen:
            tied = {"name": name, "tied": seen[memory]}
            if descriptions[seen[memory]]["shape"] != list(value.shape):
                tied["shape"] = list(value.shape)
            descriptions.append(tied)
            continue
        seen[memory] = len(descriptions)
        description, parts = _encode(name, _plain(name, value), compression)
        if name in keys:
            description["key"] = keys[name]
        descriptions.append(description)
        code = CODES[description["dtype"]] if _as_is(description) else None
        size = sum(len(part) for part in parts)
        entry = {"dtype": code or "U8", "shape": description["shape"] if code else [size]}
        element = DTYPES[description["dtype"]].itemsize if code else 1
        buffers.append((element, keys.get(name, name), entry, size, parts))
    # widest first, so that each buffer is aligned to its elements
    buffers.sort(key=lambda buffer: -buffer[0])
    entries, end, data = {}, 0, []
    for _, key, entry, size, parts in buffers:
        entries[key] = {**entry, "data_offsets": [end, end + size]}
        end += size
        data += parts
    return write_header(entries, metadata, descriptions), data


def save_sparse(
    path: str,
    state_dict: Mapping[str, Tensor],
    metadata: Optional[Mapping[str, str]] = None,
    compression: str = "full",
    durable: bool = True,
) -> None:
    """Write tensors to one file, each in the encoding estimated to be smallest.

    The file appears complete or not at all. Every bit of every element comes back, its
    place among the others too. Tensors in the same memory are stored once.

    Args:
        path: the file.
        state_dict: tensors by name, dense or sparse (COO, CSR and others: by content).
        metadata: strings to keep with them (:func:`read_metadata`).
        compression: ``none``; ``index``: positions only; ``full``: also the bytes of
            values that repeat themselves, as those of sign and exponent.
        durable: return only when the file would survive a power cut.

    Raises:
        SparsityError: something that can't be stored, or the file can't be written.
    """
    path = os.fspath(path)
    try:
        header, data = _assemble(state_dict, metadata, compression)
    except SparsityError as error:
        raise SparsityError(f"{path}: {error}") from None
    folder = os.path.dirname(path) or os.curdir
    # a name of its own: two processes may write the same file
    temporary = os.path.join(folder, f".sparse-{secrets.token_hex(8)}.tmp")
    try:
        try:
            _write(temporary, [header, *data], durable)
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise
        if durable:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise SparsityError(f"{path}: can't be written ({error.strerror})") from error


def _write(path: str, parts: List[Any], durable: bool) -> None:
    """Write a new file, by system calls alone: ``open`` takes as long as a small file does."""
    stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for part in parts:
            rest = memoryview(part)
            while len(rest):
                rest = rest[os.write(stream, rest) :]
        if durable:
            os.fsync(stream)
    finally:
        os.close(stream)


def sparse_size(state_dict: Mapping[str, Tensor], compression: str = "full") -> int:
    """Bytes of the file that :func:`save_sparse` would write.

    Raises:
        SparsityError: something that can't be stored.
    """
    header, data = _assemble(state_dict, None, compression)
    return len(header) + sum(len(part) for part in data)


def load_sparse(path: str, device: Any = "cpu") -> Dict[str, Tensor]:
    """The tensors of a file, in the order, dtypes and shapes that were saved.

    Tensors that were stored as sparse ones come back dense; tied ones tied.

    Args:
        path: a file of :func:`save_sparse`.
        device: where the tensors go.

    Raises:
        SparsityError: missing, no sparse file, damaged, larger than the memory, or no
            such device.
    """
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise SparsityError(f"device {device!r}: can't be used: {reason}") from None
    return _open(path, lambda source: _load(source, device))


def read_metadata(path: str) -> Dict[str, str]:
    """The strings saved with a file's tensors.

    Raises:
        SparsityError: missing, no sparse file, or its header is damaged.
    """
    return _open(path, lambda source: read_header(source).metadata)


def is_sparse_file(path: str) -> bool:
    """Whether a file is one of :func:`save_sparse`, by its first bytes."""
    try:
        with open(path, "rb", buffering=0) as stream:
            return is_start(stream.read(START_LENGTH))
    except (OSError, ValueError):  # the latter: no file can have such a name
        return False


def _open(path: str, read: Callable[[Source], Any]) -> Any:
    path = os.fspath(path)
    try:
        with open(path, "rb", buffering=0) as stream:
            return read(Source(stream))
    except OSError as error:
        raise SparsityError(f"{path}: can't be read ({error.strerror})") from None
    except SparsityError as error:
        raise SparsityError(f"{path}: {error}") from None


def to_bytes(
    state_dict: Mapping[str, Tensor],
    metadata: Optional[Mapping[str, str]] = None,
    compression: str = "full",
) -> bytes:
    """The content of the file that :func:`save_sparse` would write.

    Raises:
        SparsityError: something that can't be stored.
    """
    header, data = _assemble(state_dict, metadata, compression)
    return b"".join([header, *data])


def load_bytes(data: bytes) -> Dict[str, Tensor]:
    """As :func:`load_sparse`, of a file's content.

    Raises:
        SparsityError: it is no sparse file's, or damaged.
    """
    return _load(Source(io.BytesIO(data)), torch.device("cpu"))


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _load(source: Source, device: torch.device) -> Dict[str, Tensor]:
    header = read_header(source)
    needed = sum(
        math.prod(tensor.shape) * tensor.dtype.itemsize
        for tensor in header.tensors
        if isinstance(tensor, Buffer)
    )
    if needed > _machine_memory():
        raise SparsityError(f"its tensors take {needed} bytes, more than the memory")
    tensors: List[Tensor] = []
    for place in header.tensors:
        if isinstance(place, Tie):
            tensor = tensors[place.target]
            if list(tensor.shape) != place.shape:
                tensor = tensor.view(place.shape)
        else:
            try:
                tensor = _decode(source, place).to(device)
            except SparsityError as error:
                raise SparsityError(f"tensor {place.name!r}: {error}") from None
        tensors.append(tensor)
    return {place.name: tensor for place, tensor in zip(header.tensors, tensors)}


def _decode(source: Source, place: Buffer) -> Tensor:
    data = source.read(place.start, place.size)
    if crc32(data) != place.description["crc32"]:
        raise SparsityError("its data are damaged (wrong checksum)")
    width, size = width_of(place.dtype), math.prod(place.shape) * place.dtype.itemsize
    try:
        words = encodings.decode(place.description, size // width, width, data)
    except MemoryError:
        raise SparsityError(f"its {size} bytes don't fit into the memory") from None
    if place.dtype is torch.bool and words.size and words.max() > 1:
        raise SparsityError("it has truth values that are neither 0 nor 1")
    if not words.flags.writeable:
        words = words.copy()
    if not words.size:
        return torch.empty(place.shape, dtype=place.dtype)
    return torch.from_numpy(words).view(place.dtype).reshape(place.shape)
