"""Labels: which slot a row of a device's cache is in, as `cache` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avl_runtime.execute.device.update import NOWHERE
from avl_runtime.kv.cache import Ints, Planes

LABEL = np.dtype(np.int32)


def blank(batch: int, heads: int, rooms: Sequence[int]) -> Planes:
    """Planes K and V with room for so many labels in each layer."""
    return tuple([np.zeros((batch, heads, room, 1), LABEL) for room in rooms] for _ in "kv")


def number(planes: Planes, *, parked: bool) -> None:
    """Have every label be its own slot's: 0, 1, ... of active rows, -1, -2, ... of parked ones."""
    for plane in planes:
        for labels in plane:
            slots = np.arange(labels.shape[2], dtype=LABEL)
            labels[..., 0] = -1 - slots if parked else slots


def of_layers(numbers: ArrayLike) -> Ints:
    """Numbers [L] beside [L, B, Hkv, rows]."""
    return np.asarray(numbers, np.int64)[:, None, None, None]


def together(plane: Sequence[NDArray[Any]]) -> tuple[Ints, NDArray[np.bool_]]:
    """Labels of active slots [L, B, Hkv, slots], and which slots hold another row than their own.

    A slot that a layer has no label for holds its own.
    """
    most = max(labels.shape[2] for labels in plane)
    found = np.empty((len(plane), *plane[0].shape[:2], most), np.int64)
    found[...] = slots = np.arange(most)
    for layer, labels in zip(found, plane, strict=True):
        layer[..., : labels.shape[2]] = labels[..., 0]
    return found, found != slots


def live(labels: NDArray[Any], lengths: Sequence[int]) -> Ints:
    """Labels [B, Hkv, n] of as many rows as the longest sequence has, 0 behind the others'.

    Args:
        labels: [B, Hkv, slots] of a layer.
        lengths: of each sequence.
    """
    most = max(lengths)
    alive = np.arange(most) < np.array(lengths)[:, None, None]
    return np.where(alive, labels[..., :most], 0).astype(np.int64)


def moves(labels: Ints, changed: NDArray[np.bool_], rooms: Sequence[int]) -> tuple[Ints, Ints]:
    """What `kernels.update` is told to bring every row to the slot that its label is in.

    Args:
        labels, changed: as of `together`.
        rooms: for active rows, of each layer.

    Returns:
        Addresses [L, B, Hkv, moves] to read at, and to write to.
    """
    count = int(changed.sum(3).max())
    slots = np.argsort(~changed, 3, kind="stable")[..., :count]
    moved = np.take_along_axis(changed, slots, 3)
    origin = np.take_along_axis(labels, slots, 3)
    if not (origin < 0).any():
        return origin, np.where(moved, slots, NOWHERE)
    # A row that came from the parked ones has left its own row there: a pair of moves.
    there = of_layers(rooms) - 1 - origin
    source = np.stack([there, slots], 4).reshape(*slots.shape[:3], -1)
    pairs = np.stack([slots, there], 4)
    return source, np.where(moved[..., None], pairs, NOWHERE).reshape(source.shape)
