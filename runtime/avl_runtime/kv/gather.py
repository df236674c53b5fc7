"""Sequences of several caches as one: how they join a batch, leave it, and are alone again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avl_runtime.kv.cache import LENGTHS, Array, SegmentCache
from avl_runtime.kv.growth import room, zeros
from avl_runtime.kv.states import gathered_states
from avl_runtime.machine.pages import ROWS

Part = tuple[SegmentCache, int]  # a sequence of a cache


def gathered(parts: Sequence[Part], steps: int) -> SegmentCache:
    """A segment of the sequences `parts`, in their order, with room for `steps` more rows.

    The caches they come from give up their rows, layer by layer, so that no more than one layer is
    held twice; sequences that are not named are gone. A cache that is alone stays as it is.
    """
    first = parts[0][0]
    if len(parts) == 1 and first.batch == 1:
        first.trim(steps)
        return first
    kv_heads = first.k_active[0].shape[1]
    kinds = *first.planes, first.parked_bits, first.windows, first.numbers
    batch = SegmentCache(len(parts), kv_heads, *kinds)
    batch.states = gathered_states([(cache.states, seq) for cache, seq in parts])
    rooms = gather_books(batch, parts, steps)
    sources = {id(cache): cache for cache, _ in parts}.values()
    for layer in range(first.layers):
        for kind, held in zip(("active", "parked"), rooms, strict=True):
            for number, plane in enumerate(getattr(batch, kind)):
                lengths = getattr(batch, f"{kind}_len")[layer].tolist()
                origin = [getattr(cache, kind)[number][layer][seq] for cache, seq in parts]
                plane[layer] = _beside(origin, lengths, held[layer])
        for cache in sources:
            for plane in (*cache.active, *cache.parked):
                width, dtype = plane[layer].shape[3], plane[layer].dtype
                plane[layer] = np.empty((0, kv_heads, 0, width), dtype)
    return batch


def gather_books(
    batch: SegmentCache, parts: Sequence[Part], steps: int
) -> tuple[list[int], list[int]]:
    """Fill the book-keeping of `batch`; returns each layer's rooms for active and parked rows."""
    for name in LENGTHS:
        columns = [getattr(cache, name)[:, seq] for cache, seq in parts]
        setattr(batch, name, np.ascontiguousarray(np.stack(columns, 1)))
    active = [top + room(top, steps) for top in batch.tops]
    parked = [max(1, *held) for held in batch.parked_len.tolist()]
    capacity, apart = max(active), max(parked)
    layers, _, heads, _ = parts[0][0].positions.shape
    batch.positions = zeros((layers, len(parts), heads, capacity), np.int64)
    batch.mass = zeros((layers, len(parts), heads, capacity), np.float32)
    batch.parked_positions = np.zeros((layers, len(parts), apart), np.int64)
    for index, (cache, seq) in enumerate(parts):
        for name in ("positions", "mass", "parked_positions"):
            to, origin = getattr(batch, name)[:, index], getattr(cache, name)[:, seq]
            count = min(to.shape[-1], origin.shape[-1])
            to[..., :count] = origin[..., :count]
    batch.version = 1 + max(cache.version for cache, _ in parts)
    return active, parked


def _beside(origin: Sequence[Array], lengths: Sequence[int], capacity: int) -> Array:
    """Rows [Hkv, n, width] of each sequence as [B, Hkv, capacity, width], zeros behind them."""
    heads, _, width = origin[0].shape
    rows = ROWS.empty((len(origin), heads, capacity, width), origin[0].dtype)
    for to, part, length in zip(rows, origin, lengths, strict=True):
        to[:, :length] = part[:, :length]
        to[:, length:] = 0
    return rows
