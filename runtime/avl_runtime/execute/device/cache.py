"""A KV cache on a device. The host knows which row is where; the rows never come to it.

The book-keeping is a `SegmentCache` whose K and V rows are not rows but *labels*: a row's number
says which slot it is in on the device, 0, 1, ... among the active rows and -1, -2, ... among the
parked. Whatever `moves` does to the labels, `settle` then does to the rows with the `update`
kernel, so that both kinds of cache move rows by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avl_runtime.execute.device.rows import Parked, Place, Rows, gather, new_rows, park
from avl_runtime.execute.device.update import NOWHERE
from avl_runtime.kv.cache import Floats, Ints, SegmentCache
from avl_runtime.kv.cache import stacked as stacked_books

LABEL = np.dtype(np.int32)


class DeviceCache(SegmentCache):
    """A segment's rows on a device, and their book-keeping on the host.

    The inherited arrays of K and V hold labels; between calls every label is its own slot.

    Attributes:
        rows: of each layer; all have the same room.
        place: where rows lie.
        on_host: parked rows of each layer that lie on the host; None where they do not.
        shared: whether a copy refers to the same rows, which then must not move.
    """

    __slots__ = ("_settled", "on_host", "place", "rows", "shared")

    def __init__(self, place: Place, layers: int) -> None:
        """An empty cache of a single sequence."""
        super().__init__(layers, 1, place.heads, 1, LABEL)
        self.place = place
        self.rows: list[Rows] = []
        self.on_host: list[Parked | None] = []
        for layer in range(layers):
            rows, parked = park(place, new_rows(place, 1, 1, 1), layer, layers)
            self.rows.append(rows)
            self.on_host.append(parked)
        self.shared = False
        self.relabel()

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return len(self.active_len)

    @property
    def active_room(self) -> int:
        """A."""
        return self.rows[0].active

    @property
    def parked_room(self) -> int:
        """P."""
        return self.rows[0].parked

    @property
    def nbytes(self) -> int:
        """Bytes of K and V, room and parked rows on the host included."""
        return sum(rows.nbytes for rows in self.rows)

    def copy(self) -> DeviceCache:
        """A second cache that keeps the rows as they are, whatever prompts the first reads."""
        other = _with_books(self.place, super().copy(), list(self.rows), list(self.on_host))
        other.shared = self.shared = True
        return other

    def resize(self, rows: int) -> None:
        """Bring the room for active rows to `rows`, layer by layer, in memory of its own.

        Raises:
            OutOfDeviceMemoryError: it does not fit.
        """
        top, apart = int(self.active_len.max()), int(self.parked_len.max())
        sizes = (self.batch, self.place.heads)
        stay = np.broadcast_to(np.arange(top), (*sizes, top))
        aside = np.broadcast_to(-1 - np.arange(apart), (*sizes, apart))
        for layer in range(self.layers):
            self._renew(layer, stay, aside, rows)
        self.shared = False
        self.version = self._settled = self.version + 1

    def reserve(self, rows: int) -> None:
        """Have room for `rows` active rows. New ones are written behind those that a copy has."""
        if rows > self.active_room:
            self.resize(rows)

    def add(
        self, k_new: Sequence[int], v_new: Sequence[int], positions: Ints, mass: Floats | None
    ) -> None:
        """Add a chunk of a prompt to a single sequence, for which room was reserved.

        Args:
            k_new, v_new: addresses of [1, Hkv, S, D] for each layer.
            positions: [S].
            mass: [L, 1, Hkv, S] initial H2O mass, or None for zeros.
        """
        count, length = len(positions), int(self.active_len[0])
        sizes = (self.layers, 1, self.place.heads, count)
        first = self.active_room + self.parked_room
        self.place.mover.move(
            self.table(k_new, v_new),
            np.broadcast_to(first + np.arange(count), sizes),
            np.broadcast_to(length + np.arange(count), sizes),
            count,
        )
        labels = np.zeros((*sizes, 1), LABEL)
        self.extend(labels, labels, positions, mass)
        self.relabel()

    def note(self, positions: Ints, alive: NDArray[np.bool_], mass: Floats | None) -> None:
        """Keep the books of one row a sequence that was added on the device; see `append`."""
        labels = np.zeros((self.layers, self.batch, self.place.heads, 1, 1), LABEL)
        self.append(labels, labels, positions, mass, alive, self.active_room)
        self.relabel()

    def settle(self) -> None:
        """Move the rows to where `moves` has moved their labels.

        Raises:
            OutOfDeviceMemoryError: a partition's arrays do not fit.
        """
        active = np.stack([labels[..., 0] for labels in self.k_active]).astype(np.int64)
        changed = active != _slots(self.k_active[0].shape[2])
        if self.version != self._settled or (self.shared and changed.any()):
            parked = np.stack([labels[..., 0] for labels in self.k_parked]).astype(np.int64)
            top, apart = int(self.active_len.max()), int(self.parked_len.max())
            for layer in range(self.layers):
                self._renew(layer, active[layer, ..., :top], parked[layer, ..., :apart], top)
            self.shared = False
        elif changed.any():
            self._move_in_place(active, changed)
        self.relabel()

    def fetch(self) -> None:
        """Queue bringing parked rows that lie on the host to where they are read."""
        for rows, parked in zip(self.rows, self.on_host, strict=True):
            if parked is not None:
                parked.fetch(self.place, rows)

    def stow(self) -> None:
        """Queue bringing them back."""
        for rows, parked in zip(self.rows, self.on_host, strict=True):
            if parked is not None:
                parked.stow(self.place, rows)

    def table(self, k_new: Sequence[int], v_new: Sequence[int]) -> list[list[int]]:
        """What `kernels.update` reads of each layer, with new rows at these addresses."""
        return [
            [
                rows.k_active.address,
                rows.v_active.address,
                rows.k_parked.address,
                rows.v_parked.address,
                k,
                v,
                rows.active,
                rows.parked,
            ]
            for rows, k, v in zip(self.rows, k_new, v_new, strict=True)
        ]

    def _renew(self, layer: int, stay: Ints, aside: Ints, room: int) -> None:
        before, parked = self.rows[layer], self.on_host[layer]
        if parked is not None:
            parked.fetch(self.place, before)
        after = new_rows(self.place, self.batch, room, aside.shape[2])
        gather(self.place, after, 0, before, stay, aside)
        self.rows[layer], self.on_host[layer] = park(self.place, after, layer, self.layers)

    def _move_in_place(self, labels: Ints, changed: NDArray[np.bool_]) -> None:
        """Move rows within the cache.

        Args:
            labels: [L, B, Hkv, slots], what each active slot is to hold.
            changed: which of them do not hold it yet.
        """
        count = int(changed.sum(3).max())
        slots = np.argsort(~changed, 3, kind="stable")[..., :count]
        moved = np.take_along_axis(changed, slots, 3)
        origin = np.take_along_axis(labels, slots, 3)
        source, destination = origin, np.where(moved, slots, NOWHERE)
        if (origin < 0).any():
            # A row that came from the parked ones has left its own row there: a pair of moves.
            there = self.active_room - 1 - origin
            source = np.stack([there, slots], 4).reshape(*slots.shape[:3], -1)
            pairs = np.stack([slots, there], 4)
            destination = np.where(moved[..., None], pairs, NOWHERE).reshape(source.shape)
        nothing = [rows.k_active.address for rows in self.rows]  # no row is new
        self.fetch()
        self.place.mover.move(self.table(nothing, nothing), source, destination, 1)
        self.stow()

    def relabel(self) -> None:
        for arrays, sign in ((self.k_active, 1), (self.k_parked, -1)):
            for array in arrays:
                array[..., 0] = _slots(array.shape[2]) * sign - (sign < 0)
        self._settled = self.version


def _slots(count: int) -> NDArray[np.int32]:
    return np.arange(count, dtype=np.int32)


def _with_books(
    place: Place, books: SegmentCache, rows: list[Rows], on_host: list[Parked | None]
) -> DeviceCache:
    """A cache of these rows with book-keeping of its own."""
    cache = DeviceCache.__new__(DeviceCache)
    for name in SegmentCache.__slots__:
        setattr(cache, name, getattr(books, name))
    for name in ("k_active", "v_active", "k_parked", "v_parked"):
        setattr(cache, name, [labels.copy() for labels in getattr(books, name)])
    cache.place, cache.rows, cache.on_host, cache.shared = place, rows, on_host, False
    cache.relabel()
    return cache


def stacked(caches: Sequence[DeviceCache], steps: int) -> DeviceCache:
    """A segment of several single sequences as a batch, with room for `steps` more rows.

    The single caches give up their rows, layer by layer. A cache that is alone stays as it is.
    """
    first, place = caches[0], caches[0].place
    if len(caches) == 1:
        return first
    top = max(int(cache.active_len[0]) for cache in caches)
    apart = max(int(cache.parked_len[0]) for cache in caches)
    rows, on_host = [], []
    for layer in range(first.layers):
        to = new_rows(place, len(caches), top + steps, apart)
        for sequence, cache in enumerate(caches):
            stay, aside = (
                np.broadcast_to(line, (1, place.heads, len(line)))
                for line in (
                    np.arange(int(cache.active_len[0])),
                    -1 - np.arange(int(cache.parked_len[0])),
                )
            )
            parked = cache.on_host[layer]
            if parked is not None:
                parked.fetch(place, cache.rows[layer])
            gather(place, to, sequence, cache.rows[layer], stay, aside)
        to, parked = park(place, to, layer, first.layers)
        rows.append(to)
        on_host.append(parked)
        for cache in caches:
            cache.rows[layer], cache.on_host[layer] = to, None  # lets go of its own
    return _with_books(place, stacked_books(list(caches), steps), rows, on_host)
