"""A KV cache on a device. The host knows which row is where; the rows never come to it.

The book-keeping is a `SegmentCache` whose K and V rows are not rows but *labels*: a row's number
says which slot it is in on the device, 0, 1, ... among the active rows and -1, -2, ... among the
parked. Whatever `moves` does to the labels, `settle` then does to the rows with the `update`
kernel, so that both kinds of cache move rows by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from avl_runtime.execute.device.memory import Buffer
from avl_runtime.execute.device.rows import Parked, Place, Rows, gather, new_rows, park
from avl_runtime.execute.device.update import NOWHERE
from avl_runtime.kv.cache import Floats, Ints, SegmentCache
from avl_runtime.kv.gather import Part, gather_books

LABEL = np.dtype(np.int32)
_GIVEN_UP = Rows(Buffer(0, 0), Buffer(0, 0), Buffer(0, 0), Buffer(0, 0), 0, 0)  # by those that left


class Books(Protocol):
    """Book-keeping on a device."""

    def recall(self) -> None:
        """Bring the host's up to date; waits for the device."""
        ...


class DeviceCache(SegmentCache):
    """A segment's rows on a device, and their book-keeping on the host.

    The inherited planes hold labels; between calls every label is its own slot.

    Attributes:
        rows: of each layer; all have the same room.
        place: where rows lie.
        on_host: parked rows of each layer that lie on the host; None where they do not.
        shared: whether a copy refers to the same rows, which then must not move.
        books: what keeps book-keeping on the device during decode, if that is where it counts.
    """

    __slots__ = ("_settled", "books", "on_host", "place", "rows", "shared")

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
        self.books: Books | None = None
        self.relabel()

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
        self.claim()
        other = DeviceCache.__new__(DeviceCache)
        self._copy_to(other)
        other.place, other.rows, other.on_host = self.place, list(self.rows), list(self.on_host)
        other.books = None
        other.active = tuple([labels.copy() for labels in plane] for plane in self.active)
        other.parked = tuple([labels.copy() for labels in plane] for plane in self.parked)
        other.relabel()
        other.shared = self.shared = True
        return other

    def fork(self) -> DeviceCache:
        self.forked = True
        other = self.copy()
        self.shared = other.shared = False  # whoever writes takes rows of its own first
        return other

    def recall(self) -> None:
        if self.books is not None:
            self.books.recall()

    def claim(self) -> None:
        self.recall()
        self.books = None

    def let_go(self) -> None:
        self.shared = False

    def own(self) -> None:
        if self.forked:
            self.resize(self.active_room)

    def taken(self, seq: int) -> DeviceCache:
        return device_gathered([(self, seq)], 0, release=False)

    def resize(self, rows: int) -> None:
        """Bring the room for active rows to `rows`, layer by layer, in memory of its own.

        Raises:
            OutOfDeviceMemoryError: it does not fit.
        """
        top, apart = max(self.tops), int(self.parked_len.max())
        sizes = (self.batch, self.place.heads)
        stay = np.broadcast_to(np.arange(top), (*sizes, top))
        aside = np.broadcast_to(-1 - np.arange(apart), (*sizes, apart))
        for layer in range(self.layers):
            self._renew_rows(layer, stay, aside, rows, apart)
        self.shared = self.forked = False
        self.version = self._settled = self.version + 1

    def reserve(self, rows: int) -> None:
        """Have room for `rows` more active rows, written behind those that a copy has."""
        needed = max(self.tops) + rows
        if needed > self.active_room or self.forked:
            self.resize(max(needed, self.active_room))

    def trim(self, steps: int) -> None:
        """Room on a device is given when steps are bound."""

    def add(
        self,
        new: tuple[Sequence[int], Sequence[int]],
        seq: int,
        positions: Ints,
        mass: Floats | None,
    ) -> None:
        """Add rows to one sequence.

        Args:
            new: addresses of K and of V [1, Hkv, S, D] for each layer.
            positions: [S].
            mass: [L, 1, Hkv, S] initial H2O mass, or None for zeros.

        Raises:
            OutOfDeviceMemoryError: there is no room for them.
        """
        self.claim()
        count, lengths = len(positions), self.active_len[:, seq]
        needed = int(lengths.max()) + count
        if needed > self.active_room or self.forked:
            self.resize(max(needed, self.active_room))
        sizes = (self.layers, 1, self.place.heads, count)
        first = self.active_room + self.parked_room
        slots = lengths[:, None, None, None] + np.arange(count)
        self.place.mover.move(
            self.table(*new, seq),
            np.broadcast_to(first + np.arange(count), sizes),
            np.broadcast_to(slots, sizes),
            count,
        )
        labels = np.zeros((*sizes, 1), LABEL)
        self.extend((labels, labels), seq, positions, mass)
        self.relabel()

    def note(self, positions: Ints, mass: Floats | None) -> None:
        """Keep the books of one row a sequence that was added on the device; see `append`."""
        labels = np.zeros((self.layers, self.batch, self.place.heads, 1, 1), LABEL)
        self.append((labels, labels), positions, mass, self.active_room)
        self.relabel()

    def settle(self) -> None:
        """Move the rows to where `moves` has moved their labels.

        Raises:
            OutOfDeviceMemoryError: new arrays of a division do not fit.
        """
        labels = self._active_labels()
        changed = labels != _slots(labels.shape[3])
        if self.version != self._settled or (self.shared and changed.any()):
            tops, apart = self.tops, self.parked_len.max(1).tolist()
            room = max(tops) if self.batch == 1 else max(*tops, self.active_room)
            for layer, parked in enumerate(self.k_parked):
                stay = labels[layer, ..., : tops[layer]]
                aside = parked[:, :, : apart[layer], 0].astype(np.int64)
                self._renew_rows(layer, stay, aside, room, max(apart))
            self.shared = False
        elif changed.any():
            self._move_in_place(labels, changed)
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

    def table(
        self, k_new: Sequence[int], v_new: Sequence[int], seq: int | None = None
    ) -> list[list[int]]:
        """What `kernels.update` reads of each layer, with new rows at these addresses.

        Args:
            seq: for moves of one sequence alone.
        """
        lines = []
        for rows, k, v in zip(self.rows, k_new, v_new, strict=True):
            mine = rows if seq is None else rows.of(self.place, seq)
            lines.append(
                [
                    mine.k_active.address,
                    mine.v_active.address,
                    mine.k_parked.address,
                    mine.v_parked.address,
                    k,
                    v,
                    rows.active,
                    rows.parked,
                ]
            )
        return lines

    def _active_labels(self) -> Ints:
        """[L, B, Hkv, slots]; a slot that a layer has no room for holds itself."""
        most = self.positions.shape[3]
        labels = np.empty((self.layers, self.batch, self.place.heads, most), np.int64)
        labels[...] = _slots(most)
        for layer, plane in enumerate(self.k_active):
            labels[layer, ..., : plane.shape[2]] = plane[..., 0]
        return labels

    def _renew_rows(self, layer: int, stay: Ints, aside: Ints, room: int, apart: int) -> None:
        before, parked = self.rows[layer], self.on_host[layer]
        if parked is not None:
            parked.fetch(self.place, before)
        after = new_rows(self.place, self.batch, room, apart)
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
        for planes, sign in ((self.active, 1), (self.parked, -1)):
            for plane in planes:
                for labels in plane:
                    labels[..., 0] = _slots(labels.shape[2]) * sign - (sign < 0)
        self._settled = self.version


def _slots(count: int) -> NDArray[np.int32]:
    return np.arange(count, dtype=np.int32)


def device_gathered(
    parts: Sequence[tuple[DeviceCache, int]], steps: int, *, release: bool = True
) -> DeviceCache:
    """As `kv.gather.gathered`, on a device.

    Args:
        release: whether the caches that sequences come from give up their rows.

    Raises:
        OutOfDeviceMemoryError: there is no room.
    """
    first, place = parts[0][0], parts[0][0].place
    if release and len(parts) == 1 and first.batch == 1:
        return first
    for cache, _ in parts:
        cache.recall()
    books: list[Part] = list(parts)
    batch = DeviceCache.__new__(DeviceCache)
    batch.forked = batch.shared = False
    batch.books = None
    rooms = gather_books(batch, books, steps)
    for name, rows in zip(("active", "parked"), rooms, strict=True):
        shapes = [(len(parts), place.heads, count, 1) for count in rows]
        setattr(batch, name, tuple([np.zeros(shape, LABEL) for shape in shapes] for _ in "kv"))
    batch.place, batch.rows, batch.on_host = place, [], []
    sources = {id(cache): cache for cache, _ in parts}.values()
    top, held = max(batch.tops), int(batch.parked_len.max())
    for layer in range(first.layers):
        to = new_rows(place, len(parts), top + steps, held)
        for cache in sources:
            parked = cache.on_host[layer]
            if parked is not None:
                parked.fetch(place, cache.rows[layer])
            for index, (origin, seq) in enumerate(parts):
                if origin is cache:
                    lengths = cache.active_len[layer, seq], cache.parked_len[layer, seq]
                    stay, aside = (
                        np.broadcast_to(line, (1, place.heads, len(line)))
                        for line in (np.arange(lengths[0]), -1 - np.arange(lengths[1]))
                    )
                    gather(place, to, index, cache.rows[layer].of(place, seq), stay, aside)
        to, parked = park(place, to, layer, first.layers)
        batch.rows.append(to)
        batch.on_host.append(parked)
        if release:
            for cache in sources:
                cache.rows[layer], cache.on_host[layer] = _GIVEN_UP, None
    batch.relabel()
    return batch
