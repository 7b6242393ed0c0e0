"""Sparse files: every bit comes back, damaged files never do."""

import ast
import json
import os
import random
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open, serialize
from safetensors.torch import save_file

from src.sparsity.errors import SparsityError
from src.sparsity.files import container, encodings, planes, storage
from src.sparsity.files.storage import (
    is_sparse_file,
    load_sparse,
    read_metadata,
    save_sparse,
    sparse_size,
)
from tests.support.sparse_state import every_encoding

DTYPES = sorted(container.DTYPES)
VERSION_1 = Path(__file__).parent / "data" / "version_1.safetensors"
COMPRESSIONS = encodings.COMPRESSIONS
# of 1000 x 1000 float32 at these densities: entropy of the mask + 4 bytes a value; goal
SIZES = {1 / 2: (2_124_184, 1_829_901), 1 / 16: (293_759, 256_909)}
SIZES[1 / 64] = (77_446, 68_535)


def masked(density: float, size: int = 1000) -> torch.Tensor:
    """The example of ModelPruningLibrary's README, as sparse COO."""
    torch.manual_seed(0)
    x = torch.randn(size=(size, size))
    mask = torch.rand_like(x) <= density
    return (x * mask).to_sparse()


def bits(tensor: torch.Tensor) -> np.ndarray:
    flat = tensor.reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy()


def assert_same(found: dict, expected: dict) -> None:
    """The same names in the same order, and every bit of every tensor."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert np.array_equal(bits(found[name]), bits(tensor)), name


def to_bytes(state, metadata=None, compression="full") -> bytes:
    """The content of the file that ``save_sparse`` writes."""
    content = storage._assemble(state, metadata, compression)
    return bytes(serialize(content.specs, content.metadata))


def load_bytes(data: bytes) -> dict:
    """The tensors of a file with this content."""
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(data)
        stream.flush()
        return load_sparse(stream.name)


def opened(data: bytes) -> tuple:
    """Header with its description parsed, and the buffers, of a file's content."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    facts = header["__metadata__"]
    facts["sparse_file"] = json.loads(facts["sparse_file"].partition(" ")[2])
    return header, data[start:]


def described(data: bytes) -> list:
    """Descriptions of the tensors in a file's content."""
    return opened(data)[0]["__metadata__"]["sparse_file"]["tensors"]


def random_tensor(dtype, shape, density, seed, special=0.0) -> torch.Tensor:
    """Random bits at random places; a share ``special`` of -0.0, infinity and NaN."""
    generator = np.random.default_rng(seed)
    dtype, n = container.DTYPES[dtype], int(np.prod(shape, dtype=int))
    width = container.width_of(dtype)
    n *= dtype.itemsize // width
    kind = f"<u{width}"
    if generator.random() < 0.5 and dtype in (torch.float32, torch.float64):
        words = generator.standard_normal(n).astype(f"<f{width}").view(kind)
    else:
        words = generator.integers(0, 256, n * width, np.uint8).view(kind)
    words = np.where(generator.random(n) < density, words, 0).astype(kind)
    top = 1 << (8 * width - 1)
    odd = np.array([top, top - 1, 2 * top - 1, top // 2 * 3 // 2 * 2], kind)
    chosen = generator.random(n) < special
    words[chosen] = odd[generator.integers(0, len(odd), n)][chosen]
    if dtype is torch.bool:
        words &= 1
    if not n:
        return torch.empty(shape, dtype=dtype)
    signed = torch.from_numpy(words.view(f"<{'u' if width == 1 else 'i'}{width}"))
    return signed.view(dtype).reshape(shape)


tensors = st.builds(
    random_tensor,
    st.sampled_from(DTYPES),
    st.one_of(
        st.lists(st.integers(0, 9), max_size=5),
        st.tuples(st.integers(0, 300), st.integers(0, 90)),
        st.sampled_from([(), (1,), (0,), (70000,), (5, 0, 2)]),
    ),
    st.sampled_from([0, 0.0005, 0.01, 0.06, 0.3, 0.9, 1]),
    st.integers(0, 2**32),
    st.sampled_from([0, 0, 0.01, 0.5]),
)
quick = settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))


@quick
@given(
    st.dictionaries(st.text(max_size=8), tensors, max_size=4),
    st.dictionaries(st.text(max_size=9), st.text(max_size=20), max_size=3),
    st.sampled_from(COMPRESSIONS),
)
@example({"__metadata__": torch.ones(3), "tensor 0": torch.ones(2)}, {}, "full")
@example({"\ud800": torch.zeros(3), '\0"\n': torch.ones(())}, {"\udfff": "\0é𝄞"}, "none")
@example({}, {"sparse_file": "", "sparse_checksum": ""}, "index")
def test_whatever_is_saved_comes_back(state, metadata, compression):
    data = to_bytes(state, metadata, compression)
    assert_same(load_bytes(data), state)
    assert to_bytes(state, metadata, compression) == data


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_at_every_density(dtype, compression):
    state = {}
    for number, density in enumerate((0, 0.0003, 0.004, 0.02, 0.1, 0.4, 0.95, 1)):
        for special in (0, 0.3):
            state[f"{density} {special}"] = random_tensor(
                dtype, (3, 9001), density, number, special
            )
    assert_same(load_bytes(to_bytes(state, None, compression)), state)


def test_many_chunks_with_a_ragged_end():
    n = 3 * encodings._CHUNK + 13
    state = {}
    for density in (0.01, 0.4):
        tensor = torch.where(torch.rand(n) < density, torch.randn(n), 0.0)
        state[f"{density}"] = tensor
        state[f"{density} signed zeros"] = tensor * torch.where(torch.rand(n) < 0.5, -1, 1)
    data = to_bytes(state)
    assert_same(load_bytes(data), state)
    kinds = [item["positions"]["as"] for item in described(data)]
    assert kinds == ["gaps", "gaps", "bitmap", "bitmap"]


@pytest.mark.parametrize("density", SIZES)
def test_sizes_are_those_of_the_table(density, tmp_path):
    state = {"x": masked(density)}
    entropy_bound, goal = SIZES[density]
    save_sparse(tmp_path / "x", state)
    assert (tmp_path / "x").stat().st_size <= 1.02 * goal
    assert sparse_size(state) == (tmp_path / "x").stat().st_size
    # random positions can't take less than their entropy, values not less without planes
    assert entropy_bound <= sparse_size(state, "index") <= 1.01 * entropy_bound
    assert sparse_size(state, "none") >= sparse_size(state, "index")
    dense = {"x": state["x"].to_dense()}
    assert sparse_size(dense) == sparse_size(state)
    assert_same(load_sparse(tmp_path / "x"), dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.01, 0.05, 0.11, 0.14, 0.5, 0.8])
def test_the_estimate_takes_the_smaller_encoding(density, dtype):
    """Bitmap, gaps and dense are all made here; the one chosen is the smallest."""
    generator = torch.Generator().manual_seed(3)
    tensor = torch.randn(200_000, generator=generator, dtype=torch.float32).to(dtype)
    tensor *= torch.rand(200_000, generator=generator) < density
    tensor += 0.0  # no -0.0
    words = storage._words(tensor)
    index = np.flatnonzero(words)

    def size(parts):
        return sum(len(part) for part in parts)

    values = size(planes.pack(words[index], False)[1])
    bitmap = np.packbits(words != 0, bitorder="little")
    sizes = [
        values + size(encodings._pack_gaps(index, len(words), False)[1]),
        values + size(encodings._pack_bitmap(bitmap, len(index), False)[1]),
        size(planes.pack(words, False)[1]),
    ]
    assert size(encodings.encode(words, True, "none")[1]) == min(sizes)


def test_positions_that_follow_a_pattern_take_less_than_random_ones():
    torch.manual_seed(0)
    w = torch.randn(1024, 1024)
    blocks = torch.rand(256, 1024).lt(0.2).repeat_interleave(4, 0)
    half = torch.tensor([True, True, False, False]).repeat(1024, 256)
    rows = torch.rand(1024, 1).lt(0.2).expand(1024, 1024)
    random_bits = {}
    for name, mask in {"4x1": blocks, "2:4": half, "rows": rows}.items():
        state = {"w": torch.where(mask, w, 0.0)}
        random_bits[name] = encodings.position_bits(w.numel(), int(mask.sum())) / 8
        spent = sparse_size(state) - sparse_size({"w": w[mask]})
        limit = {"4x1": 0.45, "2:4": 0.001, "rows": 0.02}[name]
        assert spent < limit * random_bits[name] + 200
        assert_same(load_bytes(to_bytes(state)), state)


def test_zeros_with_a_sign_cost_a_bit():
    torch.manual_seed(0)
    x = torch.randn(1000, 1000)
    product = x * (torch.rand_like(x) <= 1 / 16)
    assert (bits(product)[3::4] == 0x80).sum() > 400_000  # what the product leaves
    data = to_bytes({"x": product})
    assert_same(load_bytes(data), {"x": product})
    assert len(data) < sparse_size({"x": masked(1 / 16)}) + 1.01 * 10**6 / 8


@pytest.mark.parametrize("last", [300, 70_000, 2**33, 2**45])
def test_gaps_of_any_length(last):
    generator = np.random.default_rng(0)
    index = np.unique(generator.integers(0, last, 50))
    for places in (index, index[:1], np.array([last - 1]), np.array([0])):
        description, parts = encodings._pack_gaps(places, last, True)
        source = planes.Bytes(np.concatenate([*parts, np.empty(0, np.uint8)]))
        found = encodings._unpack_gaps(description, last, len(places), source)
        assert np.array_equal(found, places) and not len(source.data)


def test_gaps_at_the_escape():
    for width, most in ((1, 255), (2, 65535)):
        edges = np.array([0, 1, most - 1, most, most + 1, 2 * most, 3 * most - 1])
        index = np.cumsum(np.concatenate([edges, edges[::-1]]) + 1) - 1
        n = {1: 4 * len(index), 2: 400 * len(index)}[width]
        description, parts = encodings._pack_gaps(index, n, True)
        assert description["width"] == width
        source = planes.Bytes(np.concatenate(parts))
        n = int(index[-1]) + 1
        found = encodings._unpack_gaps(description, n, len(index), source)
        assert np.array_equal(found, index)


def test_ties_are_stored_once_and_come_back_tied():
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(64, 64))
    square = torch.randn(40, 40)
    state = {
        "a": w,
        "b": w.detach(),
        "flat": w.detach().view(-1),
        "part": w.detach()[:32],
        "turned": square.t(),
        "turned again": square.t(),
        "copy": w.detach().clone(),
        "empty": torch.empty(0, 3),
        "other empty": torch.empty(0, 4),
    }
    found = load_bytes(to_bytes(state))
    assert_same(found, {name: tensor.detach() for name, tensor in state.items()})
    assert found["a"] is found["b"] and found["turned"] is found["turned again"]
    found["a"][0, 0] = 7
    assert found["flat"][0] == 7
    assert found["part"][0, 0] != 7 and found["copy"][0, 0] != 7
    numbers = torch.randn(9, dtype=torch.complex64)
    state = {"numbers": numbers, "conjugated": numbers.conj()}  # in the same memory
    resolved = {name: tensor.resolve_conj() for name, tensor in state.items()}
    assert_same(load_bytes(to_bytes(state)), resolved)
    one = sparse_size({"a": w})
    assert sparse_size({"a": w, "b": w.detach()}) < one + 100


def test_files_written_before_are_read():
    assert is_sparse_file(VERSION_1)
    assert read_metadata(VERSION_1) == {"note": "é"}
    found = load_sparse(VERSION_1)
    assert_same(found, every_encoding())
    assert found["tied"] is found["bitmap"]
    found["bitmap"].zero_()
    assert not found["flat"].any()


def test_a_tied_model_comes_back_tied(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(30, 30), torch.nn.Linear(30, 30))
    model[1].weight = model[0].weight
    model[0].register_buffer("steps", torch.tensor(3))
    save_sparse(tmp_path / "m", model.state_dict())
    found = load_sparse(tmp_path / "m")
    assert found["0.weight"] is found["1.weight"]
    assert_same(found, model.state_dict())
    model.load_state_dict(found)


def test_strides_and_views():
    base = torch.randn(20, 30, 8).bfloat16()
    state = {
        "transposed": base.permute(2, 0, 1),
        "every second": base[:, ::2, 1:],
        "expanded": base[:1].expand(20, 30, 8),
        "conjugated": torch.randn(90, dtype=torch.complex64).conj(),
        "negated": torch.randn(90, dtype=torch.complex64).conj().imag,
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    plain = {n: t.resolve_conj().resolve_neg() for n, t in state.items()}
    assert_same(load_bytes(to_bytes(state)), plain)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_are_saved_by_content():
    torch.manual_seed(0)
    dense = torch.where(torch.rand(60, 80) < 0.1, torch.randn(60, 80), 0.0)
    i = torch.tensor([[1, 0, 1, 2], [2, 2, 2, 0]])
    sum_of_two = torch.sparse_coo_tensor(i, torch.tensor([1.0, 2, 3, 0]), (3, 4))
    cube = torch.where(torch.rand(9, 8, 7) < 0.1, torch.randn(9, 8, 7), 0.0)
    state = {
        "coo": dense.to_sparse(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((4, 4)),
        "not coalesced": sum_of_two,
        "three indices": cube.to_sparse(),
        "hybrid": cube.to_sparse(2),
        "half": dense.half().to_sparse(),
        "half dense": (dense != 0).to_sparse(),
        "full": torch.ones(9, 9).to_sparse(),
        "complex": dense.to(torch.complex64).to_sparse(),
        "nothing": torch.zeros(30, 30).to_sparse(),
        "empty": torch.zeros(0, 30).to_sparse(),
        "parameter": torch.nn.Parameter(dense.to_sparse()),
    }
    expected = {name: tensor.detach().to_dense() for name, tensor in state.items()}
    assert expected["not coalesced"][1, 2] == 4
    assert_same(load_bytes(to_bytes(state)), expected)


def test_indices_that_do_not_fit_are_refused():
    for index in ([[5]], [[-1]]):
        tensor = torch.sparse_coo_tensor(
            index, [1.0], (4,), check_invariants=False, is_coalesced=True
        )
        with pytest.raises(SparsityError, match="'w' has an index out of bounds"):
            to_bytes({"w": tensor})
    swapped = torch.sparse_coo_tensor(
        [[900, 3]], [1.0, 2], (1000,), check_invariants=False, is_coalesced=True
    )
    found = load_bytes(to_bytes({"w": swapped}))["w"]
    assert found[900] == 1 and found[3] == 2 and found.count_nonzero() == 2


def test_the_example_of_model_pruning_library(tmp_path):
    x = masked(0.5)
    save_sparse(tmp_path / "sparse_x.safetensors", {"x": x})
    loaded = load_sparse(tmp_path / "sparse_x.safetensors")["x"]
    assert torch.equal(loaded, x.to_dense())
    assert (tmp_path / "sparse_x.safetensors").stat().st_size < 2.1e6


def test_any_safetensors_reader_opens_it(tmp_path):
    state = {
        "layer.bias": torch.randn(5),
        "layer.weight": masked(0.1, 50).to_dense(),
        "é𝄞\n": torch.randn(30).bfloat16(),
        "steps": torch.tensor(7),
        "double": torch.randn(3, dtype=torch.float64),
        "flags": torch.tensor([True, False, True]),
        "": torch.zeros(0, 3),
        "__metadata__": torch.ones(3),
    }
    save_sparse(tmp_path / "m.safetensors", state, {"note": "é"})
    with safe_open(str(tmp_path / "m.safetensors"), framework="pt") as opened:
        assert set(opened.keys()) == {*state, "tensor 0"} - {"__metadata__"}
        assert list(opened.metadata()) == ["sparse_file"]
        for name in set(state) - {"layer.weight", "__metadata__"}:
            assert_same({name: opened.get_tensor(name)}, {name: state[name]})
        assert opened.get_tensor("layer.weight").dtype == torch.uint8
    assert read_metadata(tmp_path / "m.safetensors") == {"note": "é"}


def test_a_reader_sees_the_dtypes_and_aligned_buffers(tmp_path):
    path = tmp_path / "model.safetensors"
    raw = torch.arange(64, dtype=torch.uint8)
    names = ["uint8", "int8", "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"]
    state = {n: raw.clone().view(container.DTYPES[n])[:3] for n in (*names, "bfloat16")}
    state["bool"] = raw[:3] > 0
    save_sparse(path, state)
    with safe_open(path, "pt") as file:
        assert_same({name: file.get_tensor(name) for name in state}, state)
    data = path.read_bytes()
    header, buffers = opened(data)
    start = len(data) - len(buffers)
    for name, tensor in state.items():
        assert (start + header[name]["data_offsets"][0]) % tensor.itemsize == 0


def test_truth_values_of_any_byte_are_saved():
    odd = torch.tensor([2, 0, 1, 255] * 30, dtype=torch.uint8).view(torch.bool)
    assert load_bytes(to_bytes({"x": odd}))["x"].tolist() == [True, False, True, True] * 30


def test_what_is_loaded_can_be_written_to(monkeypatch):
    def checked(array, from_numpy=torch.from_numpy):
        assert array.flags.writeable  # torch warns of it, but once only
        return from_numpy(array)

    monkeypatch.setattr(torch, "from_numpy", checked)
    state = {"x": torch.tensor([3] * 500 + [4] * 500, dtype=torch.uint8)}
    assert described(to_bytes(state))[0]["values"]["planes"][0][2] < 1000  # deflated
    load_bytes(to_bytes(state))["x"].zero_()


def test_a_sparse_tensor_without_zeros_takes_what_the_dense_one_does():
    torch.manual_seed(0)
    x = torch.randn(50, 60)
    assert sparse_size({"x": x.to_sparse()}) == sparse_size({"x": x})


def test_is_sparse_file(tmp_path):
    save_sparse(tmp_path / "yes", {"x": torch.ones(3)})
    assert is_sparse_file(tmp_path / "yes")
    torch.save({"x": torch.ones(3)}, tmp_path / "zip")
    save_file({"x": torch.ones(3)}, tmp_path / "safetensors", {"sparse_tensors": "{}"})
    (tmp_path / "text").write_text("some text that is long enough to hold a start" * 3)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut").write_bytes((tmp_path / "yes").read_bytes()[:20])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    assert not is_sparse_file("no\0name")
    names = ("zip", "safetensors", "text", "empty", "cut", "other.zip", "missing", "")
    for name in names:
        assert not is_sparse_file(tmp_path / name), name
        with pytest.raises(SparsityError) as caught:
            load_sparse(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(SparsityError):
            read_metadata(tmp_path / name)


def test_nothing_of_torch_is_changed_and_no_pickle_is_read():
    assert torch.save.__module__ == torch.load.__module__ == "torch.serialization"
    for module in (storage, container, encodings, planes):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names}
                names.add(getattr(node, "module", None))
                assert not names & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("load", "save", "eval", "exec")


REFUSED = {
    "no values yet": (torch.nn.LazyLinear(3).state_dict(), "'weight' has no values yet"),
    "a number": ({"x": 1}, "'x' is no tensor but int"),
    "a name": ({1: torch.ones(1)}, "must be strings"),
    "quantized": (
        {"q": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)},
        "'q': torch.qint8 can't be stored",
    ),
    "meta": ({"m": torch.ones(2, device="meta")}, "'m' has no values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_stored_is_named(case, tmp_path):
    state, message = REFUSED[case]
    with pytest.raises(SparsityError, match=message):
        save_sparse(tmp_path / "x", state)
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_do_not_fit(tmp_path):
    state = {"x": torch.ones(1)}
    with pytest.raises(SparsityError, match="must be one of none, index, full"):
        save_sparse(tmp_path / "x", state, compression="best")
    for unfit in (torch.nn.Linear(2, 2), torch.eye(3).to_sparse(), [torch.eye(3)], None):
        with pytest.raises(SparsityError, match=f"a {type(unfit).__name__} is none; give"):
            save_sparse(str(tmp_path / "file"), unfit)
    with pytest.raises(SparsityError, match="must be strings"):
        save_sparse(tmp_path / "x", state, {"epoch": 3})
    with pytest.raises(SparsityError, match="can't be written .No such file"):
        save_sparse(tmp_path / "missing" / "x", state)


@pytest.mark.parametrize("failing", ["write", "replace", "fsync"])
def test_a_failed_save_leaves_what_was_there(failing, tmp_path, monkeypatch):
    path = tmp_path / "x"
    save_sparse(path, {"x": torch.ones(3)})
    if failing == "write":
        monkeypatch.setattr(storage, "serialize", lambda *_: "no bytes")
        error = TypeError
    else:

        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(storage.os, failing, fail)
        error = SparsityError
    with pytest.raises(error):
        save_sparse(path, {"x": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == [path]
    assert_same(load_sparse(path), {"x": torch.ones(3)})


def test_a_file_has_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        save_sparse(tmp_path / "x", {"x": torch.ones(3)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        call = getattr(storage.os, name)

        def record(*args, name=name, call=call):
            events.append(name)
            return call(*args)

        monkeypatch.setattr(storage.os, name, record)
    save_sparse(tmp_path / "x", {"x": torch.ones(3)})
    assert events == ["fsync", "replace", "fsync"]
    events.clear()
    save_sparse(tmp_path / "x", {"x": torch.ones(3)}, durable=False)
    assert events == ["replace"]


# --- damaged files -------------------------------------------------------------------


def small_state() -> dict:
    """Every encoding in little space."""
    torch.manual_seed(0)
    w = torch.randn(30, 40)
    few = torch.where(torch.rand(50, 60) < 0.03, torch.randn(50, 60), 0.0)
    half = torch.where(torch.rand(30, 40) < 0.5, w, 0.0)
    return {
        "bias": torch.randn(12),
        "gaps": few,
        "bitmap": half,
        "tied": half,
        "flat": half.view(-1),
        "signs": w * (torch.rand(30, 40) < 0.2),
        "constant": torch.ones(100, dtype=torch.int64),
        "mask": torch.rand(90, 20) < 0.1,
        "nothing": torch.zeros(90, 90, dtype=torch.bfloat16),
        "far": torch.zeros(3000).index_fill_(0, torch.tensor([3, 2500]), 1.5),
        "empty": torch.empty(0, 7),
        "number": torch.tensor(5),
    }


def flip(data: bytearray, r: random.Random) -> None:
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)


def overwrite(data: bytearray, r: random.Random) -> None:
    for _ in range(r.choice((1, 3, 20))):
        data[r.randrange(len(data))] = r.randrange(256)


def truncate(data: bytearray, r: random.Random) -> None:
    del data[r.randrange(len(data)) :]


def insert(data: bytearray, r: random.Random) -> None:
    place = r.randrange(len(data) + 1)
    data[place:place] = r.randbytes(r.choice((1, 8, 100)))


def remove(data: bytearray, r: random.Random) -> None:
    place = r.randrange(len(data))
    del data[place : place + r.choice((1, 8, 100))]


def swap(data: bytearray, r: random.Random) -> None:
    size = r.choice((1, 4, 64, 512))
    one, two = sorted(r.randrange(len(data) - size) for _ in range(2))
    first, second = data[one : one + size], data[two : two + size]
    data[two : two + size], data[one : one + size] = first, second


def blank(data: bytearray, r: random.Random) -> None:
    place = r.randrange(len(data))
    size = min(r.choice((1, 64, 4096)), len(data) - place)
    data[place : place + size] = bytes([r.choice((0, 255))]) * size


DAMAGE = (flip, overwrite, truncate, insert, remove, swap, blank)


def test_ten_thousand_damaged_files(tmp_path):
    state = small_state()
    data = to_bytes(state, {"note": "é"})
    header = 8 + int.from_bytes(data[:8], "little")
    r = random.Random(1)
    path = tmp_path / "damaged"
    refused = unchanged = 0
    for number in range(10_000):
        copy = bytearray(data)
        if number % 3:
            r.choice(DAMAGE)(copy, r)
        else:  # in the header
            start = copy[:header]
            r.choice(DAMAGE)(start, r)
            copy[:header] = start
        if copy == data:  # a byte may have been overwritten with itself
            unchanged += 1
            continue
        try:
            if number % 20 == 0:
                path.write_bytes(copy)
                load_sparse(path)
            else:
                load_bytes(bytes(copy))
        except SparsityError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
            assert number % 20 or str(path) in str(error)
        else:
            pytest.fail(f"damaged file {number} was loaded")
    assert refused + unchanged == 10_000 and unchanged < 500


def flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def test_every_bit_of_a_file_matters():
    data = to_bytes({"w": masked(0.1, 30), "\x1b": torch.ones(2)})
    load_bytes(data)
    for place in range(len(data)):
        for bit in range(8):
            with pytest.raises(SparsityError):
                load_bytes(flipped(data, place, bit))


def test_every_byte_of_an_earlier_file_matters():
    data = VERSION_1.read_bytes()
    for place in range(len(data)):
        with pytest.raises(SparsityError):
            load_bytes(flipped(data, place, place % 8))


def sealed(header: dict, data: bytes) -> bytes:
    """A file with checksums that are right."""
    entries = {k: v for k, v in header.items() if k != "__metadata__"}
    text = header["__metadata__"]["sparse_file"]
    for item in text["tensors"]:
        entry = entries.get(item.get("key", item.get("name")))
        try:
            first, last = entry["data_offsets"]
            item["crc32"] = zlib.crc32(data[first:last])
        except (TypeError, KeyError, ValueError):
            pass
    text = json.dumps(text)
    facts = {"sparse_file": f"{zlib.crc32(text.encode()):08x} {text}"}
    written = json.dumps({"__metadata__": facts, **entries}, separators=(",", ":")).encode()
    return len(written).to_bytes(8, "little") + written + data


WRONG = (0, 1, 2, 3, 255, -1, 10**4, 2**31, 2**63, 10**30, 1.5, True, None, "", "gaps")
WRONG += ("bitmap", "float64", "bool", "00", [], [0], [[0, 4, 4]], {}, {"constant": "00"})


def mutate(node, r: random.Random) -> None:
    """Put something else into one place of nested lists and mappings."""
    places = []

    def collect(parent):
        for key in parent if isinstance(parent, dict) else range(len(parent)):
            places.append((parent, key))
            if isinstance(parent[key], (dict, list)) and len(parent[key]):
                collect(parent[key])

    collect(node)
    parent, key = r.choice(places)
    value = parent[key]
    if type(value) is int and r.random() < 0.6:
        parent[key] = value + r.choice((-8, -1, 1, 8))
    elif r.random() < 0.2:
        del parent[key]
    elif r.random() < 0.2:
        other, another = r.choice(places)
        parent[key] = (
            json.loads(json.dumps(other.get(another, 0))) if isinstance(other, dict) else 0
        )
    else:
        parent[key] = json.loads(json.dumps(r.choice(WRONG)))


def test_wrong_content_with_right_checksums_is_an_error_of_the_file(
    monkeypatch,
):
    """Whoever makes a file can make its checksums, but no other exception."""
    monkeypatch.setattr(storage, "_available_memory", lambda: 10**6)
    monkeypatch.setattr(storage, "_ASKED_FROM", 10**6)
    data = to_bytes(small_state(), {"note": ""})
    header, buffers = opened(data)
    assert_same(load_bytes(sealed(header, buffers)), small_state())
    text = json.dumps(header)
    r = random.Random(2)
    refused = 0
    for number in range(2500):
        header, copy = json.loads(text), bytearray(buffers)
        if number % 4:
            mutate(header, r)
        else:
            r.choice((flip, overwrite, swap, blank))(copy, r)
        try:
            forged = sealed(header, bytes(copy))
        except (TypeError, KeyError, AttributeError):
            continue  # no description left to seal
        try:
            found = load_bytes(forged)
        except SparsityError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
        else:
            for tensor in found.values():
                tensor.float() if tensor.element_size() < 4 else tensor.sum()
    assert refused > 1200


def forged_tensor(**changes) -> bytes:
    """A file of one sparse tensor whose description was changed."""
    header, buffers = opened(to_bytes({"w": masked(0.03, 100).to_dense()}))
    header["__metadata__"]["sparse_file"]["tensors"][0].update(changes)
    return sealed(header, buffers)


FORGED = {
    "a shape beyond memory": ({"shape": [2**50]}, "more than the memory"),
    "a shape beyond everything": ({"shape": [2**40, 2**40]}, "too large"),
    "a shape too small": ({"shape": [10, 10]}, "number of values|out of bounds"),
    "a negative shape": ({"shape": [-100, -100]}, "shape is wrong"),
    "another dtype": ({"dtype": "float64"}, "wrong|overlap|missing|line"),
    "an unknown dtype": ({"dtype": "float7"}, "'float7' is unknown"),
    "an unknown form": ({"positions": {"count": 296, "as": "tree"}}, "'tree'"),
    "no positions": ({"positions": None}, "compressed data|plane"),
    "no values": ({"values": None}, "'planes'"),
    "signs alone": ({"positions": None, "signs": {}}, "signs without positions"),
    "signs over values": (
        {"signs": {"count": 10**4, "as": "bitmap", "words": {"constant": "ff"}}},
        "one position",
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_contradictions_are_named(case):
    changes, message = FORGED[case]
    with pytest.raises(SparsityError, match=message) as caught:
        load_bytes(forged_tensor(**changes))
    assert "tensor 'w'" in str(caught.value) or "memory" in str(caught.value)


def test_a_small_file_of_much_is_refused_by_its_header(tmp_path):
    """275 kB of a file can stand for gigabytes."""
    data = forged_tensor(shape=[2**31], positions=None, values={"constant": "00000001"})
    path = tmp_path / "bomb"
    path.write_bytes(data)
    with pytest.raises(SparsityError, match="would take 8,589,934,592 bytes, which is more than"):
        load_sparse(path, limit=2**30)


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    save_sparse(tmp_path / "x", {"x": masked(0.1, 50)})

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(encodings, "decode", fail)
    with pytest.raises(SparsityError, match="x: out of memory$"):
        load_sparse(tmp_path / "x")


BIT, GAP = {"planes": [[0, 1, 2]]}, {"planes": [[0, 1, 1]]}
ONE = {"count": 1, "as": "gaps", "width": 1, "symbols": 1, "words": GAP}


@pytest.mark.parametrize(
    "n, data, message, positions, more",
    [
        (12, [0, 32], "out of bounds", {"count": 1, "as": "bitmap", "words": BIT}, {}),
        (12, [12], "out of bounds", ONE, {}),
        (300, [5, 255], "gaps contradict", {**ONE, "symbols": 2, "words": BIT}, {}),
        (12, [3, 3], "one position", ONE, {"signs": ONE}),
        (12, [3, 0], "more data than described", ONE, {}),
    ],
)
def test_positions_that_cannot_be_are_refused(n, data, message, positions, more):
    description = {"values": {"constant": "00000001"}, "positions": positions, **more}
    with pytest.raises(SparsityError, match=message):
        encodings.decode(description, n, 4, np.array(data, np.uint8))


def test_data_behind_a_deflated_plane_are_refused():
    words = np.arange(100, dtype=np.uint8) % 3
    description, (data,) = planes.pack(words, True)
    assert np.array_equal(planes.unpack(description, 100, 1, planes.Bytes(data)), words)
    description["planes"][0][2] += 1
    longer = planes.Bytes(np.append(data, np.uint8(7)))
    with pytest.raises(SparsityError, match="wrong length"):
        planes.unpack(description, 100, 1, longer)


def test_truth_values_and_strings_are_checked():
    header, buffers = opened(to_bytes({"w": torch.arange(99, dtype=torch.uint8)}))
    header["__metadata__"]["sparse_file"]["tensors"][0]["dtype"] = "bool"
    with pytest.raises(SparsityError, match="neither 0 nor 1"):
        load_bytes(sealed(header, buffers))
    header, buffers = opened(to_bytes({"w": torch.ones(3)}, {"note": ""}))
    header["__metadata__"]["sparse_file"]["metadata"]["note"] = 3
    with pytest.raises(SparsityError, match="metadata are no strings"):
        load_bytes(sealed(header, buffers))


def test_a_bomb_is_refused_before_it_unfolds():
    """A megabyte deflated to a kilobyte that is declared to be ten bytes, or too many."""
    bomb = planes._deflate(np.zeros(10**6, np.uint8), planes._MATCHES)
    bomb = np.frombuffer(bomb, np.uint8)
    assert len(planes._inflate(bomb, 10**6)) == 10**6
    with pytest.raises(SparsityError, match="wrong length"):
        planes._inflate(bomb, 2 * len(bomb))
    with pytest.raises(SparsityError, match="wrong length"):
        planes._inflate(bomb, 10**6 + 1)
    with pytest.raises(SparsityError, match="too short"):
        planes._inflate(bomb, 10**9)
    with pytest.raises(SparsityError, match="damaged|wrong length"):
        planes._inflate(bomb[:-3], 10**6)


@pytest.mark.parametrize("bits_of_byte", [0, 1, 3, 8])
def test_what_is_deflated_is_zlibs_and_zlibs_is_read(bits_of_byte):
    """Files of other releases and readers: deflate is a standard."""
    generator = np.random.default_rng(bits_of_byte)
    for size in (65, 3000, 300_000):
        plane = generator.integers(0, 2**bits_of_byte, size).astype(np.uint8)
        for how in (planes._MATCHES, planes._CODES):
            assert zlib.decompress(planes._deflate(plane, how), -15) == plane.tobytes()
        for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
            stream = zlib.compressobj(1, zlib.DEFLATED, -15, 9, strategy)
            data = np.frombuffer(stream.compress(plane) + stream.flush(), np.uint8)
            assert np.array_equal(planes._inflate(data, size), plane)


def test_versions_and_doubles():
    header, buffers = opened(to_bytes({"a": torch.ones(3), "b": torch.zeros(3)}))
    header["__metadata__"]["sparse_file"]["version"] = 3
    with pytest.raises(SparsityError, match="version 3; this release reads up to 2"):
        load_bytes(sealed(header, buffers))
    header["__metadata__"]["sparse_file"]["version"] = 2
    items = header["__metadata__"]["sparse_file"]["tensors"]
    items[1].update(name="a", key="b")
    with pytest.raises(SparsityError, match="one name"):
        load_bytes(sealed(header, buffers))
    del items[1]
    with pytest.raises(SparsityError, match="no tensor's"):
        load_bytes(sealed(header, buffers))
    with pytest.raises(SparsityError, match="truncated or damaged"):
        load_bytes(to_bytes({"a": torch.ones(3)}) + b"more")


@pytest.mark.parametrize("device", ["cup", "cpu:a", "cuda:99", 0.5])
def test_a_device_that_is_none(device, tmp_path):
    save_sparse(tmp_path / "file", {"a": torch.ones(3)})
    with pytest.raises(SparsityError, match="device .*: can't be used: "):
        load_sparse(tmp_path / "file", device=device)
