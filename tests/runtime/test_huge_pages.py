"""Memory filled within a block lies in huge pages afterwards, and holds what it held."""

from __future__ import annotations

import mmap
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avl_runtime.machine import huge_pages as module
from avl_runtime.machine.huge_pages import HUGE, huge_pages

MIB = 1 << 20


def _in_huge_pages(address: int) -> int | None:
    """Bytes in huge pages of the mapping that holds `address`; None if the kernel does not say."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and (found := re.match(r"AnonHugePages:\s+(\d+) kB", line)):
            return int(found[1]) * 1024
    return None


def _filled(size: int) -> np.ndarray:
    """An array in pages of its own, without the advice that NumPy gives for large ones."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, np.uint32)
    array[:] = np.arange(len(array))
    return array


def _advice_is_taken() -> bool:
    """Whether this kernel makes huge pages when, and only when, it is asked to (Linux 6.1)."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[madvise]" not in setting.read_text():
        return False
    memory = mmap.mmap(-1, 4 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"\1" * len(memory))
    try:
        memory.madvise(25)
    except (AttributeError, OSError, ValueError):
        return False
    return True


@pytest.mark.skipif(not _advice_is_taken(), reason="huge pages are not given on advice alone here")
def test_memory_filled_in_the_block_moves() -> None:
    before = _filled(16 * MIB)
    assert _in_huge_pages(before.ctypes.data) == 0  # else the test shows nothing
    with huge_pages():
        within = _filled(16 * MIB)
    found = _in_huge_pages(within.ctypes.data)
    assert found is not None
    assert found >= 12 * MIB  # all but the spans that are not aligned
    np.testing.assert_array_equal(within, np.arange(len(within)))
    np.testing.assert_array_equal(before, np.arange(len(before)))


@pytest.mark.skipif(not _advice_is_taken(), reason="huge pages are not given on advice alone here")
def test_memory_that_is_hardly_used_stays() -> None:
    with huge_pages():
        memory = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        array = np.frombuffer(memory, np.uint8)
        array[:: 64 * 1024] = 1  # one page of sixteen
    assert _in_huge_pages(array.ctypes.data) == 0


def test_an_unknown_system_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PAGEMAP", tmp_path / "absent")
    with huge_pages():
        array = _filled(4 * MIB)
    np.testing.assert_array_equal(array, np.arange(len(array)))


@given(st.sets(st.integers(0, 60)))
def test_runs_are_the_same_numbers(numbers: set[int]) -> None:
    runs = module._runs(np.array(sorted(numbers), np.int64))
    assert [n for first, last in runs for n in range(first, last)] == sorted(numbers)
    assert all(a[1] < b[0] for a, b in pairwise(runs))
