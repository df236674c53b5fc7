"""Book-keeping of a cache on the device, where selections keep it during decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_runtime.execute.device.cache import LABEL, DeviceCache

_POSITION, _MASS = np.dtype(np.int64), np.dtype(np.float32)


class DeviceBooks:
    """`positions` and `mass` [L, B, Hkv, A], int64 and float32, `parked_positions` [L, B, P] int64.

    From when they are made the device's are the valid ones; `recall` brings them up to date on the
    host. Lengths are the host's all the time: it knows what every step adds and drops.
    """

    def __init__(self, cache: DeviceCache) -> None:
        self._cache = cache
        self._device = cache.place.memory.device
        layers, batch, heads = cache.layers, cache.batch, cache.place.heads
        self._active = (layers, batch, heads, cache.active_room)
        self._parked = (layers, batch, cache.parked_room)
        allocate = cache.place.memory.allocate
        self._positions = allocate("scratch", int(np.prod(self._active)) * _POSITION.itemsize)
        self._mass = allocate("scratch", int(np.prod(self._active)) * _MASS.itemsize)
        self._parked_positions = allocate("scratch", int(np.prod(self._parked)) * 8)
        for buffer, array, shape in (
            (self._positions, cache.positions, self._active),
            (self._mass, cache.mass, self._active),
            (self._parked_positions, cache.parked_positions, self._parked),
        ):
            self._device.upload(buffer.address, _padded(array, shape))

    def positions(self, layer: int) -> int:
        """Address of a layer's [B, Hkv, A]."""
        return self._positions.address + layer * self._layer_rows * _POSITION.itemsize

    def mass(self, layer: int) -> int:
        """Address of a layer's [B, Hkv, A]."""
        return self._mass.address + layer * self._layer_rows * _MASS.itemsize

    def parked_positions(self, layer: int) -> int:
        """Address of a layer's [B, P]."""
        size = self._parked[1] * self._parked[2] * _POSITION.itemsize
        return self._parked_positions.address + layer * size

    def queue_row(self, sequence: int, slots: Sequence[int], position: int) -> None:
        """Queue writing what a new row of one sequence is, with no mass yet.

        Args:
            slots: of the row in each layer.
        """
        layers, batch, heads, room = self._active
        # In a batch other sequences' rows lie between those of two layers.
        together = batch == 1 and len(set(slots)) == 1
        runs = [(0, layers * heads)] if together else [(layer, heads) for layer in range(layers)]
        for layer, rows in runs:
            slot_of = sequence * heads * room + slots[layer]
            for start, item, value in (
                (self.positions(layer), _POSITION.itemsize, position),
                (self.mass(layer), _MASS.itemsize, 0),
            ):
                # The upper half of a position is zero and stays so.
                self._device.write_column(start + slot_of * item, room * item, value, rows)

    def recall(self) -> None:
        """Bring the cache's book-keeping up to date; waits for the device."""
        cache = self._cache
        layers, batch, heads, room = self._active
        cache.positions = np.empty(self._active, np.int64)
        cache.mass = np.empty(self._active, np.float32)
        cache.parked_positions = np.empty(self._parked, np.int64)
        self._device.download(cache.positions, self._positions.address)
        self._device.download(cache.mass, self._mass.address)
        self._device.download(cache.parked_positions, self._parked_positions.address)
        self._device.synchronize()
        for name, rows in (("active", room), ("parked", self._parked[2])):
            shape = (batch, heads, rows, 1)
            planes = tuple([np.zeros(shape, LABEL) for _ in range(layers)] for _ in "kv")
            setattr(cache, name, planes)
        cache.relabel()

    @property
    def _layer_rows(self) -> int:
        return int(np.prod(self._active[1:]))


def _padded(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """`array` with zeros up to `shape`, or cut where it has more room than that."""
    padded = np.zeros(shape, array.dtype)
    rows = min(array.shape[-1], shape[-1])
    padded[..., :rows] = array[..., :rows]
    return padded
