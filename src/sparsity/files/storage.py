"""Save and load sparse files: all tensors of a model in one safetensors file.

The container and its checks are in ``container.py``, what is done to a tensor is in
``encodings.py``. A file appears complete or not at all, and a damaged one is refused.
"""

import math
import os
import secrets
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import torch
from isal.isal_zlib import crc32
from safetensors import SafetensorError, TensorSpec, serialize
from torch import Tensor, nn

from ..errors import SparsityError
from . import encodings
from .container import (
    DTYPES,
    ONLY_BYTES,
    START_LENGTH,
    Buffer,
    Header,
    Tie,
    buffer_keys,
    describe,
    is_start,
    open_checked,
    read_buffers,
    width_of,
)
from .planes import Description, Parts

_ASKED_FROM = 2**28  # bytes; asking for memory takes as long as loading a small file
_EMPTY = np.empty(0, np.uint8)
_UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def _words(tensor: Tensor) -> np.ndarray:
    """The words of a dense tensor on the CPU, flat; shares its memory if it can."""
    flat = tensor.reshape(-1)
    if tensor.dtype is torch.bool:
        flat = flat.view(torch.uint8).ne(0)  # a byte that is neither 0 nor 1 means True
    if flat.stride(0) != 1:  # of one element or none; a view of other width needs 1
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(_UNSIGNED[width_of(tensor.dtype)]).numpy()


def _on_cpu(name: str, value: Any) -> Tensor:
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
    """Encode a coalesced COO tensor from its indices; None where that isn't possible."""
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


def _encode(name: str, tensor: Tensor, compression: str) -> Tuple[Description, np.ndarray]:
    """Encode one tensor: its description and its bytes."""
    try:
        encoded = None
        if tensor.layout is torch.sparse_coo:
            encoded = _encode_coo(tensor, compression)
            tensor = tensor if encoded else tensor.to_dense()
        if encoded is None:
            floating = tensor.is_floating_point() or tensor.is_complex()
            encoded = encodings.encode(_words(tensor), floating, compression)
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise SparsityError(f"{name!r} can't be read: {reason}") from None
    except MemoryError:
        raise SparsityError(f"{name!r} can't be encoded: out of memory") from None
    description, parts = encoded
    data = parts[0] if len(parts) == 1 else np.concatenate([_EMPTY, *parts])
    start = {"name": name, "dtype": str(tensor.dtype)[6:], "shape": list(tensor.shape)}
    return {**start, "crc32": crc32(data), **description}, data


def _memory(tensor: Tensor) -> Tuple:
    """A key that is equal for tensors with the same numbers in the same memory."""
    if nn.parameter.is_lazy(tensor):  # which has no size to ask for
        return (id(tensor),)
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return (id(tensor),)
    form = tensor.is_conj(), tensor.is_neg()
    same = (tensor.device, tensor.dtype, tensor.data_ptr(), *form)
    if tensor.is_contiguous():
        return (*same, tensor.numel())  # in whatever shape
    return (*same, tuple(tensor.shape), tensor.stride())


def _as_is(description: Description) -> bool:
    """Whether a tensor is stored as its own bytes, unencoded."""
    planes = description["values"].get("planes")
    if planes is None or "positions" in description or description["dtype"] in ONLY_BYTES:
        return False
    dtype = DTYPES[description["dtype"]]
    size = math.prod(description["shape"]) * dtype.itemsize
    return planes == [] or (len(planes) == 1 and planes[0][2] == size)


class _Content(NamedTuple):
    """The content of a file, as safetensors takes it."""

    buffers: Dict[str, np.ndarray]
    specs: Dict[str, TensorSpec]  # of the same names; they hold addresses of the buffers
    metadata: Dict[str, str]


def _spec(description: Description, data: np.ndarray) -> TensorSpec:
    dtype, shape = "uint8", [len(data)]
    if _as_is(description):
        dtype, shape = description["dtype"], description["shape"]
    return TensorSpec(dtype=dtype, shape=shape, data_ptr=data.ctypes.data, data_len=len(data))


def _assemble(
    state_dict: Mapping[str, Any], metadata: Optional[Mapping[str, str]], compression: str
) -> _Content:
    """Encode all tensors.

    Raises:
        SparsityError: something that can't be stored.
    """
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
    buffers, specs = {}, {}
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
        description, data = _encode(name, _on_cpu(name, value), compression)
        key = keys.get(name, name)
        if name in keys:
            description["key"] = key
        descriptions.append(description)
        buffers[key], specs[key] = data, _spec(description, data)
    return _Content(buffers, specs, describe(metadata, descriptions))


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
        content = _assemble(state_dict, metadata, compression)
    except SparsityError as error:
        raise SparsityError(f"{path}: {error}") from None
    folder = os.path.dirname(path) or os.curdir
    # a name of its own: two processes may write the same file
    temporary = os.path.join(folder, f".sparse-{secrets.token_hex(8)}.tmp")
    try:
        try:
            _write(temporary, serialize(content.specs, content.metadata), durable)
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
    except SafetensorError as error:  # a header longer than the format has
        raise SparsityError(f"{path}: can't be written ({error})") from None


def _write(path: str, data: bytes, durable: bool) -> None:
    """Write a new file, by system calls alone: ``open`` takes as long as a small file does.

    So does safetensors' own writer, whose files none but their owner may read.
    """
    stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
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
    content = _assemble(state_dict, None, compression)
    return len(serialize(content.specs, content.metadata))


def load_sparse(path: str, device: Any = "cpu", limit: Optional[int] = None) -> Dict[str, Tensor]:
    """Load the tensors of a file in the order, dtypes and shapes that were saved.

    Tensors that were stored as sparse ones come back dense; tied ones tied.

    Args:
        path: a file of :func:`save_sparse`.
        device: where the tensors go.
        limit: bytes that they may take; by default, the memory that is available. A file
            of zeros unfolds to any size.

    Raises:
        SparsityError: missing, no sparse file, damaged, larger than the limit, or no
            such device.
    """
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise SparsityError(f"device {device!r}: can't be used: {reason}") from None
    with _naming(path):
        header, reader = open_checked(os.fspath(path))
        return _load(header, reader, device, limit)


def read_metadata(path: str) -> Dict[str, str]:
    """Read the strings that were saved with a file's tensors.

    Raises:
        SparsityError: missing, no sparse file, or its header is damaged.
    """
    with _naming(path):
        return open_checked(os.fspath(path))[0].metadata


def is_sparse_file(path: str) -> bool:
    """Whether a file is one of :func:`save_sparse`, by its first bytes."""
    try:
        with open(path, "rb", buffering=0) as stream:
            return is_start(stream.read(START_LENGTH))
    except (OSError, ValueError):  # the latter: no file can have such a name
        return False


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Let errors name the file that is read."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise SparsityError(f"{path}: can't be read ({reason})") from None
    except SparsityError as error:
        raise SparsityError(f"{path}: {error}") from None
    except MemoryError:
        raise SparsityError(f"{path}: out of memory") from None


def _available_memory() -> int:
    """Available memory in bytes, as the system estimates it."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            facts = dict(line.split(":") for line in stream)
        return 1024 * sum(int(facts[n].split()[0]) for n in ("MemAvailable", "SwapFree"))
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _load(
    header: Header, reader: Any, device: torch.device, limit: Optional[int]
) -> Dict[str, Tensor]:
    needed = sum(place.nbytes for place in header.tensors if isinstance(place, Buffer))
    if limit is not None and needed > limit:
        raise SparsityError(
            f"its tensors would take {needed:,} bytes, which is more than {limit:,}: it is "
            "damaged, or made to fill the memory"
        )
    if needed > _ASKED_FROM and needed > _available_memory():
        raise SparsityError(f"its tensors take {needed:,} bytes, more than the memory")
    buffers = read_buffers(header, reader)  # all are checked before any unfolds
    tensors: List[Tensor] = []
    for place in header.tensors:
        if isinstance(place, Tie):
            tensor = tensors[place.target]
            if list(tensor.shape) != place.shape:
                tensor = tensor.view(place.shape)
        else:
            try:
                tensor = _decode(place, buffers.pop(place.name)).to(device)
            except SparsityError as error:
                raise SparsityError(f"tensor {place.name!r}: {error}") from None
        tensors.append(tensor)
    return {place.name: tensor for place, tensor in zip(header.tensors, tensors)}


def _decode(place: Buffer, data: np.ndarray) -> Tensor:
    width = width_of(place.dtype)
    words = encodings.decode(place.description, place.nbytes // width, width, data)
    if place.dtype is torch.bool and words.size and words.max() > 1:
        raise SparsityError("it has truth values that are neither 0 nor 1")
    if not words.flags.writeable:
        words = words.copy()
    if not words.size:
        return torch.empty(place.shape, dtype=place.dtype)
    return torch.from_numpy(words).view(place.dtype).reshape(place.shape)
