"""Freed memory is used again without the system's help."""

import platform
import subprocess
import sys

import pytest
from conftest import ROOT

from src.memory import keep_freed_memory

# In a process of its own, on the C library directly: six blocks of 20 MB, 29,297 pages.
ROUNDS = """
import ctypes, resource, runpy
keep = runpy.run_path("src/memory.py")["keep_freed_memory"]
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
