"""Rows of one sequence change: put where fates say, a core exchanged, merged, evicted."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.host import Host, host
from avl_plugins.policies import ACTIVE, PARKED
from avl_runtime.kv.cache import Array, Ints, SegmentCache
from avl_runtime.kv.growth import resized, zeros
from avl_runtime.kv.masses import address
from avl_runtime.kv.parking import coded, narrow, widen
from avl_runtime.kv.sight import is_scaled, stored
from avl_runtime.machine.pages import ROWS

Mask = NDArray[np.bool_]
Fates = NDArray[np.int8]
Scores = NDArray[np.floating]

WORTH_THREADS = 1 << 20  # bytes of K to move; below, handing the work over costs more than it saves


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, "avl-moves")  # more do not help: memory is what they wait for


def place(cache: SegmentCache, seq: int, fates: Fates, image_mask: Mask) -> None:
    """Put a sequence's rows where the fates of their positions say, in every layer.

    Active rows end up as image rows, then text, each by position.

    Args:
        fates: [L, tokens so far]; of text ACTIVE.
        image_mask: [tokens so far].
    """
    if not fates.any() and not cache.parked_len[:, seq].any():
        return  # nothing moves: rows stay in the order dense attention reads them
    cache.own()
    plans = [_plan(cache, seq, layer, fates[layer], image_mask) for layer in range(cache.layers)]
    stays = [stay.shape[1] for _, stay, _ in plans]
    asides = [aside.shape[1] for _, _, aside in plans]
    alone = cache.batch == 1
    rooms, apart = _rooms(cache, stays, asides)
    # One plane of one layer at a time, so that no more than that is ever held twice; or one layer,
    # where a plane of parked rows is made of several.
    every = range(len(cache.active))
    together = [every] if cache.parked_bits else [range(one, one + 1) for one in every]
    for planes in together:
        for layer, (_, stay, aside) in enumerate(plans):
            lying = _held(cache, seq, layer, planes)
            here = [_rows_at(plane, stay, rooms[layer]) for plane in lying]
            there = [_rows_at(plane, aside, apart[layer]) for plane in lying]
            if cache.parked_bits:
                there = narrow(there, cache.parked_bits)
            for plane, stays_here, goes_aside in zip(planes, here, there, strict=True):
                active, parked = cache.active[plane], cache.parked[plane]
                if alone:
                    active[layer], parked[layer] = stays_here[None], goes_aside[None]
                else:
                    active[layer][seq], parked[layer][seq] = stays_here, goes_aside
    positions, mass, parked_positions = cache.positions, cache.mass, cache.parked_positions
    if alone:
        shape = (*positions.shape[:3], max(rooms))
        positions, mass = zeros(shape, np.int64), zeros(shape, np.float32)
        parked_positions = np.zeros((cache.layers, 1, max(apart)), np.int64)
    for layer, (rows, stay, aside) in enumerate(plans):
        length = int(cache.active_len[layer, seq])
        gathered = np.zeros(rows.shape, np.float32)
        gathered[:, :length] = cache.mass[layer, seq, :, :length]
        positions[layer, seq, :, : stays[layer]] = np.take_along_axis(rows, stay, 1)
        mass[layer, seq, :, : stays[layer]] = np.take_along_axis(gathered, stay, 1)
        parked_positions[layer, seq, : asides[layer]] = rows[0, aside[0]]
    cache.positions, cache.mass, cache.parked_positions = positions, mass, parked_positions
    cache.active_len[:, seq], cache.parked_len[:, seq] = stays, asides
    for layer in range(cache.layers):
        if cache.windows[layer] is None:
            front = positions[layer, seq, 0, : stays[layer]]
            cache.image_rows[layer, seq] = np.count_nonzero(image_mask[front])
    cache.version += 1


def _held(cache: SegmentCache, seq: int, layer: int, planes: range) -> list[Array]:
    """Some planes [Hkv, n, width] of a layer's active rows, and of parked rows behind them."""
    length, held = (int(n[layer, seq]) for n in (cache.active_len, cache.parked_len))
    rows = [cache.active[plane][layer][seq] for plane in planes]
    if not held:
        return rows
    parked = [cache.parked[plane][layer][seq, :, :held] for plane in planes]
    if cache.parked_bits:
        parked = widen(parked, cache.parked_bits)
    both = zip(rows, parked, strict=True)
    return [np.concatenate([plane[:, :length], behind], 1) for plane, behind in both]


def _plan(
    cache: SegmentCache, seq: int, layer: int, fates: Fates, image_mask: Mask
) -> tuple[Ints, Ints, Ints]:
    """Positions [Hkv, n] of a layer's active and then parked rows, and which stay and go aside."""
    length, held = (int(n[layer, seq]) for n in (cache.active_len, cache.parked_len))
    heads = cache.positions.shape[2]
    parked = np.broadcast_to(cache.parked_positions[layer, seq, :held], (heads, held))
    rows = np.concatenate([cache.positions[layer, seq, :, :length], parked], 1)
    order = (rows + np.where(image_mask[rows], 0, len(image_mask))).argsort(1)
    fate = fates[np.take_along_axis(rows, order, 1)]
    stay, aside = (order[fate == kind].reshape(heads, -1) for kind in (ACTIVE, PARKED))
    return rows, stay, aside


def _rooms(cache: SegmentCache, stays: list[int], asides: list[int]) -> tuple[list[int], list[int]]:
    """Rooms for active and parked rows of each layer that a sequence needs, made where missing.

    Of one row at least, as graphs take no empty dimension.
    """
    if cache.batch == 1:
        return [max(1, stay) for stay in stays], [max(1, aside) for aside in asides]
    cache.fit(list(map(max, stays, cache.rooms)))
    for plane in cache.parked:
        for layer, aside in enumerate(asides):
            held = plane[layer].shape[2]
            if aside > held:
                plane[layer] = resized(plane[layer], 2, held, aside)
    held = cache.parked_positions.shape[2]
    if max(asides) > held:
        cache.parked_positions = resized(cache.parked_positions, 2, held, max(asides))
    return cache.rooms, [array.shape[2] for array in cache.parked[0]]


def exchange(cache: SegmentCache, seq: int, leaving: Mask, entering: Mask, first: int = 0) -> None:
    """Swap core image rows with parked rows, in place; a layer swaps as many as it marks.

    Args:
        leaving, entering: [l, core] and [l, parked], of the l layers from `first` on.
    """
    cache.own()
    layers, out = leaving.nonzero()
    layers = layers + first
    into = entering.nonzero()[1]
    moved = cache.positions[layers, seq, 0, out]
    cache.positions[layers, seq, :, out] = cache.parked_positions[layers, seq, into, None]
    cache.parked_positions[layers, seq, into] = moved
    kernels = host()

    def swap(layer: int, part: slice[Any, Any, Any]) -> None:
        here = [plane[layer][seq] for plane in cache.active]
        there = [plane[layer][seq] for plane in cache.parked]
        if cache.parked_bits:
            _exchange_bits(here, there, out[part], into[part], cache.parked_bits)
            return
        if kernels is None or not _swapped(kernels, here, there, out[part], into[part]):
            for active, parked in zip(here, there, strict=True):
                _swap_rows(active, parked, out[part], into[part])

    parts = _by_layer(layers, cache.layers)
    _, heads, _, width = cache.k_active[0].shape
    if len(out) * heads * width * cache.k_active[0].itemsize < WORTH_THREADS:
        for layer, part in parts:
            swap(layer, part)
    else:  # other threads may run while rows move, and memory is what they wait for most of all
        list(_threads().map(swap, *zip(*parts, strict=True)))


def evict(cache: SegmentCache, seq: int, dropped: Ints, first: int = 0) -> None:
    """Drop active slots, and shrink by as many rows in place.

    Rows from the end fill the holes that are left before it, so that nothing else moves.

    Args:
        dropped: [l, Hkv, n], ascending, of the l layers from `first` on.
    """
    cache.own()
    _, _, heads, capacity = cache.positions.shape
    rooms = cache.rooms
    count, _, gone = dropped.shape
    by_head = dropped.reshape(count * heads, gone)
    cache.active_len[first : first + count, seq] -= gone
    left = cache.active_len[first : first + count, seq].repeat(heads)
    remaining = left[:, None]
    at_end = by_head >= remaining
    stays = np.ones(by_head.shape, np.bool_)
    stays[at_end.nonzero()[0], (by_head - remaining)[at_end]] = False
    # Every head has as many holes as rows to fill them, and both come in the order of heads.
    holes = by_head[~at_end]
    each, fillers = stays.nonzero()
    shifts = left[each] + fillers - holes
    layer, head = np.divmod(each, heads)
    layer = layer + first
    lines = seq * heads + head
    for index, part in _by_layer(layer, cache.layers):
        to = lines[part] * rooms[index] + holes[part]
        origin = to + shifts[part]
        for plane in cache.active:
            rows = _elements(plane[index])
            rows.put(to, rows.take(origin))
    targets = layer * cache.positions[0].size + lines * capacity + holes
    for numbers in (cache.positions, cache.mass):
        numbers.put(targets, numbers.take(targets + shifts))


def merge(
    cache: SegmentCache, seq: int, layer: int, slots: Ints, into: Ints, times: Scores
) -> None:
    """Have keys and values of some active rows of a layer become sums of rows of their KV head.

    All other rows stay as they are, those that go into another too. Sums are float32, and kept as
    the cache keeps rows: codes of 8 bits are found anew, with a scale of their own.

    Args:
        slots: [Hkv, n], of the rows that are spoken about.
        into: [Hkv, n], for each its end, a row by its place in `slots`; -1: none.
        times: [Hkv, n], how many times each goes into its end.
    """
    cache.own()
    for head, (to, where, each) in enumerate(zip(into, slots, times, strict=True)):
        order = to.argsort(kind="stable")[np.count_nonzero(to < 0) :]  # by end, then as they come
        if not len(order):
            continue
        ends, starts = np.unique(to[order], return_index=True)
        factors = each[order, None].astype(np.float32)
        for plane in range(2):
            rows = stored(cache, plane, layer, seq, head, where[order])
            rows *= factors
            sums = np.add.reduceat(rows, starts, 0)
            made = coded(sums) if is_scaled(cache) else (sums,)
            for part, of in zip(made, cache.active[plane::2], strict=True):
                of[layer][seq, head, where[ends]] = part


def roll_back(cache: SegmentCache, seq: int, length: int) -> None:
    """Drop the rows of a sequence whose positions are `length` or higher, in every layer."""
    cache.claim()
    for layer, held in enumerate(cache.active_len[:, seq].tolist()):
        positions = cache.positions[layer, seq, :, :held]
        count = int(np.count_nonzero(positions[0] >= length))  # the same in every head
        if (positions[:, held - count :] >= length).all():  # nobody has moved a row since
            cache.active_len[layer, seq] -= count
        else:
            newer = positions >= length
            slots = newer.nonzero()[1].reshape(1, len(newer), -1)
            evict(cache, seq, slots, layer)
    cache.settle()


def _swapped(
    kernels: Host, active: list[Array], parked: list[Array], out: Ints, into: Ints
) -> bool:
    """`_swap_rows` of all planes by the compiled library; whether it did."""
    parts = np.empty((len(active), 6), np.int64)  # avl_places of each
    for part, here, there in zip(parts, active, parked, strict=True):
        if not (here.flags.c_contiguous and there.flags.c_contiguous):
            return False
        heads, room, width = here.shape
        sizes = heads, room, there.shape[1], width * here.itemsize
        part[:] = address(here), address(there), *sizes
    leaving, entering = np.ascontiguousarray(out), np.ascontiguousarray(into)
    rows = address(leaving), address(entering), len(leaving)
    return bool(kernels.exchange(address(parts), len(parts), *rows))


def _swap_rows(active: Array, parked: Array, out: Ints, into: Ints) -> None:
    """Swap rows `out` of `active` [Hkv, A, D] with rows `into` of `parked` [Hkv, P, D]."""
    heads = np.arange(len(active))[:, None]
    here, there = _elements(active), _elements(parked)
    to, origin = heads * active.shape[1] + out, heads * parked.shape[1] + into
    kept = here.take(to)
    here.put(to, there.take(origin))
    there.put(origin, kept)


def _exchange_bits(
    active: list[Array], parked: list[Array], out: Ints, into: Ints, bits: int
) -> None:
    """Swap rows as `_swap_rows` does, whose planes [Hkv, n, width] are others when parked."""
    leaving = narrow([plane[:, out] for plane in active], bits)
    entering = widen([plane[:, into] for plane in parked], bits)
    for plane, rows in zip(active, entering, strict=True):
        plane[:, out] = rows
    for plane, rows in zip(parked, leaving, strict=True):
        plane[:, into] = rows


def _rows_at(rows: Array, slots: Ints, capacity: int) -> Array:
    """Rows [Hkv, m, D] of `rows` [Hkv, n, D] at `slots` [Hkv, m], zeros up to `capacity`."""
    heads, count, width = rows.shape
    whole = slots + count * np.arange(heads)[:, None]
    found = ROWS.empty((heads, capacity, width), rows.dtype)
    if slots.shape[1] == capacity:
        _elements(rows).take(whole, out=_elements(found)[..., 0], mode="clip")
    else:
        _elements(found)[:, : slots.shape[1], 0] = _elements(rows).take(whole)
        found[:, slots.shape[1] :] = 0
    return found


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
