"""The KV cache: per layer an unordered set of rows, active or parked. The only writer of rows.

Keys are stored after RoPE, so the order of rows does not matter to attention and a row may be
moved freely. Active rows are read by every step; parked rows (A-VL's secondary minus core) by
refresh steps only; a dropped row (minor, evicted text) is gone and its memory with it.

Arrays are compact: rows [0, length) of an axis are live, the rest is room for decode, zeroed
because graphs mask those rows but still multiply by them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def room(rows: int, steps: int) -> int:
    """Rows to allocate beyond `rows` when at most `steps` more are to come.

    A sixteenth keeps the copying of a growing cache at a constant cost a token.
    """
    return max(1, min(steps, max(16, rows // 16)))


class LayerCache:
    """Rows of one layer for a batch of B sequences; B = 1 while a prompt is read.

    Attributes:
        k_active, v_active: [B, Hkv, A, D] in the graph's dtype.
        active_len: [B] int64, live rows of each sequence.
        positions: [B, Hkv, A] int64, position of the token behind each active row.
        mass: [B, Hkv, A] float32, attention received from text rows so far (H2O).
        k_parked, v_parked: [B, Hkv, P, D]; parked_len: [B]; parked_positions: [B, P].
        image_rows: [B] int64; after a partition the first rows of a sequence are its core image
            rows, in the same slots for every KV head.
        version: grows whenever an array is replaced, so that bindings know to look again.
    """

    __slots__ = (
        "active_len",
        "image_rows",
        "k_active",
        "k_parked",
        "mass",
        "parked_len",
        "parked_positions",
        "positions",
        "v_active",
        "v_parked",
        "version",
    )

    def __init__(self, batch: int, kv_heads: int, head_dim: int, dtype: np.dtype[Any]) -> None:
        """An empty cache: one masked row, as graphs take no empty dimension."""
        self.k_active: Array = np.zeros((batch, kv_heads, 1, head_dim), dtype)
        self.v_active: Array = np.zeros_like(self.k_active)
        self.active_len: Ints = np.zeros(batch, np.int64)
        self.positions: Ints = np.zeros((batch, kv_heads, 1), np.int64)
        self.mass: Floats = np.zeros((batch, kv_heads, 1), np.float32)
        self.k_parked: Array = np.zeros((batch, kv_heads, 1, head_dim), dtype)
        self.v_parked: Array = np.zeros_like(self.k_parked)
        self.parked_len: Ints = np.zeros(batch, np.int64)
        self.parked_positions: Ints = np.zeros((batch, 1), np.int64)
        self.image_rows: Ints = np.zeros(batch, np.int64)
        self.version = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the live K and V arrays, room included."""
        arrays = (self.k_active, self.v_active, self.k_parked, self.v_parked)
        return sum(array.nbytes for array in arrays)

    def copy(self) -> LayerCache:
        """A second cache with the same K and V arrays and its own book-keeping.

        Reading a prompt replaces K and V and never writes into those it found, so the copy stays
        as it is.
        """
        other = LayerCache.__new__(LayerCache)
        for name in LayerCache.__slots__:
            value = getattr(self, name)
            shared = name in ("k_active", "v_active", "k_parked", "v_parked", "version")
            setattr(other, name, value if shared else value.copy())
        return other

    def extend(self, k_new: Array, v_new: Array, positions: Ints, mass: Floats | None) -> None:
        """Add a chunk of a prompt to a single sequence, leaving no room.

        Args:
            k_new, v_new: [1, Hkv, S, D].
            positions: [S].
            mass: [Hkv, S] initial H2O mass, or None for zeros.
        """
        length = int(self.active_len[0])
        kv_heads, rows = k_new.shape[1], k_new.shape[2]
        new_positions = np.broadcast_to(positions, (1, kv_heads, rows))
        new_mass = np.zeros((1, kv_heads, rows), np.float32) if mass is None else mass[None]
        self.k_active = _joined(self.k_active, length, k_new)
        self.v_active = _joined(self.v_active, length, v_new)
        self.positions = _joined(self.positions, length, new_positions)
        self.mass = _joined(self.mass, length, new_mass)
        self.active_len[0] = length + rows
        self.version += 1

    def append(
        self, k_new: Array, v_new: Array, positions: Ints, alive: NDArray[np.bool_], steps: int
    ) -> None:
        """Add one row to every sequence that is `alive`.

        Args:
            k_new, v_new: [B, Hkv, 1, D].
            positions: [B], of the new tokens.
            alive: [B]; a finished sequence keeps its rows as they are.
            steps: how many more rows may come, a bound on the room to allocate.
        """
        single = len(alive) == 1
        top = int(self.active_len[0] if single else self.active_len.max())
        if top == self.k_active.shape[2]:
            self.reserve(top + room(top, steps))
        if single:
            self.k_active[:, :, top] = k_new[:, :, 0]
            self.v_active[:, :, top] = v_new[:, :, 0]
            self.positions[0, :, top] = positions[0]
            self.mass[0, :, top] = 0
            self.active_len[0] += int(alive[0])
            return
        rows = np.flatnonzero(alive)
        slots = self.active_len[rows]
        self.k_active[rows, :, slots] = k_new[rows, :, 0]
        self.v_active[rows, :, slots] = v_new[rows, :, 0]
        self.positions[rows, :, slots] = positions[rows, None]
        self.mass[rows, :, slots] = 0
        self.active_len[rows] += 1

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` active rows in all."""
        missing = capacity - self.k_active.shape[2]
        if missing <= 0:
            return
        length = self.k_active.shape[2]
        self.k_active = _padded(self.k_active, length, missing)
        self.v_active = _padded(self.v_active, length, missing)
        self.positions = _padded(self.positions, length, missing)
        self.mass = _padded(self.mass, length, missing)
        self.version += 1

    def image_positions(self, image_mask: NDArray[np.bool_]) -> Ints:
        """Positions of all live image rows of a single sequence, ascending.

        Args:
            image_mask: [tokens so far].
        """
        active = self.positions[0, 0, : self.active_len[0]]
        parked = self.parked_positions[0, : self.parked_len[0]]
        return np.sort(np.concatenate([active[image_mask[active]], parked]))

    def partition(self, core: Ints, parked: Ints, image_mask: NDArray[np.bool_]) -> None:
        """Split a single sequence's image rows: `core` active, `parked` apart, all others freed.

        Args:
            core, parked: ascending positions of live image rows.
            image_mask: [tokens so far].
        """
        length, parked_length = int(self.active_len[0]), int(self.parked_len[0])
        positions = np.concatenate(
            [self.positions[0, :, :length], self._parked_by_head(parked_length)], 1
        )
        if not len(parked) and not parked_length and len(core) == image_mask[positions[0]].sum():
            return  # nothing moves: rows stay in the order dense attention reads them
        source = np.stack([self._text_after(core, heads, image_mask) for heads in positions])
        apart = np.stack([_slots_of(parked, heads) for heads in positions])
        mass = np.concatenate(
            [self.mass[0, :, :length], np.zeros((len(positions), parked_length), np.float32)], 1
        )
        self.positions = np.take_along_axis(positions, source, 1)[None]
        self.mass = np.take_along_axis(mass, source, 1)[None]
        # K before V, so that only one of the two is ever held twice.
        for name in ("k", "v"):
            active, aside = f"{name}_active", f"{name}_parked"
            rows = np.concatenate(
                [getattr(self, active)[0, :, :length], getattr(self, aside)[0, :, :parked_length]],
                1,
            )
            setattr(self, active, np.take_along_axis(rows, source[..., None], 1)[None])
            if len(parked):
                setattr(self, aside, np.take_along_axis(rows, apart[..., None], 1)[None])
            else:
                setattr(self, aside, np.zeros_like(rows[None, :, :1]))
        self.parked_positions = parked[None].copy() if len(parked) else np.zeros((1, 1), np.int64)
        self.active_len[0], self.parked_len[0] = source.shape[1], len(parked)
        self.image_rows[0] = len(core)
        self.version += 1

    def _parked_by_head(self, parked_length: int) -> Ints:
        heads = self.positions.shape[1]
        parked = self.parked_positions[0, :parked_length]
        return np.broadcast_to(parked, (heads, parked_length))

    def _text_after(self, core: Ints, positions: Ints, image_mask: NDArray[np.bool_]) -> Ints:
        """Slots of one head's rows in their new order: core image rows, then text by position."""
        text = np.flatnonzero(~image_mask[positions])
        text = text[np.argsort(positions[text], kind="stable")]
        return np.concatenate([_slots_of(core, positions), text])

    def exchange(self, row: int, leaving: Ints, entering: Ints) -> None:
        """Swap active slots `leaving` with parked slots `entering` of one sequence, in place."""
        for active, parked in ((self.k_active, self.k_parked), (self.v_active, self.v_parked)):
            # `take` is faster than indexing with an array; every layer of a refresh pays it.
            kept = active[row].take(leaving, 1)
            active[row][:, leaving] = parked[row].take(entering, 1)
            parked[row][:, entering] = kept
        moved = self.positions[row, 0, leaving]
        self.positions[row][:, leaving] = self.parked_positions[row, entering]
        self.parked_positions[row, entering] = moved

    def add_mass(self, row: int, mass: Floats) -> None:
        """Add attention mass [Hkv, n] to the first n active rows of one sequence."""
        self.mass[row, :, : mass.shape[1]] += mass

    def evict(self, row: int, kept: NDArray[np.bool_]) -> None:
        """Drop the active rows of one sequence where `kept` [Hkv, length] is False.

        Every head drops the same number. Holes are filled with rows from the end, so that nothing
        else moves and the row count shrinks in place.
        """
        length = int(self.active_len[row])
        remaining = int(kept[0].sum())
        for head in range(len(kept)):
            holes = np.flatnonzero(~kept[head, :remaining])
            movers = remaining + np.flatnonzero(kept[head, remaining:])
            for array in (self.k_active, self.v_active, self.positions, self.mass):
                array[row, head, holes] = array[row, head, movers]
        self.k_active[row, :, remaining:length] = 0
        self.v_active[row, :, remaining:length] = 0
        self.active_len[row] = remaining

    def trim(self, steps: int) -> None:
        """Free what evictions left behind, keeping the room that `steps` more rows deserve."""
        top = int(self.active_len.max())
        capacity = max(1, top) + room(top, steps)
        if self.k_active.shape[2] == capacity:
            return
        for name in ("k_active", "v_active", "positions", "mass"):
            array = getattr(self, name)
            setattr(self, name, _padded(array[:, :, :top], top, capacity - top))
        self.version += 1


def stacked(caches: list[LayerCache], steps: int) -> LayerCache:
    """One layer of several single sequences as a batch, with room for `steps` more rows."""
    first = caches[0]
    if len(caches) == 1:
        first.trim(steps)
        return first
    dtype, (_, kv_heads, _, head_dim) = first.k_active.dtype, first.k_active.shape
    batch = LayerCache(len(caches), kv_heads, head_dim, dtype)
    top = max(int(cache.active_len[0]) for cache in caches)
    apart = max(1, *(int(cache.parked_len[0]) for cache in caches))
    capacity = top + room(top, steps)
    for name in ("k_active", "v_active", "positions", "mass"):
        parts = [getattr(cache, name)[:, :, : cache.active_len[0]] for cache in caches]
        padded = [_padded(part, part.shape[2], capacity - part.shape[2]) for part in parts]
        setattr(batch, name, np.concatenate(padded))
    for name in ("k_parked", "v_parked"):
        parts = [getattr(cache, name) for cache in caches]
        padded = [_padded(part, part.shape[2], apart - part.shape[2]) for part in parts]
        setattr(batch, name, np.concatenate(padded))
    batch.parked_positions = np.zeros((len(caches), apart), np.int64)
    for row, cache in enumerate(caches):
        length = int(cache.parked_len[0])
        batch.parked_positions[row, :length] = cache.parked_positions[0, :length]
    for name in ("active_len", "parked_len", "image_rows"):
        setattr(batch, name, np.concatenate([getattr(cache, name) for cache in caches]))
    return batch


def dense_bytes(
    rows: int, steps: int, limit: int, kv_heads: int, head_dim: int, dtype: np.dtype[Any]
) -> int:
    """Bytes one dense layer would hold after `rows` of prompt and `steps` of at most `limit`.

    Follows the growth of `append`, so that a dense run's own bytes equal it.
    """
    capacity = rows + room(rows, limit)
    for step in range(steps):
        if rows + step == capacity:
            capacity += room(capacity, limit - step)
    # The parked arrays of a dense cache are the one masked row that graphs ask for.
    return 2 * (capacity + 1) * kv_heads * head_dim * dtype.itemsize


def _joined(array: NDArray[Any], length: int, more: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([array[:, :, :length], more], 2)


def _padded(array: NDArray[Any], length: int, missing: int) -> NDArray[Any]:
    """`array` with `missing` zero rows appended along axis 2."""
    shape = (*array.shape[:2], length + missing, *array.shape[3:])
    grown = np.zeros(shape, array.dtype)
    grown[:, :, :length] = array[:, :, :length]
    return grown


def _slots_of(wanted: Ints, positions: Ints) -> Ints:
    """Slots at which `positions` [n] holds each of `wanted`."""
    order = np.argsort(positions, kind="stable")
    return order[np.searchsorted(positions[order], wanted)]
