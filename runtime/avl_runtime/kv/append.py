"""Rows of decode steps, added to a cache from buffers that every step fills anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.host import Budget, Host
from avl_runtime.kv.cache import Array, Floats, Ints, NewRows, SegmentCache
from avl_runtime.kv.masses import Adder, add, address, fresh
from avl_runtime.kv.sight import Masses

_NO_MASS = np.zeros(1, np.float32)
_BOOKS = 2  # planes of book-keeping: positions and mass


class Appender:
    """Adds rows to one segment's cache, by one call of the compiled library where there is one.

    Text beyond a budget leaves by another.

    Where the cache's arrays lie, and how many rows they take, is looked up whenever it has replaced
    one: a step runs as little Python as can be, since it comes when the processor's caches are
    empty.
    """

    __slots__ = (
        "_adder",
        "_at",
        "_books",
        "_count",
        "_host",
        "_image_rows",
        "_left",
        "_new",
        "_positions",
        "_slots",
        "_table",
        "_version",
    )

    def __init__(self, new: Sequence[NewRows], positions: Ints, host: Host | None) -> None:
        """
        Args:
            new: planes of one row, which stay where they are.
            positions: [B], of the new tokens; stays too.
            host: None where there is no library, and NumPy copies.
        """
        self._new, self._positions, self._host = tuple(new), positions, host
        self._adder = None if host is None else Adder(host)
        self._image_rows: tuple[Array, int] = (_NO_MASS, 0)
        self._version = -1
        self._books: tuple[Array, Array, Array] = (_NO_MASS, _NO_MASS, _NO_MASS)
        self._table: Ints = np.empty(0, np.int64)
        self._at = self._slots = self._count = self._left = 0

    def append(
        self,
        cache: SegmentCache,
        masses: Masses | None,
        gathers: Sequence[bool],
        steps: int,
        release: Callable[[], None],
    ) -> None:
        """Add one row to every sequence, with what the buffers hold.

        Args:
            masses: attention of the step that made the rows; None where nobody counts it.
            gathers: for each sequence, whether it is added to what its rows have received.
            steps: how many more rows may come, a bound on the room to allocate.
            release: called before the cache's arrays are replaced, to let go of them.

        Raises:
            RuntimeError: the cache has no room, which is a fault of ours.
        """
        if self._host is None or self._adder is None:
            if cache.forked or cache.is_full:
                release()
            if masses is not None:
                add(cache, masses, gathers)
            append_rows(cache, self._new, self._positions, fresh(masses), steps)
            return
        positions, received, lengths = self._books
        if not self._left:
            self._left = cache.spare  # more than none, where rows were evicted
        if not (
            self._left
            and cache.version == self._version
            and cache.active_len is lengths
            and cache.positions is positions
            and cache.mass is received
            and not cache.forked
        ):
            self._look_up(cache, steps, release)
        planes = len(self._new) + (_BOOKS if masses is None else _BOOKS - 1)
        if not self._host.append(self._at, self._slots, planes, self._count):
            # Rows have been added otherwise, for which there was room.
            self._look_up(cache, steps, release)
            if not self._host.append(self._at, self._slots, planes, self._count):
                raise RuntimeError("expected room for a row in every layer, found none")
        if masses is not None:
            self._adder.add(cache, masses, gathers, self._slots)
        self._left -= 1
        cache.active_len += 1

    def evict(
        self, cache: SegmentCache, seq: int, evictable: NDArray[np.bool_], stay: int, recent: int
    ) -> bool:
        """Bring a sequence's text down to a budget, behind `append`; whether that was all.

        Args:
            evictable: [tokens so far], which positions hold text that may go.
            stay: how many rows of it each KV head may keep.
            recent: how many of these the newest are, whatever attention they have received.
        """
        if self._host is None or cache.version != self._version or cache.mass is not self._books[1]:
            return False
        if any(window is not None for window in cache.windows):
            return False
        if cache.image_rows is not self._image_rows[0]:
            self._image_rows = cache.image_rows, address(cache.image_rows)
        planes = len(self._new) + _BOOKS
        sizes = planes, cache.layers, cache.batch
        budget = Budget(address(evictable), len(evictable), stay, recent)
        done = self._host.evict_text(
            self._at, self._slots, self._image_rows[1], *sizes, seq, budget
        )
        self._left = 0  # some layers may have more room than was counted
        return bool(done)

    def _look_up(self, cache: SegmentCache, steps: int, release: Callable[[], None]) -> None:
        """Have room, and fill the table of `avl_rows`: of each plane, layer and sequence."""
        if cache.forked or cache.is_full:
            release()
            cache.make_room(steps)
        layers, batch, heads, _ = cache.positions.shape
        table = np.empty((len(self._new) + _BOOKS, layers, batch, 6), np.int64)
        seqs, rooms = np.arange(batch), np.array(cache.rooms)[:, None]
        for part, arrays, rows in zip(table, cache.active, self._new, strict=False):
            for layer, (array, row) in enumerate(zip(arrays, rows, strict=True)):
                part[layer, :, 0] = address(array) + seqs * array.strides[0]
                part[layer, :, 1] = address(row) + seqs * row.strides[0]
                part[layer, :, 4:] = row.strides[1], array.strides[2]
            part[..., 2] = heads
            part[..., 3] = rooms
        for part, book, source, step in (
            (table[-2], cache.positions, self._positions, self._positions.itemsize),
            (table[-1], cache.mass, _NO_MASS, 0),
        ):
            each = np.arange(layers)[:, None] * book.strides[0] + seqs * book.strides[1]
            part[..., 0] = address(book) + each
            part[..., 1] = address(source) + seqs * step
            part[..., 2:] = heads, book.shape[3], 0, book.itemsize
        self._table, self._at, self._count = table, address(table), layers * batch
        self._books = cache.positions, cache.mass, cache.active_len
        self._slots, self._version = address(cache.active_len), cache.version
        self._left = cache.spare


def append_rows(
    cache: SegmentCache, new: Sequence[NewRows], positions: Ints, mass: Floats | None, steps: int
) -> None:
    """Add one row to every sequence, by NumPy.

    Args:
        new: planes of one row.
        positions: [B], of the new tokens.
        mass: [L, B, Hkv] initial H2O mass, or None for zeros.
        steps: how many more rows may come, a bound on the room to allocate.
    """
    cache.make_room(steps)
    tops, alone = cache.tops, len(positions) == 1
    if alone:  # several times as fast as at slots of many sequences
        for plane, rows in zip(cache.active, new, strict=True):
            for array, row, top in zip(plane, rows, tops, strict=True):
                array[:, :, top] = row[:, :, 0]
    else:
        seqs = np.arange(len(positions))
        for plane, rows in zip(cache.active, new, strict=True):
            for array, row, slots in zip(plane, rows, cache.active_len, strict=True):
                array[seqs, :, slots] = row[:, :, 0]
    if alone and min(tops) == max(tops):
        cache.positions[..., tops[0]] = positions[0]
        cache.mass[..., tops[0]] = 0 if mass is None else mass
    else:
        layers, seqs = np.arange(cache.layers)[:, None], np.arange(len(positions))
        # NumPy puts the axes of indices first where a slice lies between them.
        cache.positions[layers, seqs, :, cache.active_len] = positions[None, :, None]
        cache.mass[layers, seqs, :, cache.active_len] = 0 if mass is None else mass
    cache.active_len += 1
