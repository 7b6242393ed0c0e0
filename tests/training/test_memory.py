"""Freed memory is used again without the system's help."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

from src.acceleration import heap as memory
from src.acceleration.heap import HeapKeeper, keep_freed_memory
from tests.support.training import ROOT

# In a process of its own, on the C library directly: six blocks of 20 MB, 29,297 pages.
ROUNDS = """
import ctypes, resource, runpy
keep = runpy.run_path("src/acceleration/heap.py")["keep_freed_memory"]
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [ctypes.c_void_p(libc.malloc(20_000_000)) for _ in range(6)]
    for block in blocks:
        ctypes.memset(block, 1, 20_000_000)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(4)])
assert keep()
print([faults() for _ in range(4)])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_pages_are_mapped_once():
    command = [sys.executable, "-c", ROUNDS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    plain, kept = (
        [int(n) for n in line.strip("[]").split(",")] for line in done.stdout.splitlines()
    )
    assert max(kept[1:]) < min(plain) / 10  # fewer in all where pages are huge


def test_other_systems_have_no_such_setting(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert not keep_freed_memory()


# Blocks that steps free lie between small ones that stay: none of them is at the top.
FRAGMENTED = """
import ctypes, runpy
names = runpy.run_path("src/acceleration/heap.py")
keeper, resident = names["HeapKeeper"](), names["resident"]
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def step(size):
    blocks = []
    for _ in range(100):
        blocks.append(ctypes.c_void_p(libc.malloc(size)))
        ctypes.memset(blocks[-1], 1, size)
        libc.malloc(64)
    for block in blocks:
        libc.free(block)
sizes, given = [], []
for number in range(20):
    step(1_000_000 + 50_000 * number)
    sizes.append(resident() >> 20)
    given.append(keeper.after_step())
print(sizes)
print(given)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's heap")
def test_a_fragmented_heap_is_given_back():
    command = [sys.executable, "-c", FRAGMENTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    sizes, given = map(eval, done.stdout.splitlines())
    assert 0 < sum(given) < len(given) / 2
    # a step takes 100 to 200 MB; all of them together would have taken 2,900
    assert max(sizes) < 700


def test_memory_is_given_back_when_steps_leave_more(monkeypatch):
    now = [100]
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(memory, "resident", lambda: now[0])
    keeper = HeapKeeper(growth=1.5)
    answers = []
    for now[0] in (100, 120, 149, 151, 110, 160, 166, 90, 160, 170):
        answers.append(keeper.after_step())
    # after the first return a step was seen to need 110
    assert answers == [False] * 3 + [True] + [False] * 2 + [True] + [False] * 2 + [True]


def test_nothing_is_done_where_nothing_is_known(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert not HeapKeeper().after_step()


# Products of 200 shapes; what the heap holds afterwards, in MB.
SHAPES = """
import ctypes
import torch
from src.acceleration.heap import limit_kept_shapes
limit_kept_shapes()
class Heap(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heap
def product(rows):
    x, weight = torch.ones(rows, 64), torch.ones(64, 64)
    torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
product(1000)
before = libc.mallinfo2().uordblks
for rows in range(1001, 1201):
    product(rows)
print((libc.mallinfo2().uordblks - before) / 2**20)
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2") or not torch.backends.mkldnn.is_available(),
    reason="oneDNN on the heap of glibc 2.33 or later",
)
def test_shapes_of_earlier_batches_are_forgotten():
    def kept(**environment):
        given = {k: v for k, v in os.environ.items() if not k.endswith("CACHE_CAPACITY")}
        command = [sys.executable, "-c", SHAPES]
        env = {**given, "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        return float(done.stdout.split()[-1])

    # the environment has the last word
    unlimited = kept(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    assert kept() < 0.4 * unlimited
