"""The KV cache: per layer an unordered set of rows, active or parked.

Keys are stored after RoPE, so the order of rows does not matter to attention and a row may be
moved freely. Active rows are read by every step; parked rows (A-VL's secondary minus core) by
refresh steps only; a dropped row (minor, evicted text) is gone and its memory with it. Rows come
and grow here and are moved by `moves`; nobody else writes them.

Arrays are compact: rows [0, length) of an axis are live, the rest is room for decode, finite
because graphs mask those rows but still multiply by them.

A *position* is the index of a row's token in its conversation, whatever its rotary position ids.
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

    An eighth has a growing cache copy eight rows a token, however many it has.
    """
    return max(1, min(steps, max(16, rows // 8)))


class SegmentCache:
    """Rows of a decoder segment's L layers for a batch of B sequences; B = 1 during prefill.

    Every layer and KV head holds as many rows of a sequence as the others, at slots of its own.
    Book-keeping is one array for all layers, so that a policy ranks them in one operation; K and V
    are an array per layer, so that replacing them holds one layer twice and not a segment.

    Attributes:
        k_active, v_active: L arrays [B, Hkv, A, D] in the graph's dtype.
        active_len: [B] int64, live rows of each sequence.
        positions: [L, B, Hkv, A] int64, position of the token behind each active row.
        mass: [L, B, Hkv, A] float32, attention received from text rows so far (H2O).
        k_parked, v_parked: L arrays [B, Hkv, P, D].
        parked_len: [B] int64.
        parked_positions: [L, B, P] int64.
        image_rows: [B] int64; after a partition the first rows of a sequence are its core image
            rows, in the same slots for every KV head.
        version: grows whenever an array of K or V is replaced, so that bindings look again.
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

    def __init__(
        self, layers: int, batch: int, kv_heads: int, head_dim: int, dtype: np.dtype[Any]
    ) -> None:
        """An empty cache: one masked row, as graphs take no empty dimension."""

        def masked_row() -> list[Array]:
            return [np.zeros((batch, kv_heads, 1, head_dim), dtype) for _ in range(layers)]

        self.k_active, self.v_active = masked_row(), masked_row()
        self.k_parked, self.v_parked = masked_row(), masked_row()
        self.positions: Ints = np.zeros((layers, batch, kv_heads, 1), np.int64)
        self.mass: Floats = np.zeros((layers, batch, kv_heads, 1), np.float32)
        self.parked_positions: Ints = np.zeros((layers, batch, 1), np.int64)
        self.active_len: Ints = np.zeros(batch, np.int64)
        self.parked_len: Ints = np.zeros(batch, np.int64)
        self.image_rows: Ints = np.zeros(batch, np.int64)
        self.version = 0

    @property
    def layers(self) -> int:
        """How many layers the segment has."""
        return len(self.positions)

    @property
    def top(self) -> int:
        """Active rows of the longest sequence."""
        return int(self.active_len[0] if len(self.active_len) == 1 else self.active_len.max())

    @property
    def is_full(self) -> bool:
        """Whether the next `append` replaces K and V, for lack of room."""
        return bool(self.top == self.positions.shape[3])

    @property
    def nbytes(self) -> int:
        """Bytes of the live K and V arrays, room included."""
        kinds = (self.k_active, self.v_active, self.k_parked, self.v_parked)
        return sum(array.nbytes for arrays in kinds for array in arrays)

    def copy(self) -> SegmentCache:
        """A second cache with the same K and V arrays and its own book-keeping.

        Reading a prompt begins with `reserve`, which replaces K and V: the copy stays as it is.
        """
        other = SegmentCache.__new__(SegmentCache)
        for name in SegmentCache.__slots__:
            value = getattr(self, name)
            # Of K and V it is the list of arrays that is copied.
            setattr(other, name, value if name == "version" else value.copy())
        return other

    def reserve(self, rows: int) -> None:
        """Make room for `rows` active rows in all, in arrays that no copy of this cache has."""
        self._resize(self.top, max(1, rows))

    def extend(self, k_new: Array, v_new: Array, positions: Ints, mass: Floats | None) -> None:
        """Add a chunk of a prompt to a single sequence, behind its rows where there is room.

        Args:
            k_new, v_new: [L, 1, Hkv, S, D].
            positions: [S].
            mass: [L, 1, Hkv, S] initial H2O mass, or None for zeros.
        """
        length = int(self.active_len[0])
        end = length + k_new.shape[3]
        if end > self.positions.shape[3]:
            self._resize(length, end)
        for arrays, new in ((self.k_active, k_new), (self.v_active, v_new)):
            for array, rows in zip(arrays, new, strict=True):
                array[:, :, length:end] = rows
        self.positions[..., length:end] = positions
        self.mass[..., length:end] = 0 if mass is None else mass
        self.active_len[0] = end

    def append(
        self,
        k_new: Array,
        v_new: Array,
        positions: Ints,
        mass: Floats | None,
        alive: NDArray[np.bool_],
        steps: int,
    ) -> None:
        """Add one row to every sequence that is `alive`.

        Args:
            k_new, v_new: [L, B, Hkv, 1, D].
            positions: [B], of the new tokens.
            mass: [L, B, Hkv] initial H2O mass, or None for zeros.
            alive: [B]; a finished sequence keeps its rows as they are.
            steps: how many more rows may come, a bound on the room to allocate.
        """
        top = self.top
        if self.is_full:
            self._resize(top, top + room(top, steps))
        fresh = 0 if mass is None else mass
        if len(alive) == 1:  # at the slot of all: several times as fast as at slots of their own
            for arrays, new in ((self.k_active, k_new), (self.v_active, v_new)):
                for array, row in zip(arrays, new[:, :, :, 0], strict=True):
                    array[:, :, top] = row
            self.positions[..., top] = positions[0]
            self.mass[..., top] = fresh
            self.active_len[0] += int(alive[0])
            return
        seqs = np.flatnonzero(alive)
        slots = self.active_len[seqs]
        for arrays, new in ((self.k_active, k_new), (self.v_active, v_new)):
            for array, row in zip(arrays, new[:, :, :, 0], strict=True):
                array[seqs, :, slots] = row[seqs]
        # NumPy puts the two indices' common axis first where a slice lies between them.
        self.positions[:, seqs, :, slots] = positions[seqs, None, None]
        self.mass[:, seqs, :, slots] = 0 if mass is None else mass[:, seqs].swapaxes(0, 1)
        self.active_len[seqs] += 1

    def add_mass(self, seq: int, mass: Floats) -> None:
        """Add attention mass [L, Hkv, n] to the first n active rows of one sequence."""
        self.mass[:, seq, :, : mass.shape[2]] += mass

    def settle(self) -> None:
        """Have every row where `moves` has put it, which on the host it already is."""

    def trim(self, steps: int) -> None:
        """Free what evictions left behind, keeping the room that `steps` more rows deserve."""
        top = self.top
        capacity = max(1, top) + room(top, steps)
        if self.positions.shape[3] != capacity:
            self._resize(top, capacity)

    def _resize(self, top: int, capacity: int) -> None:
        """Make room for `capacity` active rows in all, of which the first `top` are kept."""
        for arrays in (self.k_active, self.v_active):
            for layer, array in enumerate(arrays):
                arrays[layer] = _resized(array, 2, top, capacity)
        self.positions = _resized(self.positions, 3, top, capacity)
        self.mass = _resized(self.mass, 3, top, capacity)
        self.version += 1


def stacked(caches: list[SegmentCache], steps: int) -> SegmentCache:
    """A segment of several single sequences as a batch, with room for `steps` more rows.

    The single caches give up their rows, layer by layer.
    """
    first = caches[0]
    if len(caches) == 1:
        first.trim(steps)
        return first
    _, kv_heads, _, head_dim = first.k_active[0].shape
    dtype, layers = first.k_active[0].dtype, first.layers
    batch = SegmentCache(layers, len(caches), kv_heads, head_dim, dtype)
    for name in ("active_len", "parked_len", "image_rows"):
        setattr(batch, name, np.concatenate([getattr(cache, name) for cache in caches]))
    top, apart = int(batch.active_len.max()), int(batch.parked_len.max())
    active = (batch.active_len.tolist(), top + room(top, steps))
    parked = (batch.parked_len.tolist(), max(1, apart))
    for name, sizes in (
        ("k_active", active),
        ("v_active", active),
        ("k_parked", parked),
        ("v_parked", parked),
    ):
        for layer in range(layers):
            parts = [getattr(cache, name).pop(0) for cache in caches]
            getattr(batch, name)[layer] = _side_by_side(parts, 0, 2, *sizes)
    batch.positions = _side_by_side([cache.positions for cache in caches], 1, 3, *active)
    batch.mass = _side_by_side([cache.mass for cache in caches], 1, 3, *active)
    parts = [cache.parked_positions for cache in caches]
    batch.parked_positions = _side_by_side(parts, 1, 2, *parked)
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


def _side_by_side(
    parts: list[Array], batch_axis: int, axis: int, lengths: list[int], capacity: int
) -> Array:
    """Arrays of single sequences, brought to `capacity` rows along `axis`, as one batch."""
    sized = [_resized(part, axis, n, capacity) for part, n in zip(parts, lengths, strict=True)]
    return np.concatenate(sized, batch_axis)


def _resized(array: NDArray[Any], axis: int, length: int, capacity: int) -> NDArray[Any]:
    """The first `length` rows of `array` along `axis`, zeros up to `capacity`."""
    before = (slice(None),) * axis
    resized = np.empty((*array.shape[:axis], capacity, *array.shape[axis + 1 :]), array.dtype)
    resized[(*before, slice(length))] = array[(*before, slice(length))]
    resized[(*before, slice(length, None))] = 0
    return resized
