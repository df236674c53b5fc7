"""The rows of decode steps, added to a cache from buffers that every step fills anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from avl_plugins.cpu.host import Host
from avl_runtime.kv.cache import Array, Floats, Ints, SegmentCache

_NO_MASS = np.zeros(1, np.float32)
_BOOKS = 2  # planes of book-keeping: positions and mass


class Appender:
    """Adds rows to one segment's cache, by one call of the compiled library where there is one.

    Where the cache's arrays lie, and how many rows they take, is looked up whenever it has replaced
    one: a step runs as little Python as can be, since it comes when the processor's caches are
    empty.
    """

    __slots__ = (
        "_at",
        "_books",
        "_count",
        "_host",
        "_left",
        "_new",
        "_positions",
        "_slots",
        "_table",
        "_version",
    )

    def __init__(self, new: Sequence[Array], positions: Ints, host: Host | None) -> None:
        """
        Args:
            new: planes [L, B, Hkv, 1, D], which stay where they are.
            positions: [B], of the new tokens; stays too.
            host: None where there is no library, and NumPy copies.
        """
        self._new, self._positions, self._host = tuple(new), positions, host
        self._version = -1
        self._books: tuple[Array, Array, Array] = (_NO_MASS, _NO_MASS, _NO_MASS)
        self._table: Ints = np.empty(0, np.int64)
        self._at = self._slots = self._count = self._left = 0

    def append(
        self, cache: SegmentCache, mass: Floats | None, steps: int, release: Callable[[], None]
    ) -> None:
        """As `SegmentCache.append`, with what the buffers hold.

        Args:
            release: called before the cache's arrays are replaced, to let go of them.

        Raises:
            RuntimeError: the cache has no room, which is a fault of ours.
        """
        if self._host is None:
            if cache.forked or cache.is_full:
                release()
            cache.append(self._new, self._positions, mass, steps)
            return
        positions, gathered, lengths = self._books
        if not self._left:
            self._left = cache.spare  # more than none, where rows were evicted
        if not (
            self._left
            and cache.version == self._version
            and cache.active_len is lengths
            and cache.positions is positions
            and cache.mass is gathered
            and not cache.forked
        ):
            self._look_up(cache, steps, release)
        planes = len(self._new) + (_BOOKS if mass is None else _BOOKS - 1)
        if not self._host.append(self._at, self._slots, planes, self._count):
            # Rows have been added otherwise, for which there was room.
            self._look_up(cache, steps, release)
            if not self._host.append(self._at, self._slots, planes, self._count):
                raise RuntimeError("expected room for a row in every layer, found none")
        self._left -= 1
        if mass is not None:
            cache.write_mass(mass)
        cache.active_len += 1

    def _look_up(self, cache: SegmentCache, steps: int, release: Callable[[], None]) -> None:
        """Have room, and fill the table of `avl_rows`: of each plane, layer and sequence."""
        if cache.forked or cache.is_full:
            release()
            cache.make_room(steps)
        layers, batch, heads, _ = cache.positions.shape
        table = np.empty((len(self._new) + _BOOKS, layers, batch, 6), np.int64)
        seqs = np.arange(batch)
        for part, arrays, rows in zip(table, cache.active, self._new, strict=False):
            for layer, array in enumerate(arrays):
                part[layer, :, 0] = _address(array) + seqs * array.strides[0]
                part[layer, :, 3] = array.shape[2]
            each = np.arange(layers)[:, None] * rows.strides[0] + seqs * rows.strides[1]
            part[..., 1] = _address(rows) + each
            part[..., 2] = heads
            part[..., 4:] = rows.strides[2], arrays[0].strides[2]
        for part, book, source, step in (
            (table[-2], cache.positions, self._positions, self._positions.itemsize),
            (table[-1], cache.mass, _NO_MASS, 0),
        ):
            each = np.arange(layers)[:, None] * book.strides[0] + seqs * book.strides[1]
            part[..., 0] = _address(book) + each
            part[..., 1] = _address(source) + seqs * step
            part[..., 2:] = heads, book.shape[3], 0, book.itemsize
        self._table, self._at, self._count = table, _address(table), layers * batch
        self._books = cache.positions, cache.mass, cache.active_len
        self._slots, self._version = _address(cache.active_len), cache.version
        self._left = cache.spare


def _address(array: Array) -> int:
    """Where an array begins; as its `ctypes` says, in half the time."""
    found: int = array.__array_interface__["data"][0]
    return found
