"""Choices before the decoder, among the tokens of a picture: kernels that policies ask.

What they compute, `avl_plugins.policies.embedded` computes in NumPy where there is no library: with
the same choices, as far as float64 tells tokens apart, or float32 where there are many of them.
NumPy's products are not asked for where there is one: they take threads of their own, as many as
they like.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from avl_plugins import cpu
from avl_plugins.cpu.sharing import shared, threads_for

Scores = NDArray[np.floating]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

PANEL: Final = 48  # AVL_PANEL of likeness.h
GROUP: Final = 16  # AVL_GROUP
LINE: Final = 8  # AVL_LINE_WORDS
TURN: Final = 1, 0  # in the state of a race
KNOWN: Final = 32  # neighbours of a token that are looked up before all are compared
ROWS: Final = 128  # tokens of a task
PANELS: Final = 4  # panels of one, where little is done with each


class _Likeness(ctypes.Structure):
    """`avl_likeness` of likeness.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("fine", "tokens", "width")),
        *((name, ctypes.c_void_p) for name in ("features", "panels")),
        *(("others", ctypes.c_int64), ("beside", ctypes.c_void_p)),
        *(("stride", ctypes.c_int64), ("out", ctypes.c_void_p)),
        *(("temperature", ctypes.c_double), ("greatest", ctypes.c_void_p)),
    )


class _Race(ctypes.Structure):
    """`avl_race` of greedy.h: of tokens that are worth so much at first."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "threads")),
        *((name, ctypes.c_void_p) for name in ("worth", "runners", "looked", "state")),
    )

    def __init__(self, worth: Doubles, threads: int) -> None:
        runners, looked = np.empty((len(worth), 2), np.int64), np.empty(len(worth), np.int64)
        self.lines = np.zeros((3 + 2 * threads, LINE), np.int64)
        self.held = worth, runners, looked, self.lines  # as long as it is run
        data = (array.ctypes.data for array in self.held)
        super().__init__(len(worth), threads, *data)


class _Cover(ctypes.Structure):
    """`avl_cover` of greedy.h."""

    _fields_ = (
        *(("race", _Race), ("things", ctypes.c_int64)),
        *((name, ctypes.c_void_p) for name in ("covers", "shares", "weights", "best")),
    )


class _Spanning(ctypes.Structure):
    """`avl_spanning` of greedy.h."""

    _fields_ = (
        *(("race", _Race), ("of", _Likeness)),
        *(("count", ctypes.c_int64), ("relevance", ctypes.c_void_p)),
        *((name, ctypes.c_double) for name in ("weight", "smallest")),
        *((name, ctypes.c_void_p) for name in ("adds", "spanned", "known", "roots")),
        *((name, ctypes.c_void_p) for name in ("units", "done", "chosen")),
    )


class _Repeats(ctypes.Structure):
    """`avl_repeats` of choosing.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "known")),
        *((name, ctypes.c_void_p) for name in ("near", "likest", "alike")),
        *((name, ctypes.c_void_p) for name in ("keys", "order", "states")),
    )


@dataclass(frozen=True, slots=True)
class Panels:
    """Rows [n, C] brought to length 1, in the order in which kernels read them."""

    functions: Choosing
    rows: Scores
    array: Scores  # [panels, PANEL / GROUP, C, GROUP]

    def among(self, temperature: float = 0, out: Scores | None = None) -> Scores:
        """Cosines [n, n] of rows with each other; those of zeros are 0.

        Args:
            temperature: above 0, in float32: e ** ((cosine - 1) / temperature) in place of cosines.
            out: [n, n] to write to, rows of a wider array; None: a new one.
        """
        tokens, dtype = len(self.rows), self.rows.dtype
        out = np.empty((tokens, tokens), dtype) if out is None else out
        if out.shape != (tokens, tokens) or out.dtype != dtype or out.strides[1] != dtype.itemsize:
            raise ValueError(
                f"expected {tokens} rows of as many {dtype} side by side, found others"
            )
        self._compare(self.described(out=out, temperature=temperature))
        return out

    def _compare(self, described: _Likeness) -> None:
        tokens, width = self.rows.shape
        of, tasks = ctypes.byref(described), range(len(self.array) - 1, -1, -1)
        compare = functools.partial(self.functions.library.avl_compare_panels, of)
        shared(compare, tasks, 1, tokens * tokens * width // 2)

    def among_with_nearest(self) -> tuple[Scores, Scores]:
        """`among`, and [n]: of each row the greatest cosine to another; -inf of one alone."""
        tokens, dtype = len(self.rows), self.rows.dtype
        out = np.empty((tokens, tokens), dtype)
        greatest = np.empty((len(self.array), tokens), dtype)
        described = self.described(out=out)
        described.greatest = greatest.ctypes.data
        self._compare(described)
        return out, greatest.max(0)

    def to(self, others: Scores) -> Scores:
        """Cosines [n, m] with rows [m, C]."""
        (tokens, width), beside = self.rows.shape, others.shape[1]
        if beside != width:
            raise ValueError(f"expected rows of {width} numbers, found {beside}")
        panels = self.functions.panels(others, self.rows.dtype.type)
        out = np.empty((tokens, len(others)), self.rows.dtype)
        of = ctypes.byref(self.described(others=panels, out=out))
        tasks, work = range(0, len(self.array), PANELS), tokens * panels.array.size
        compare = functools.partial(self.functions.library.avl_compare_panels, of)
        shared(compare, tasks, PANELS, work, len(self.array))
        return out

    def described(
        self, others: Panels | None = None, out: Scores | None = None, temperature: float = 0
    ) -> _Likeness:
        """What the library is told."""
        (tokens, width), dtype = self.rows.shape, self.rows.dtype
        beside = (0, None) if others is None else (len(others.rows), others.array.ctypes.data)
        to = (0, None) if out is None else (out.strides[0] // dtype.itemsize, out.ctypes.data)
        data = self.rows.ctypes.data, self.array.ctypes.data
        return _Likeness(dtype == np.float64, tokens, width, *data, *beside, *to, temperature, None)


@dataclass(frozen=True, slots=True)
class Choosing:
    """Functions of a compiled library, which run in threads (`on_threads`)."""

    library: Any

    def panels(self, rows: Scores, dtype: type[np.floating]) -> Panels:
        """Of rows [n, C], in float32 or float64; those of zeros stay."""
        rows = np.ascontiguousarray(rows, dtype)
        tokens, width = rows.shape
        array = np.empty((-(-tokens // PANEL), width, PANEL), dtype)
        found = Panels(self, rows, array)
        of = ctypes.byref(found.described())
        tasks, work = range(0, len(array), PANELS), 8 * rows.size
        unit = functools.partial(self.library.avl_unit_panels, of)
        shared(unit, tasks, PANELS, work, len(array))
        return found

    def cover(self, covers: Scores, count: int, weights: Scores, shares: Scores) -> Ints:
        """`count` of n tokens, each next one that which adds most to what is covered.

        Args:
            covers: [n, m] float32, how well each token covers each of m things.
            weights: [n], at least 0: what a token's gain counts.
            shares: [m], at least 0: what a thing counts.
        """
        tokens, things = covers.shape
        if covers.dtype != np.float32 or not covers.flags.c_contiguous:
            raise ValueError("expected covers in float32, side by side, found others")
        weights = np.ascontiguousarray(weights, np.float64)
        shares = np.ascontiguousarray(shares, np.float32)
        race = _Race(np.empty(tokens), threads_for(8 * covers.size))
        best, chosen = np.zeros((race.threads, things), np.float32), np.empty(count, np.int64)
        data = [array.ctypes.data for array in (covers, shares, weights, best)]
        of = ctypes.byref(_Cover(race, things, *data))
        _together(self.library.avl_cover_most, race, of, count, chosen.ctypes.data)
        return chosen

    def span(
        self, of: Panels, count: int, relevance: Doubles, weight: float, smallest: float
    ) -> Ints:
        """Up to `count` of n tokens, each next one that which adds most to a determinant.

        It is that of the kernel (1 - weight) S + weight r S r, of cosines S of those chosen with
        all. There are fewer where none of the others adds `smallest`.

        Args:
            relevance: [n], r.
        """
        tokens, width = of.rows.shape
        groups = -(-tokens // GROUP)
        whole = np.zeros(groups * GROUP)
        whole[:tokens] = relevance
        adds = 1 - weight + weight * whole**2
        race = _Race(adds[:tokens].copy(), threads_for(tokens * count * width))
        spanned, known = np.empty((groups, count, GROUP)), np.empty(count * (count - 1) // 2)
        roots, units = np.empty(count), np.empty((count, width), of.rows.dtype)
        done, chosen = np.zeros(groups, np.int64), np.empty(count, np.int64)
        scratch = adds, spanned, known, roots, units, done, chosen
        data = [array.ctypes.data for array in scratch]
        options = count, whole.ctypes.data, weight, smallest
        asked = ctypes.byref(_Spanning(race, of.described(), *options, *data))
        return chosen[: _together(self.library.avl_span_most, race, asked)]

    def without_repeats(self, near: Scores, left: Ints, most: int, drop: int) -> Ints:
        """`most` of n tokens that repeat each other least, by rounds as VisPruner's.

        Args:
            near: [n, n], how alike they are.
            left: their numbers, in order.
            drop: how many a round drops at most.
        """
        tokens = len(near)
        near, left = np.ascontiguousarray(near, np.float32), left.astype(np.int64)
        likest, alike = np.empty((tokens, KNOWN), np.int32), np.empty((tokens, KNOWN), np.float32)
        keys, order = np.empty((2, tokens), np.uint64), np.empty(tokens, np.int64)
        arrays = near, likest, alike, keys, order, np.empty(tokens + 1, np.uint8)
        of = ctypes.byref(_Repeats(tokens, KNOWN, *(array.ctypes.data for array in arrays)))
        find = functools.partial(self.library.avl_find_likest, of)
        shared(find, range(0, tokens, ROWS), ROWS, KNOWN * near.size, tokens)
        self.library.avl_drop_repeats(of, left.ctypes.data, len(left), most, drop)
        return left[:most]


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
    for name in ("unit_panels", "compare_panels", "find_likest"):
        function = getattr(loaded, f"avl_{name}")
        function.restype, function.argtypes = None, (address, size, size)
    cover, span, drop = loaded.avl_cover_most, loaded.avl_span_most, loaded.avl_drop_repeats
    cover.restype, cover.argtypes = None, (address, size, size, address)
    span.restype, span.argtypes = size, (address, size)
    drop.restype, drop.argtypes = None, (address, address, size, size, size)
    return Choosing(loaded)


def _together(function: Callable[..., Any], race: _Race, of: Any, *others: int) -> Any:
    """What all threads return, each of which is given its number behind `of`.

    They wait for each other: so there is a thread for each, and none begins before all are there.
    The one that calls is the first of them: two that slept at a barrier were often seen to wake on
    one processor, where they take turns.

    Raises:
        RuntimeError: there are not so many threads.
    """
    with ThreadPoolExecutor(race.threads) as pool:
        try:
            for thread in range(1, race.threads):
                pool.submit(function, of, thread, *others)
            return function(of, 0, *others)
        except BaseException:
            race.lines[TURN] = -1  # those that wait for the others go
            raise
