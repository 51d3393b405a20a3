"""Freed memory is kept: taking it again costs no page fault."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Blocks above 32 MB come from the system and return to it, one by one, in a process that was told nothing: the largest
# value that glibc lets its own threshold grow to (mallopt(3)). Smaller ones may stay by luck.
PROBE = """
import ctypes, resource, sys, torch
from zerozoo.runs.allocator import keep_freed_memory
if not hasattr(ctypes.CDLL(None), "mallinfo2") or sys.argv[1] == "keep" and not keep_freed_memory():
    print("no glibc")
    sys.exit()
FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Mallinfo
def use():
    kept = [torch.zeros(10 * 2**20) for _ in range(3)]  # 40 MB each
    return mallinfo().hblkhd
for _ in range(10):
    use()
before, mapped = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, mallinfo().hblkhd
taken = max(use() for _ in range(5)) - mapped
print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def taken_and_faults(how: str) -> tuple[int, int]:
    """Bytes that are asked from the system by themselves while 120 MB are in use; page faults of five such uses."""
    done = subprocess.run([sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True)
    if "no glibc" in done.stdout:
        pytest.skip("this C library cannot be told to keep memory, or tells nothing of it")
    taken, faults = done.stdout.split()
    return int(taken), int(faults)


def test_memory_that_was_freed_is_taken_again_without_asking_the_system() -> None:
    taken, faults = taken_and_faults("keep")
    assert taken == 0
    assert faults < 40_000  # 600 MB are 150,000 pages; the heap may still grow by a block or two


def test_a_process_that_was_told_nothing_asks_for_such_blocks_each_time() -> None:
    taken, _ = taken_and_faults("default")  # without this the test above could not fail
    assert taken >= 3 * 40 * 2**20
