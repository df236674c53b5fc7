"""Huge pages for what is loaded once and read by every step.

A decode step reads every weight, and in pages of 4 KiB the processor must look up an address for
each of them. Linux gives huge pages by itself where
/sys/kernel/mm/transparent_hugepage/enabled says `always`; elsewhere it wants advice.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAPS, PAGEMAP = Path("/proc/self/maps"), Path("/proc/self/pagemap")
HUGE = 2 << 20  # bytes of a huge page on x86-64, and on AArch64 with pages of 4 KiB
# How much of a huge page must be in use: the rest is memory that was not taken before.
_FULL = 0.95
_MADV_COLLAPSE = 25  # Linux 6.1
_PRESENT = np.uint64(1 << 63)
_ANONYMOUS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0\s*(?:\[heap\])?")


@contextmanager
def huge_pages() -> Iterator[None]:
    """Put memory that is filled within the block into huge pages when it ends.

    This is advice: where the system does not know it, or has no huge page free, nothing changes.
    No more memory is in use afterwards than before, but for a twentieth at most.
    """
    if not _is_known():
        yield
        return
    before = _filled()
    yield
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for first, last in _runs(np.setdiff1d(_filled(), before, assume_unique=True)):
        libc.madvise(first * HUGE, (last - first) * HUGE, _MADV_COLLAPSE)


def _is_known() -> bool:
    return sys.platform == "linux" and mmap.PAGESIZE == 4096 and PAGEMAP.is_file()


def _filled() -> NDArray[np.int64]:
    """Numbers of the aligned spans of `HUGE` bytes that this process fills with memory of its own.

    Address over `HUGE`, ascending.
    """
    found = [np.zeros(0, np.int64)]
    pages = HUGE // mmap.PAGESIZE
    with PAGEMAP.open("rb", buffering=0) as pagemap:
        for line in MAPS.read_text().splitlines():
            match = _ANONYMOUS.fullmatch(line)
            if match is None:
                continue
            first, last = -(-int(match[1], 16) // HUGE), int(match[2], 16) // HUGE
            if first >= last:
                continue
            pagemap.seek(first * pages * 8)
            entries = np.frombuffer(pagemap.read((last - first) * pages * 8), np.uint64)
            present = (entries & _PRESENT != 0).reshape(-1, pages).mean(1)
            found.append(first + (present >= _FULL).nonzero()[0])
    return np.concatenate(found)


def _runs(numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ascending numbers as half-open ranges."""
    if not len(numbers):
        return []
    breaks = (np.diff(numbers) != 1).nonzero()[0]
    firsts = numbers[np.concatenate([[0], breaks + 1])]
    lasts = numbers[np.concatenate([breaks, [len(numbers) - 1]])] + 1
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
