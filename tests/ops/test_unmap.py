"""unmap.c lets go of what a file has, and of nothing else."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest

from support.compiled import compiled

PAGES = 600  # more than are looked at together
SIZE = PAGES * mmap.PAGESIZE


@pytest.fixture
def library(tmp_path: Path, kernels: Path) -> ctypes.CDLL:
    if sys.platform != "linux":
        pytest.skip("there is no /proc/self/pagemap")
    return compiled("unmap.c", tmp_path)


def held(memory: mmap.mmap) -> int:
    """Bytes of a mapping that are in memory."""
    start = address(memory)
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if words[0].count("-") == 1 and not words[0].endswith(":"):
            first, last = (int(word, 16) for word in words[0].split("-"))
            found = first <= start < last
        elif found and words[0] == "Rss:":
            return int(words[1]) << 10
    raise AssertionError("not mapped")


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def unmap(library: ctypes.CDLL, memory: mmap.mmap) -> None:
    library.avl_unmap(ctypes.c_void_p(address(memory)), ctypes.c_size_t(SIZE))


def test_pages_of_a_file_are_let_go(library: ctypes.CDLL, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * (SIZE // 256))
    with file.open("r+b") as opened:
        memory = mmap.mmap(opened.fileno(), SIZE, access=mmap.ACCESS_COPY)
        before = memory[:]
        assert held(memory) == SIZE
        unmap(library, memory)
        assert held(memory) == 0
        assert memory[:] == before
        memory[SIZE - 5] ^= 255
        changed = memory[:]
        unmap(library, memory)
        assert memory[:] == changed != before


def test_memory_of_its_own_is_kept(library: ctypes.CDLL) -> None:
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = bytes(range(256)) * (SIZE // 256)
    unmap(library, memory)
    assert memory[:] == bytes(range(256)) * (SIZE // 256)
