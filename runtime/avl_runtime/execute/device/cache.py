"""A KV cache on a device. The host knows which row is where; the rows never come to it.

The book-keeping is a `SegmentCache` whose K and V rows are not rows but *labels*: a row's number
says which slot it is in on the device, 0, 1, ... among the active rows and -1, -2, ... among the
parked. Whatever `moves` does to the labels, `settle` then does to the rows with the `update`
kernel, so that both kinds of cache move rows by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import gt
from typing import Protocol

import numpy as np

from avl_plugins.schema import COMPUTED
from avl_runtime.execute.device import labels
from avl_runtime.execute.device.labels import LABEL
from avl_runtime.execute.device.memory import Buffer
from avl_runtime.execute.device.rows import (
    Parked,
    Place,
    Rows,
    gather,
    new_rows,
    park,
    staged,
)
from avl_runtime.kv.append import append_rows
from avl_runtime.kv.cache import Floats, Ints, SegmentCache
from avl_runtime.kv.gather import Part, gather_books
from avl_runtime.kv.states import LayerStates

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
        rows: of each layer, with room of its own.
        place: where rows lie.
        on_host: parked rows of each layer that lie on the host; None where they do not.
        shared: whether a copy refers to the same rows, which then must not move.
        books: what keeps book-keeping on the device during decode, if that is where it counts.
    """

    __slots__ = ("_parted", "_settled", "books", "on_host", "place", "rows", "shared")

    def __init__(self, place: Place, layers: int, first: int = 0) -> None:
        """An empty cache of a single sequence, of decoder layers from `first` on."""
        numbers = range(first, first + layers)
        planes = [COMPUTED.planes(1, LABEL)] * layers
        super().__init__(1, place.heads, planes, numbers=numbers)
        self.place = place
        self.rows: list[Rows] = []
        self.on_host: list[Parked | None] = []
        for _ in range(layers):
            rows, parked = park(place, new_rows(place, 1, 1, 1))
            self.rows.append(rows)
            self.on_host.append(parked)
        self._parted = self.shared = False
        self.part()
        self.books: Books | None = None
        self.relabel()

    @property
    def active_rooms(self) -> list[int]:
        """A of each layer."""
        return [rows.active for rows in self.rows]

    @property
    def parked_rooms(self) -> list[int]:
        """P of each layer."""
        return [rows.parked for rows in self.rows]

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
        other.active, other.parked = (
            tuple([layer.copy() for layer in plane] for plane in planes)
            for planes in (self.active, self.parked)
        )
        other._parted = self._parted
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
            self.resize(self.active_rooms)

    def taken(self, seq: int) -> DeviceCache:
        return device_gathered([(self, seq)], 0, release=False)

    def resize(self, rooms: Sequence[int]) -> None:
        """Bring each layer's room for active rows to what `rooms` says.

        Layers that have it stay as they are, unless another cache refers to the same rows.

        Raises:
            OutOfDeviceMemoryError: it does not fit.
        """
        tops, apart = self.tops, self.parked_len.max(1).tolist()
        sizes = (self.batch, self.place.heads)
        for layer, room in enumerate(rooms):
            if self.shared or self.forked or self.rows[layer].active != self.place.room(room):
                stay = np.broadcast_to(np.arange(tops[layer]), (*sizes, tops[layer]))
                aside = np.broadcast_to(-1 - np.arange(apart[layer]), (*sizes, apart[layer]))
                self._renew_rows(layer, stay, aside, room)
        self.part()
        self.shared = self.forked = False
        self.version = self._settled = self.version + 1

    def reserve(self, rows: int, steps: int = 0, chunk: int = 0) -> None:
        """Have room for `rows` more active rows, written behind those that a copy has.

        That for `steps` is given when steps are bound, as in `trim`.
        """
        self._make_room_for([top + rows for top in self.tops])

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
        self._make_room_for((lengths + count).tolist())
        sizes = (self.layers, 1, self.place.heads, count)
        first = labels.of_layers(np.add(self.active_rooms, self.parked_rooms))
        slots = lengths[:, None, None, None] + np.arange(count)
        self.place.mover.move(
            self.table(*new, seq),
            np.broadcast_to(first + np.arange(count), sizes),
            np.broadcast_to(slots, sizes),
            count,
        )
        new_labels = np.zeros((*sizes, 1), LABEL)
        self.extend((new_labels, new_labels), seq, positions, mass)
        self.relabel()

    def note(self, positions: Ints, mass: Floats | None) -> None:
        """Keep the books of one row a sequence that was added on the device; see `append_rows`."""
        new_labels = np.zeros((self.layers, self.batch, self.place.heads, 1, 1), LABEL)
        append_rows(self, (new_labels, new_labels), positions, mass, max(self.active_rooms))
        self.relabel()

    def settle(self) -> None:
        """Move the rows to where `moves` has moved their labels.

        Raises:
            OutOfDeviceMemoryError: new arrays of a division do not fit.
        """
        held_by, changed = labels.together(self.k_active)
        if self.version != self._settled or (self.shared and changed.any()):
            lengths = self.active_len.tolist(), self.parked_len.tolist()
            for layer, (held, apart) in enumerate(zip(*lengths, strict=True)):
                room = max(held)
                if self.batch > 1:
                    room = max(room, self.rows[layer].active)
                stay = labels.live(held_by[layer], held)
                aside = labels.live(self.k_parked[layer][..., 0], apart)
                self._renew_rows(layer, stay, aside, room)
            self.part()
            self.shared = False
        elif changed.any():
            source, destination = labels.moves(held_by, changed, self.active_rooms)
            nothing = [rows.k_active.address for rows in self.rows]  # no row is new
            self.fetch()
            self.place.mover.move(self.table(nothing, nothing), source, destination, 1)
            self.stow()
        self.relabel()

    def part(self) -> None:
        """Have a place for the parked rows of each layer to be read at, where they lie on the host.

        Raises:
            OutOfDeviceMemoryError: there is no room for one.
        """
        if not self._parted:
            self.rows = staged(self.place, self.rows)
            self._parted = True

    def fetch(self) -> None:
        """Queue bringing parked rows that lie on the host to where they are read."""
        self.part()
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

    def _make_room_for(self, rows: Sequence[int]) -> None:
        """Have room for so many active rows in each layer, in rows that no fork has."""
        rooms = self.active_rooms
        if self.forked or any(map(gt, rows, rooms)):
            self.resize(list(map(max, rows, rooms)))

    def _renew_rows(self, layer: int, stay: Ints, aside: Ints, room: int) -> None:
        before, parked = self.rows[layer], self.on_host[layer]
        if parked is not None:
            parked.fetch(self.place, before)
        after = new_rows(self.place, self.batch, room, aside.shape[2])
        gather(self.place, after, 0, before, stay, aside)
        self.rows[layer], self.on_host[layer] = park(self.place, after)
        self._parted = False

    def relabel(self) -> None:
        labels.number(self.active, parked=False)
        labels.number(self.parked, parked=True)
        self._settled = self.version


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
    batch.forked = batch.shared = batch._parted = False
    batch.parked_bits, batch.windows = None, first.windows  # rows on a device are kept alike
    batch.numbers, batch.states = first.numbers, LayerStates()
    batch.books = None
    rooms = gather_books(batch, books, steps)
    batch.active, batch.parked = (labels.blank(len(parts), place.heads, each) for each in rooms)
    batch.place, batch.rows, batch.on_host = place, [], []
    sources = {id(cache): cache for cache, _ in parts}.values()
    tops, held = batch.tops, batch.parked_len.max(1).tolist()
    for layer in range(first.layers):
        to = new_rows(place, len(parts), tops[layer] + steps, held[layer])
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
        to, parked = park(place, to)
        batch.rows.append(to)
        batch.on_host.append(parked)
        if release:
            for cache in sources:
                cache.rows[layer], cache.on_host[layer] = _GIVEN_UP, None
    batch.part()
    batch.relabel()
    return batch
