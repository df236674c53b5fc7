"""Pages for large arrays, which are used again for arrays of any other size.

An allocator hands out what was freed only where a piece of it is large enough, so a process whose
arrays change their sizes comes to hold far more than they ever took together. Here pages that lie
apart are moved side by side (Linux's mremap, which copies nothing): what is held is the most that
arrays took together, and no page that is held is cleared a second time.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import mmap
import sys
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

GRANULE: Final = 64 << 10  # bytes that lie together at least
LEAST: Final = 1 << 20  # bytes of an array; the system's allocator does well with smaller ones
MOST_PARTS: Final = 256  # of an array: each is a mapping, and Linux lets a process have 65530
_MOVE_TO_PLACE: Final = 1 | 2  # MREMAP_MAYMOVE, MREMAP_FIXED
_MAP_FIXED: Final = 0x10  # which the module mmap lacks
_FAILED: Final = ctypes.c_void_p(-1).value


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes within one mapping of the system's, which is moved part by part."""

    size: int
    mapping: int


@dataclass(slots=True)
class _Run:
    """Parts side by side, from an address on."""

    at: int
    parts: list[_Part]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def cut(self, size: int) -> _Run:
        """Shorten this to so many bytes; the rest of it, which may have no part."""
        parts, rest, left = [], [], size
        for part in self.parts:
            mine = min(part.size, left)
            if mine:
                parts.append(_Part(mine, part.mapping))
            if mine < part.size:
                rest.append(_Part(part.size - mine, part.mapping))
            left -= mine
        self.parts = parts
        return _Run(self.at + size, rest)


class _Taken:
    """Pages of an array, given back when it and all views of it are gone."""

    def __init__(self, run: _Run, nbytes: int, back: deque[_Run]) -> None:
        self._run, self._back = run, back
        place = {"data": (run.at, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}
        self.__array_interface__ = place

    def __del__(self) -> None:
        self._back.append(self._run)  # takes no lock, as it may run anywhere


class Pages:
    """Memory for arrays of `LEAST` bytes or more; threads may share it."""

    def __init__(self) -> None:
        self._used = False
        self._free: list[_Run] = []
        self._back: deque[_Run] = deque()
        self._held = self._kept = 0
        self._mappings = itertools.count()
        self._lock = threading.Lock()

    def use(self) -> None:
        """Make arrays here from now on, where the system can move pages."""
        self._used = sys.platform == "linux"

    @property
    def held(self) -> int:
        """Bytes of all pages, those of arrays among them."""
        return self._held

    @property
    def surplus(self) -> int:
        """Bytes that `give_back` would give back now."""
        with self._lock:
            self._collect()
            free = sum(run.size for run in self._free)
            return max(0, min(free, self._held - self._kept))

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array whose numbers are whatever they are; NumPy's own where this is not used."""
        kind = np.dtype(dtype)
        nbytes = math.prod(shape) * kind.itemsize
        run = self._take(nbytes) if self._used and nbytes >= LEAST else None
        if run is None:
            return np.empty(shape, kind)
        return np.asarray(_Taken(run, nbytes, self._back)).view(kind).reshape(shape)

    def keep(self, nbytes: int) -> None:
        """Hold so many bytes, from now on and whether arrays need them or not.

        Raises:
            MemoryError: the system does not give them.
        """
        if not self._used:
            return
        with self._lock:
            kept = _rounded(nbytes)
            missing = kept - self._held
            if missing > 0:
                run = self._mapped(missing, mmap.MAP_POPULATE)
                if run is None:
                    raise MemoryError(f"expected {missing} bytes of memory, found fewer")
                self._held += missing
                self._free.append(run)
            self._kept = kept

    def give_back(self) -> None:
        """Give the system the pages that no array has, but for what is kept."""
        with self._lock:
            self._collect()
            over = self._held - self._kept
            for run in list(self._free):
                over -= self._unmap(run, over)

    def _take(self, nbytes: int) -> _Run | None:
        """Pages for an array; None where the system has none."""
        size = _rounded(nbytes)
        with self._lock:
            self._collect()
            large = [run for run in self._free if run.size >= size]
            if not large:
                return self._joined(size)
            run = min(large, key=lambda one: one.size)
            self._free.remove(run)
            self._put(run.cut(size))
            return run

    def _joined(self, size: int) -> _Run | None:
        """Free pages that lie apart, side by side, and behind them new ones as far as need be."""
        run = self._mapped(size)
        if run is None:
            return None
        (place,) = run.parts
        at, end, parts = run.at, run.at + size, list[_Part]()
        for free in sorted(self._free, key=lambda one: one.size, reverse=True):
            while free.parts and at < end and len(parts) < MOST_PARTS:
                part = _Part(min(free.parts[0].size, end - at), next(self._mappings))
                if not _move(free.at, part.size, at):
                    # The system may have taken away what lay there before it refused.
                    if self._mapped(end - at, _MAP_FIXED, at) is None:
                        raise MemoryError(f"expected room for {end - at} bytes, found none")
                    break
                rest = free.cut(part.size)
                free.at, free.parts = rest.at, rest.parts
                parts.append(part)
                at += part.size
        self._free = [one for one in self._free if one.parts]
        if at < end:
            self._held += end - at
            parts.append(_Part(end - at, place.mapping))
        run.parts = parts
        return run

    def _collect(self) -> None:
        """Have what arrays gave back among what is free, with neighbours in one run."""
        if not self._back:
            return
        while self._back:
            self._free.append(self._back.popleft())
        found: list[_Run] = []
        for run in sorted(self._free, key=lambda one: one.at):
            if found and found[-1].at + found[-1].size == run.at:
                found[-1].parts = _together([*found[-1].parts, *run.parts])
            else:
                found.append(run)
        self._free = found

    def _put(self, run: _Run) -> None:
        if run.parts:
            self._free.append(run)

    def _mapped(self, size: int, how: int = 0, at: int | None = None) -> _Run | None:
        """New pages of zeros, which the system finds when they are first written."""
        anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        at = _libc().mmap(at, size, rights, anonymous | how, -1, 0)
        return None if at in (None, _FAILED) else _Run(at, [_Part(size, next(self._mappings))])

    def _unmap(self, run: _Run, most: int) -> int:
        """Give back the end of a free run, of so many bytes at most; how many they were."""
        size = min(run.size, most)
        if size <= 0:
            return 0
        rest = run.cut(run.size - size)
        if not run.parts:
            self._free.remove(run)
        _libc().munmap(rest.at, size)
        self._held -= size
        return size


def _together(parts: Iterable[_Part]) -> list[_Part]:
    """Parts side by side, those of one mapping as one."""
    found: list[_Part] = []
    for part in parts:
        if found and found[-1].mapping == part.mapping:
            found[-1] = _Part(found[-1].size + part.size, part.mapping)
        else:
            found.append(part)
    return found


def _rounded(nbytes: int) -> int:
    return -(-nbytes // GRANULE) * GRANULE


def _move(at: int, size: int, to: int) -> bool:
    """Have pages lie elsewhere, in place of what lies there; whether they do."""
    found: int | None = _libc().mremap(at, size, size, _MOVE_TO_PLACE, to)
    return found == to


@functools.cache
def _libc() -> ctypes.CDLL:
    found = ctypes.CDLL(None)
    size, place = ctypes.c_size_t, ctypes.c_void_p
    found.mmap.argtypes = (place, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    found.mremap.argtypes = (place, size, size, ctypes.c_int, place)
    found.munmap.argtypes = (place, size)
    found.mmap.restype = found.mremap.restype = place
    return found


# Rows of sequences, and those that prompts leave for others: apart, so that each of the two holds
# no more than its own limit.
ROWS: Final = Pages()
LEFT: Final = Pages()
