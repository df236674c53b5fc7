"""Rows of a sequence as actions see them: their positions, and the attention they received.

Layers that hold as many rows as their neighbours are seen together, the others each by itself.
Layers that keep no rows are not seen, and their neighbours are none of one another; nor are layers
with a window, which is what decides about their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from avl_runtime.kv.by_layer import LAST, TEXT, ByLayer, Floats, Layers, alike
from avl_runtime.kv.cache import Ints, Planes, SegmentCache

Mask = NDArray[np.bool_]


class Masses(Protocol):
    """Attention that keys received in a run, float32.

    R's row 0 is the last query row's attention, row 1, if there, the sum over text query rows or,
    where an action decides about rows of all kinds, over its probes.
    """

    @property
    def mass_active(self) -> ByLayer:
        """[B, Hkv, R, rows] of each layer; `rows` may exceed the cache's length."""
        ...

    @property
    def mass_parked(self) -> ByLayer:
        """As `mass_active`."""
        ...

    @property
    def mass_new(self) -> Floats:
        """[L, B, Hkv, R, S] on S new rows."""
        ...


def images(cache: SegmentCache, seq: int, image_mask: Mask) -> Iterator[tuple[Layers, Ints]]:
    """Positions [l, n] of all live image rows, ascending.

    Args:
        image_mask: [tokens so far].
    """
    found = []
    for layer in range(cache.layers):
        # Every KV head holds the same image rows; text may differ.
        active = cache.positions[layer, seq, 0, : cache.active_len[layer, seq]]
        parked = cache.parked_positions[layer, seq, : cache.parked_len[layer, seq]]
        found.append(np.sort(np.concatenate([active[image_mask[active]], parked])))
    for first, last in _seen(cache, [len(positions) for positions in found]):
        yield (first, last), np.stack(found[first:last])


def core_and_parked_rows(cache: SegmentCache, seq: int) -> list[tuple[int, int]]:
    """How many core image rows and parked rows each layer holds."""
    rows = (cache.image_rows[:, seq].tolist(), cache.parked_len[:, seq].tolist())
    return list(zip(*rows, strict=True))


def core_and_parked(
    cache: SegmentCache, seq: int, masses: Masses | None, of: int | None = None
) -> Iterator[tuple[Layers, Ints, Floats]]:
    """Positions [l, n] of core image rows and parked rows as they lie, and their attention.

    For a sequence whose core image rows `moves.place` has put first. Attention is the last query
    row's, summed over the KV heads, which ranks as their mean does; zeros without `masses`.

    Args:
        of: the sequence in `masses`; None where they are of the same ones as the cache.
    """
    of = seq if of is None else of
    for first, last in _seen(cache, core_and_parked_rows(cache, seq)):
        core, apart = int(cache.image_rows[first, seq]), int(cache.parked_len[first, seq])
        positions = np.concatenate(
            [
                cache.positions[first:last, seq, 0, :core],
                cache.parked_positions[first:last, seq, :apart],
            ],
            1,
        )
        if masses is None:
            yield (first, last), positions, np.zeros(positions.shape, np.float32)
            continue
        active = masses.mass_active.of((first, last), of, LAST, core).sum(1)
        parked = masses.mass_parked.of((first, last), of, LAST, apart).sum(1)
        yield (first, last), positions, np.concatenate([active, parked], 1)


def bytes_held(cache: SegmentCache, seq: int) -> tuple[int, int]:
    """Bytes of a sequence's live active rows, and of its parked ones, in all layers."""
    return _live(cache.active, cache.active_len, seq), _live(cache.parked, cache.parked_len, seq)


def _live(planes: Planes, lengths: Ints, seq: int) -> int:
    return sum(
        plane[layer][seq, :, 0].nbytes * count
        for plane in planes
        for layer, count in enumerate(lengths[:, seq].tolist())
    )


def by_position(
    cache: SegmentCache,
    seq: int,
    masses: Masses,
    new: Ints,
    total: int,
    of: int = 0,
    by: int = LAST,
) -> Floats:
    """The last query row's head-mean attention, [L, total tokens]; 0 on dropped ones.

    Args:
        new: [S], positions of the run's new rows, which the cache does not hold yet.
        of: the sequence in `masses`.
        by: which of R's rows of `masses`.
    """
    heads = cache.positions.shape[2]
    mass = np.zeros((cache.layers, total), np.float32)
    for layer, here in enumerate(mass):
        length, apart = cache.active_len[layer, seq], cache.parked_len[layer, seq]
        # A head may have dropped a token that another still holds: each adds its share.
        active = masses.mass_active[layer][of, :, by, :length] / heads
        np.add.at(here, cache.positions[layer, seq, :, :length], active)
        parked = masses.mass_parked[layer][of, :, by, :apart].mean(0)
        here[cache.parked_positions[layer, seq, :apart]] = parked
        here[new] = masses.mass_new[layer, of, :, by].mean(0)
    return mass


def text(
    cache: SegmentCache, seq: int, evictable: Mask, limit: int | None
) -> Iterator[tuple[Layers, Ints, Ints, Floats]]:
    """Slots, positions and attention [l, Hkv, n] of the rows of `evictable` tokens [tokens so far].

    Slots are ascending; attention is what all text rows have given each so far.

    Every head of a layer holds as many of them, at slots of its own. Layers with at most `limit`
    are left out.
    """
    lengths = zip(cache.image_rows[:, seq].tolist(), cache.active_len[:, seq].tolist(), strict=True)
    for first, last in _seen(cache, list(lengths)):
        # Core image rows, where `moves.place` has put them first, are not looked at.
        begin, end = int(cache.image_rows[first, seq]), int(cache.active_len[first, seq])
        positions = cache.positions[first:last, seq, :, begin:end]
        count = int(np.count_nonzero(evictable.take(positions[0, 0])))
        if limit is not None and count <= limit:
            continue
        found = evictable.take(positions)
        shape = (*positions.shape[:2], count)
        slots = begin + np.flatnonzero(found) % max(1, end - begin)
        mass = cache.mass[first:last, seq, :, begin:end][found]
        yield (
            (first, last),
            slots.reshape(shape),
            positions[found].reshape(shape),
            mass.reshape(shape),
        )


def any_rows(cache: SegmentCache, seq: int) -> Iterator[tuple[int, Ints, Ints]]:
    """Slots and positions [Hkv, n] of all active rows of each layer, by position.

    Before them the layer, counted from the segment's first that keeps rows. Layers with a window
    are left out.
    """
    for layer, length in enumerate(cache.active_len[:, seq].tolist()):
        if cache.windows[layer] is None:
            positions = cache.positions[layer, seq, :, :length]
            slots = positions.argsort(1)
            yield layer, slots, np.take_along_axis(positions, slots, 1)


def keys(cache: SegmentCache, seq: int, layer: int, slots: Ints) -> Floats:
    """Keys of active rows of a layer, [Hkv, n, D], at `slots` [Hkv, n]."""
    found = np.empty((*slots.shape, cache.active[0][layer].shape[3]), np.float32)
    for head, where in enumerate(slots):
        found[head] = stored(cache, 0, layer, seq, head, where)
    return found


def stored(cache: SegmentCache, plane: int, layer: int, seq: int, head: int, slots: Ints) -> Floats:
    """What a KV head's active rows at `slots` [n] hold, [n, D], whether as numbers or as codes.

    Args:
        plane: 0, keys; 1, values.
    """
    found: Floats = cache.active[plane][layer][seq, head].take(slots, 0)
    found = found.astype(np.float32, copy=False)
    if is_scaled(cache):
        found *= cache.active[plane + 2][layer][seq, head].take(slots, 0)
    return found


def is_scaled(cache: SegmentCache) -> bool:
    """Whether active rows are codes, with their scales in two more planes."""
    return len(cache.active) > 2


def add_by_position(
    found: Floats, cache: SegmentCache, seq: int, masses: Masses, new: Ints
) -> None:
    """Add a run's second mass to what each token has received, [L, Hkv, tokens so far].

    Args:
        new: [S], positions of the run's new rows, which the cache does not hold yet.
    """
    heads = np.arange(found.shape[1])[:, None]
    for layer, here in enumerate(found):
        length = int(cache.active_len[layer, seq])
        at = cache.positions[layer, seq, :, :length]
        here[heads, at] += masses.mass_active[layer][0, :, TEXT, :length]
        here[:, new] += masses.mass_new[layer, 0, :, TEXT]


def _seen(cache: SegmentCache, counts: Sequence[object]) -> Iterator[Layers]:
    """Runs of decoder layers without a window that follow each other, with equal `counts`."""
    numbers = enumerate(cache.numbers)
    sorts = zip((number - index for index, number in numbers), cache.windows, counts, strict=True)
    return ((first, last) for first, last in alike(list(sorts)) if cache.windows[first] is None)
