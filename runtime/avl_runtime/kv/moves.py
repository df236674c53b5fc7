"""Rows of a cache change places: a prompt's images divided, a core exchanged, text evicted.

Every function moves the rows of all layers of a segment and of one sequence.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_runtime.kv.cache import Array, Ints, SegmentCache

Mask = NDArray[np.bool_]

WORTH_THREADS = 1 << 20  # bytes of K to move; below, handing the work over costs more than it saves


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, "avl-moves")  # more do not help: memory is what they wait for


def image_positions(cache: SegmentCache, image_mask: Mask) -> Ints:
    """Positions [L, n] of all live image rows of a single sequence, ascending.

    Args:
        image_mask: [tokens so far].
    """
    # Every KV head holds the same image rows; text may differ.
    active = cache.positions[:, 0, 0, : cache.active_len[0]]
    images = active[image_mask[active]].reshape(cache.layers, -1)
    parked = cache.parked_positions[:, 0, : cache.parked_len[0]]
    return np.sort(np.concatenate([images, parked], 1), 1)


def partition(cache: SegmentCache, core: Ints, parked: Ints, image_mask: Mask) -> None:
    """Split a single sequence's image rows: `core` active, `parked` apart, all others freed.

    Active rows end up as core image rows, then text by position.

    Args:
        core, parked: [L, c] and [L, p], ascending indices into `image_positions`.
        image_mask: [tokens so far].
    """
    layers, _, heads, _ = cache.positions.shape
    length, apart = int(cache.active_len[0]), int(cache.parked_len[0])
    by_head = np.broadcast_to(cache.parked_positions[:, :, :apart], (layers, heads, apart))
    positions = np.concatenate([cache.positions[:, 0, :, :length], by_head], 2)
    order = positions.argsort(2)
    is_image = image_mask[np.take_along_axis(positions, order, 2)]
    images = order[is_image].reshape(layers, heads, -1)
    if not parked.shape[1] and not apart and core.shape[1] == images.shape[2]:
        return  # nothing moves: rows stay in the order dense attention reads them
    text = order[~is_image].reshape(layers, heads, -1)
    stay = np.concatenate([np.take_along_axis(images, core[:, None], 2), text], 2)
    aside = np.take_along_axis(images, parked[:, None], 2)
    # One of K and V of one layer at a time, so that no more than that is ever held twice.
    for active_rows, parked_rows in (
        (cache.k_active, cache.k_parked),
        (cache.v_active, cache.v_parked),
    ):
        for layer in range(layers):
            rows = active_rows[layer][0]
            if apart:
                rows = np.concatenate([rows[:, :length], parked_rows[layer][0, :, :apart]], 1)
            active_rows[layer] = _rows_at(rows, stay[layer])
            parked_rows[layer] = (
                _rows_at(rows, aside[layer])
                if parked.shape[1]
                else np.zeros_like(rows[None, :, :1])
            )
    mass = np.zeros(positions.shape, np.float32)
    mass[..., :length] = cache.mass[:, 0, :, :length]
    cache.positions = np.take_along_axis(positions, stay, 2)[:, None]
    cache.mass = np.take_along_axis(mass, stay, 2)[:, None]
    cache.parked_positions = (
        np.take_along_axis(positions[:, 0], aside[:, 0], 1)[:, None]
        if parked.shape[1]
        else np.zeros((layers, 1, 1), np.int64)
    )
    cache.active_len[0], cache.parked_len[0] = stay.shape[2], parked.shape[1]
    cache.image_rows[0] = core.shape[1]
    cache.version += 1


def exchange(cache: SegmentCache, seq: int, leaving: Mask, entering: Mask) -> None:
    """Swap core image rows with parked rows, in place; a layer swaps as many as it marks.

    Args:
        leaving: [L, n], which of the first n active slots leave.
        entering: [L, m], which of the first m parked slots take their place; as many in each layer.
    """
    layers, out = leaving.nonzero()
    into = entering.nonzero()[1]
    moved = cache.positions[layers, seq, 0, out]
    cache.positions[layers, seq, :, out] = cache.parked_positions[layers, seq, into, None]
    cache.parked_positions[layers, seq, into] = moved

    def swap(layer: int, part: slice[Any, Any, Any]) -> None:
        for active, parked in (
            (cache.k_active[layer], cache.k_parked[layer]),
            (cache.v_active[layer], cache.v_parked[layer]),
        ):
            _swap_rows(active[seq], parked[seq], out[part], into[part])

    parts = _by_layer(layers, cache.layers)
    _, heads, _, width = cache.k_active[0].shape
    if len(out) * heads * width * cache.k_active[0].itemsize < WORTH_THREADS:
        for layer, part in parts:
            swap(layer, part)
    else:  # other threads may run while rows move, and memory is what they wait for most of all
        list(_threads().map(swap, *zip(*parts, strict=True)))


def evict(cache: SegmentCache, seq: int, dropped: Ints) -> None:
    """Drop active slots `dropped` [L, Hkv, n], ascending, and shrink by n rows in place.

    Rows from the end fill the holes that are left before it, so that nothing else moves.
    """
    layers, _, heads, capacity = cache.positions.shape
    by_head = dropped.reshape(layers * heads, -1)
    remaining = int(cache.active_len[seq]) - by_head.shape[1]
    cache.active_len[seq] = remaining
    at_end = by_head >= remaining
    stays = np.ones(by_head.shape, np.bool_)
    stays[at_end.nonzero()[0], by_head[at_end] - remaining] = False
    # Every head has as many holes as rows to fill them, and both come in the order of heads.
    holes = by_head[~at_end]
    each, fillers = stays.nonzero()
    shifts = remaining + fillers - holes
    layer, head = np.divmod(each, heads)
    targets = (seq * heads + head) * capacity + holes
    for index, part in _by_layer(layer, layers):
        to, origin = targets[part], targets[part] + shifts[part]
        for rows in (_elements(cache.k_active[index]), _elements(cache.v_active[index])):
            rows.put(to, rows.take(origin))
    targets += layer * cache.positions[0].size
    for numbers in (cache.positions, cache.mass):
        numbers.put(targets, numbers.take(targets + shifts))


def _swap_rows(active: Array, parked: Array, out: Ints, into: Ints) -> None:
    """Swap rows `out` of `active` [Hkv, A, D] with rows `into` of `parked` [Hkv, P, D]."""
    heads = np.arange(len(active))[:, None]
    here, there = _elements(active), _elements(parked)
    to, origin = heads * active.shape[1] + out, heads * parked.shape[1] + into
    kept = here.take(to)
    here.put(to, there.take(origin))
    there.put(origin, kept)


def _rows_at(rows: Array, slots: Ints) -> Array:
    """Rows [1, Hkv, m, D] of `rows` [Hkv, n, D] at `slots` [Hkv, m]."""
    heads, count, _ = rows.shape
    whole = slots + count * np.arange(heads)[:, None]
    found: Array = _elements(rows).take(whole)
    return found[None, ..., None].view(rows.dtype)


def _elements(rows: Array) -> Array:
    """`rows` [..., D] as one opaque element a row, which `take` and `put` count through all axes.

    NumPy moves them several times as fast as it indexes rows of numbers.
    """
    return rows.view(f"V{rows.shape[-1] * rows.itemsize}")


def _by_layer(layers: Ints, count: int) -> list[tuple[int, slice[Any, Any, Any]]]:
    """Each layer that ascending `layers` names, with the part of the array that does."""
    bounds = layers.searchsorted(np.arange(count + 1)).tolist()
    return [
        (layer, slice(*ends)) for layer, ends in enumerate(pairwise(bounds)) if ends[0] < ends[1]
    ]
