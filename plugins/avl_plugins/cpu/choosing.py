"""Choices before the decoder, among many tokens of a picture: kernels that policies ask.

What they compute, `avl_plugins.policies.embedded` computes in NumPy where there is no library: with
the same choices, as far as float32 tells tokens apart.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from avl_plugins import cpu

Scores = NDArray[np.floating]
Ints = NDArray[np.int64]

PANEL: Final = 48  # AVL_PANEL of likeness.h
KNOWN: Final = 24  # neighbours of a token that are looked up before all are compared
ROWS: Final = 64  # tokens of a task
_THREADS: ContextVar[int | None] = ContextVar("threads of choices", default=None)


class _Likeness(ctypes.Structure):
    """`avl_likeness` of likeness.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "width", "stride")),
        *((name, ctypes.c_void_p) for name in ("features", "panels", "out")),
        ("temperature", ctypes.c_float),
    )


class _Cover(ctypes.Structure):
    """`avl_cover` of choosing.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "things")),
        *((name, ctypes.c_void_p) for name in ("covers", "shares", "weights", "gains", "best")),
        *((name, ctypes.c_void_p) for name in ("order", "looked")),
    )


class _Repeats(ctypes.Structure):
    """`avl_repeats` of choosing.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "known")),
        *((name, ctypes.c_void_p) for name in ("near", "likest", "keys", "order", "states")),
    )


@dataclass(frozen=True, slots=True)
class Choosing:
    """Functions of a compiled library, which run in threads (`on_threads`)."""

    library: Any

    def likeness(
        self, features: Scores, temperature: float = 0, out: Scores | None = None
    ) -> Scores:
        """Cosines of rows [n, C] with each other, in float32; those of zeros are 0.

        Args:
            temperature: above 0: e ** ((cosine - 1) / temperature) in place of cosines.
            out: [n, n] float32 to write to, rows of a wider array; None: a new one.
        """
        rows = np.ascontiguousarray(features, np.float32)
        tokens, width = rows.shape
        out = np.empty((tokens, tokens), np.float32) if out is None else out
        if out.shape != (tokens, tokens) or out.dtype != np.float32 or out.strides[1] != 4:
            raise ValueError(
                f"expected {tokens} rows of as many float32 side by side, found others"
            )
        count = -(-tokens // PANEL)
        panels = np.empty((count, width, PANEL), np.float32)
        sizes = tokens, width, out.strides[0] // 4
        data = [array.ctypes.data for array in (rows, panels, out)]
        of = ctypes.byref(_Likeness(*sizes, *data, temperature))
        _shared(self.library.avl_unit_panels, of, range(count), 1)
        _shared(self.library.avl_compare_panels, of, range(count - 1, -1, -1), 1)
        return out

    def cover(self, covers: Scores, count: int, weights: Scores, shares: Scores) -> Ints:
        """`count` of n tokens, each next one that which adds most to what is covered.

        Args:
            covers: [n, m] float32, how well each token covers each of m things, but for `shares`
                [m], with which it is multiplied in place.
            weights: [n], at least 0: what a token's gain counts.
        """
        tokens, things = covers.shape
        if covers.dtype != np.float32 or not covers.flags.c_contiguous:
            raise ValueError("expected covers in float32, side by side, found others")
        weights = np.ascontiguousarray(weights, np.float64)
        shares = np.ascontiguousarray(shares, np.float32)
        gains, best = np.empty(tokens), np.zeros(things, np.float32)
        order, chosen = np.empty((2, tokens), np.int64), np.empty(count, np.int64)
        arrays = covers, shares, weights, gains, best, order[0], order[1]
        of = ctypes.byref(_Cover(tokens, things, *(array.ctypes.data for array in arrays)))
        _shared(self.library.avl_add_gains, of, range(0, tokens, ROWS), ROWS, tokens)
        self.library.avl_cover_most(of, count, chosen.ctypes.data)
        return chosen

    def without_repeats(self, near: Scores, left: Ints, most: int, drop: int) -> Ints:
        """`most` of n tokens that repeat each other least, by rounds as VisPruner's.

        Args:
            near: [n, n], how alike they are.
            left: their numbers, in order.
            drop: how many a round drops at most.
        """
        tokens = len(near)
        known = min(KNOWN, tokens - 1)
        near, left = np.ascontiguousarray(near, np.float32), left.astype(np.int64)
        likest, keys = np.empty((tokens, known), np.int32), np.empty((2, tokens), np.uint64)
        arrays = near, likest, keys, np.empty(tokens, np.int64), np.empty(tokens, np.uint8)
        of = ctypes.byref(_Repeats(tokens, known, *(array.ctypes.data for array in arrays)))
        _shared(self.library.avl_find_likest, of, range(0, tokens, ROWS), ROWS, tokens)
        self.library.avl_drop_repeats(of, left.ctypes.data, len(left), most, drop)
        return left[:most]


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Have choices inside take so many threads; elsewhere there is one for each processor."""
    before = _THREADS.set(count)
    try:
        yield
    finally:
        _THREADS.reset(before)


def choosing() -> Choosing | None:
    """Those of the library in use; None where there is none.

    Raises:
        OSError: the library is damaged, for another machine, or of another version of avl.
    """
    return cpu.loaded(_functions)


@functools.cache
def _functions(library: Path) -> Choosing:
    loaded = ctypes.CDLL(str(library))
    address, size = ctypes.c_void_p, ctypes.c_int64
    for name in ("unit_panels", "compare_panels", "add_gains", "find_likest"):
        function = getattr(loaded, f"avl_{name}")
        function.restype, function.argtypes = None, (address, size, size)
    cover, drop = loaded.avl_cover_most, loaded.avl_drop_repeats
    cover.restype, cover.argtypes = None, (address, size, address)
    drop.restype, drop.argtypes = None, (address, address, size, size, size)
    return Choosing(loaded)


def _shared(
    function: Callable[[Any, int, int], None], of: Any, tasks: range, size: int, end: int = 1 << 62
) -> None:
    """Does tasks of `size` numbers up to `end`; ctypes lets go of Python's lock meanwhile."""

    def work(begin: int) -> None:
        function(of, begin, min(begin + size, end))

    with ThreadPoolExecutor(_THREADS.get() or os.cpu_count()) as pool:
        for _ in pool.map(work, tasks):
            pass
