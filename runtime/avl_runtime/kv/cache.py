"""The KV cache: per layer an unordered set of rows, active or parked.

Keys are stored after RoPE, so the order of rows does not matter to attention and a row may be
moved freely. Active rows are read by every step; parked rows (A-VL's secondary minus core) by
steps that ask for them; a dropped row (minor, evicted text) is gone and its memory with it. Rows
come and grow here and by `append`, and are moved by `moves`; nobody else writes them, but the
compiled library where it is asked to: by `append`, and by a step that offers it a refresh
(`avl_plugins.cpu.refresh`). Layers that keep a state in place of rows have it in `states`.

A row is one or more *planes* (`schema.RowType`), each an array a layer, with room of the layer's
own: K and V, and where those are codes the scales of each; parked ones may differ (`parking`).
Arrays are compact: rows [0, length) of an axis are live, the rest is room for decode, finite
because graphs mask those rows but still multiply by them.

A *position* is the index of a row's token in its conversation, whatever its rotary position ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import sub
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.schema import Plane
from avl_runtime.kv.by_layer import TEXT, ByLayer, alike
from avl_runtime.kv.growth import copied, resized, room
from avl_runtime.kv.states import LayerStates

Array = NDArray[Any]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Planes = tuple[list[Array], ...]  # each an array [B, Hkv, room, width] a layer
# A plane of new rows, [B, Hkv, S, width] a layer; one array where layers are of one width.
NewRows = Array | Sequence[Array]

LENGTHS = ("active_len", "parked_len", "image_rows")


class SegmentCache:
    """Rows of a decoder segment for B sequences; B = 1 while a prompt is read.

    L counts the layers that keep rows; the others are in `states` alone.

    Layers may hold different numbers of a sequence's rows, and have room for as many; the KV heads
    of a layer hold as many as one another, at slots of their own. Book-keeping is one array for all
    layers, so that a policy ranks them in one operation; planes are an array a layer, so that
    replacing them holds one layer twice and not a segment.

    Attributes:
        active: planes of active rows, arrays [B, Hkv, room, width].
        active_len: [L, B] int64, live rows of each sequence.
        positions: [L, B, Hkv, A] int64, position of the token behind each active row; A is the
            largest room of a layer.
        mass: [L, B, Hkv, A] float32, attention received from text rows so far (H2O).
        parked: planes of parked rows.
        numbers: of each of the L layers, the decoder layer that it is, ascending.
        parked_bits: of the codes of parked rows (`parking`); None where rows are all alike.
        parked_len: [L, B] int64.
        parked_positions: [L, B, P] int64; P is the largest room of a layer.
        image_rows: [L, B] int64; after a partition the first rows of a sequence are its core image
            rows, in the same slots for every KV head.
        states: what the other layers keep.
        windows: of each layer, how many positions its rows are kept for, None for all; policies
            decide about those without a window alone.
        forked: whether another cache has the same arrays, which then are not written.
        version: grows whenever an array of a plane is replaced, so that bindings look again.
    """

    __slots__ = (
        "active",
        "active_len",
        "forked",
        "image_rows",
        "mass",
        "numbers",
        "parked",
        "parked_bits",
        "parked_len",
        "parked_positions",
        "positions",
        "states",
        "version",
        "windows",
    )

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        planes: Sequence[Sequence[Plane]],
        parked: Sequence[Sequence[Plane]] | None = None,
        parked_bits: int | None = None,
        windows: Sequence[int | None] | None = None,
        numbers: Sequence[int] | None = None,
        states: Sequence[Array] = (),
    ) -> None:
        """An empty cache: one masked row.

        Args:
            planes: what a row of a head has, of each of the L layers; `parked`, where others.
            numbers: of decoder layers; from 0 on unless given.
            states: of layers without rows, before the first token.
        """

        def masked_rows(of: Sequence[Plane]) -> list[Array]:
            return [np.zeros((batch, kv_heads, 1, one.width), one.dtype) for one in of]

        layers = len(planes)
        self.active: Planes = tuple(map(masked_rows, zip(*planes, strict=True)))
        self.parked: Planes = tuple(map(masked_rows, zip(*(parked or planes), strict=True)))
        self.parked_bits = parked_bits
        self.numbers = tuple(range(layers) if numbers is None else numbers)
        self.states = LayerStates(states)
        self.positions: Ints = np.zeros((layers, batch, kv_heads, 1), np.int64)
        self.mass: Floats = np.zeros((layers, batch, kv_heads, 1), np.float32)
        self.parked_positions: Ints = np.zeros((layers, batch, 1), np.int64)
        self.active_len: Ints = np.zeros((layers, batch), np.int64)
        self.parked_len: Ints = np.zeros((layers, batch), np.int64)
        self.image_rows: Ints = np.zeros((layers, batch), np.int64)
        self.windows = (None,) * layers if windows is None else tuple(windows)
        self.forked = False
        self.version = 0

    @property
    def layers(self) -> int:
        """How many layers of the segment keep rows."""
        return len(self.positions)

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return int(self.active_len.shape[1])

    @property
    def planes(self) -> tuple[list[list[Plane]], list[list[Plane]]]:
        """What a row of a head has in each layer that is active, and one that is parked."""
        active, parked = (
            [[Plane(a.shape[3], a.dtype) for a in layer] for layer in zip(*planes, strict=True)]
            for planes in (self.active, self.parked)
        )
        return active, parked

    @property
    def k_active(self) -> list[Array]:
        """Keys of active rows, [B, Hkv, A, D] for each layer."""
        return self.active[0]

    @property
    def v_active(self) -> list[Array]:
        """Values of active rows."""
        return self.active[1]

    @property
    def k_parked(self) -> list[Array]:
        """Keys of parked rows, [B, Hkv, P, D] for each layer."""
        return self.parked[0]

    @property
    def v_parked(self) -> list[Array]:
        """Values of parked rows."""
        return self.parked[1]

    @property
    def tops(self) -> list[int]:
        """Active rows of each layer's longest sequence."""
        # As lists: NumPy's functions are slow where a run has emptied the processor's caches.
        lengths: list[list[int]] = self.active_len.tolist()
        return list(map(max, lengths))

    @property
    def rooms(self) -> list[int]:
        """Active rows that each layer's planes have room for."""
        return [array.shape[2] for array in self.active[0]]

    @property
    def spare(self) -> int:
        """Rows that every sequence can be given until a layer is full."""
        left: list[int] = list(map(sub, self.rooms, self.tops))
        return min(left)

    @property
    def is_full(self) -> bool:
        """Whether the next `append` of a row replaces planes, for lack of room."""
        return self.spare <= 0

    @property
    def nbytes(self) -> int:
        """Bytes of the live planes, room included, and of states."""
        planes = (*self.active, *self.parked)
        return sum(array.nbytes for plane in planes for array in plane) + self.states.nbytes

    def copy(self) -> SegmentCache:
        """A second cache of the same rows, with book-keeping of its own.

        Reading a prompt begins with `reserve`, which replaces the planes: the copy stays as it is.
        """
        other = SegmentCache.__new__(SegmentCache)
        self._copy_to(other)
        return other

    def fork(self) -> SegmentCache:
        """As `copy`; whichever of the two is written first takes arrays of its own."""
        self.forked = True
        return self.copy()

    def window(self, seq: int) -> SegmentCache:
        """One sequence, in views of this cache's arrays, to be read."""
        other = SegmentCache.__new__(SegmentCache)
        part = slice(seq, seq + 1)
        for name in ("active", "parked"):
            planes = tuple([array[part] for array in plane] for plane in getattr(self, name))
            setattr(other, name, planes)
        for name in (*LENGTHS, "positions", "mass", "parked_positions"):
            setattr(other, name, getattr(self, name)[:, part])
        other.forked, other.version = self.forked, self.version
        other.parked_bits, other.windows = self.parked_bits, self.windows
        other.numbers, other.states = self.numbers, self.states.window(seq)
        return other

    def taken(self, seq: int) -> SegmentCache:
        """One sequence in arrays of its own; this cache keeps it."""
        other = SegmentCache.__new__(SegmentCache)
        self.window(seq)._copy_to(other)
        other.forked = True
        other.own()
        other.states = self.states.taken(seq)
        return other

    def recall(self) -> None:
        """Have book-keeping here up to date, which a device may keep during decode."""

    def claim(self) -> None:
        """Have book-keeping here alone: it is about to be changed."""

    def let_go(self) -> None:
        """Know that what `copy` made is gone."""

    def _copy_to(self, other: SegmentCache) -> None:
        for name in SegmentCache.__slots__:
            value = getattr(self, name)
            if name in ("active", "parked"):  # the lists of arrays are copied, not the arrays
                value = tuple(list(plane) for plane in value)
            elif isinstance(value, np.ndarray | LayerStates):
                value = value.copy()
            setattr(other, name, value)

    def own(self) -> None:
        """Have arrays that no fork has."""
        if self.forked:
            self.parked = tuple(list(map(copied, plane)) for plane in self.parked)
            self._renew(dict(enumerate(self.rooms)))
            self.forked = False

    def reserve(self, rows: int, steps: int = 0, chunk: int = 0) -> None:
        """Make room for `rows` more active rows, in arrays that no copy of this cache has.

        Layers with a window get room for that and one chunk.

        Args:
            chunk: rows that come at once.
            steps: how many rows may come behind them, for which there is the room that `trim`
                leaves: a prompt of which nothing is dropped is not copied before its reply.
        """
        tops = [
            top + rows if window is None else max(top, min(top + rows, window + chunk))
            for top, window in zip(self.tops, self.windows, strict=True)
        ]
        self._renew({layer: max(1, top) + room(top, steps) for layer, top in enumerate(tops)})

    def extend(
        self, new: Sequence[NewRows], seq: int, positions: Ints, mass: Floats | None
    ) -> None:
        """Add rows to one sequence, behind its rows where there is room.

        Args:
            new: planes.
            positions: [S].
            mass: [L, 1, Hkv, S] initial H2O mass, or None for zeros.
        """
        self.own()
        count = positions.shape[0]
        lengths = self.active_len[:, seq].tolist()
        both = zip(self.rooms, lengths, strict=True)
        self.fit([max(held, length + count) for held, length in both])
        for plane, rows in zip(self.active, new, strict=True):
            for layer, length in enumerate(lengths):
                plane[layer][seq, :, length : length + count] = rows[layer][0]
        for layer, length in enumerate(lengths):
            self.positions[layer, seq, :, length : length + count] = positions
            fresh = 0 if mass is None else mass[layer, 0]
            self.mass[layer, seq, :, length : length + count] = fresh
        self.active_len[:, seq] += count

    def make_room(self, steps: int, rows: int = 1) -> None:
        """Have room for more rows of every sequence, in arrays of this cache alone.

        Args:
            steps: how many more rows may come, a bound on the room to allocate.
            rows: how many come now.
        """
        self.own()
        both = enumerate(zip(self.tops, self.rooms, strict=True))
        full = {
            layer: top + max(rows, room(top, steps))
            for layer, (top, held) in both
            if top + rows > held
        }
        if full:
            self._renew(full)

    def add_mass(self, seq: int, masses: ByLayer, of: int = 0) -> None:
        """Add to the mass of one sequence's active rows what text rows of a run have given them.

        Args:
            masses: see `sight.Masses.mass_active`.
            of: the sequence in `masses`.
        """
        lengths = self.active_len[:, seq].tolist()
        for first, last in alike(lengths):
            count = lengths[first]
            self.mass[first:last, seq, :, :count] += masses.of((first, last), of, TEXT, count)

    def settle(self) -> None:
        """Have every row where `moves` has put it, which on the host it already is."""

    def trim(self, steps: int) -> None:
        """Free what evictions left behind, keeping the room that `steps` more rows deserve."""
        self.fit([max(1, top) + room(top, steps) for top in self.tops])

    def fit(self, rooms: Sequence[int]) -> None:
        """Have room for so many active rows in each layer; live rows are kept."""
        both = enumerate(zip(rooms, self.rooms, strict=True))
        wrong = {layer: wanted for layer, (wanted, held) in both if wanted != held}
        if wrong:
            self._renew(wrong)

    def _renew(self, rooms: Mapping[int, int]) -> None:
        """Give some layers new arrays with room for so many active rows."""
        tops = self.tops
        for plane in self.active:
            for layer, rows in rooms.items():
                plane[layer] = resized(plane[layer], 2, tops[layer], rows)
        capacity = max(self.rooms)
        if self.positions.shape[3] != capacity:
            self.positions = resized(self.positions, 3, max(tops), capacity)
            self.mass = resized(self.mass, 3, max(tops), capacity)
        self.version += 1
