"""Book-keeping of a cache on the device, where selections keep it during decode."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_runtime.execute.device import labels
from avl_runtime.execute.device.cache import DeviceCache

_POSITION, _MASS = np.dtype(np.int64), np.dtype(np.float32)


class DeviceBooks:
    """`positions` and `mass` [B, Hkv, A] of each layer, int64 and float32, and `parked_positions`
    [B, P] int64, where A and P are the layer's rooms; layers lie behind each other.

    From when they are made the device's are the valid ones; `recall` brings them up to date on the
    host. Lengths are the host's all the time: it knows what every step adds and drops.
    """

    def __init__(self, cache: DeviceCache) -> None:
        self._cache = cache
        self._device = cache.place.memory.device
        batch, heads = cache.batch, cache.place.heads
        self._active = [(batch, heads, room) for room in cache.active_rooms]
        self._parked = [(batch, room) for room in cache.parked_rooms]
        self._alike = len(set(self._active)) == 1
        # The first row of each layer, and the number of all.
        self._starts = list(accumulate(map(_rows, self._active), initial=0))
        self._parked_starts = list(accumulate(map(_rows, self._parked), initial=0))
        allocate = cache.place.memory.allocate
        self._positions = allocate("scratch", self._starts[-1] * _POSITION.itemsize)
        self._mass = allocate("scratch", self._starts[-1] * _MASS.itemsize)
        self._parked_positions = allocate("scratch", self._parked_starts[-1] * _POSITION.itemsize)
        for buffer, array, shapes in (
            (self._positions, cache.positions, self._active),
            (self._mass, cache.mass, self._active),
            (self._parked_positions, cache.parked_positions, self._parked),
        ):
            self._device.upload(buffer.address, _packed(array, shapes))

    def positions(self, layer: int) -> int:
        """Address of a layer's [B, Hkv, A]."""
        return self._positions.address + self._starts[layer] * _POSITION.itemsize

    def mass(self, layer: int) -> int:
        """Address of a layer's [B, Hkv, A]."""
        return self._mass.address + self._starts[layer] * _MASS.itemsize

    def parked_positions(self, layer: int) -> int:
        """Address of a layer's [B, P]."""
        return self._parked_positions.address + self._parked_starts[layer] * _POSITION.itemsize

    def queue_row(self, sequence: int, slots: Sequence[int], position: int) -> None:
        """Queue writing what a new row of one sequence is, with no mass yet.

        Args:
            slots: of the row in each layer.
        """
        layers = len(slots)
        batch, heads, _ = self._active[0]
        # In a batch other sequences' rows lie between those of two layers.
        together = batch == 1 and self._alike and len(set(slots)) == 1
        runs = [(0, layers * heads)] if together else [(layer, heads) for layer in range(layers)]
        for layer, rows in runs:
            room = self._active[layer][2]
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
        positions = np.empty(self._starts[-1], np.int64)
        mass = np.empty(self._starts[-1], np.float32)
        parked_positions = np.empty(self._parked_starts[-1], np.int64)
        self._device.download(positions, self._positions.address)
        self._device.download(mass, self._mass.address)
        self._device.download(parked_positions, self._parked_positions.address)
        self._device.synchronize()
        cache.positions = _unpacked(positions, self._active)
        cache.mass = _unpacked(mass, self._active)
        cache.parked_positions = _unpacked(parked_positions, self._parked)
        batch, heads, _ = self._active[0]
        cache.active, cache.parked = (
            labels.blank(batch, heads, [shape[-1] for shape in shapes])
            for shapes in (self._active, self._parked)
        )
        cache.relabel()


def _rows(shape: Sequence[int]) -> int:
    return int(np.prod(shape))


def _packed(array: NDArray[Any], shapes: Sequence[tuple[int, ...]]) -> NDArray[Any]:
    """Layers [L, ..., rows] behind each other, each padded with zeros or cut to its shape."""
    found = []
    for layer, shape in zip(array, shapes, strict=True):
        padded = np.zeros(shape, array.dtype)
        rows = min(layer.shape[-1], shape[-1])
        padded[..., :rows] = layer[..., :rows]
        found.append(padded.ravel())
    return np.concatenate(found)


def _unpacked(packed: NDArray[Any], shapes: Sequence[tuple[int, ...]]) -> NDArray[Any]:
    """What `_packed` has packed, [L, ..., rows], zeros behind a layer's own rows."""
    most = max(shape[-1] for shape in shapes)
    found = np.zeros((len(shapes), *shapes[0][:-1], most), packed.dtype)
    begin = 0
    for layer, shape in zip(found, shapes, strict=True):
        end = begin + _rows(shape)
        layer[..., : shape[-1]] = packed[begin:end].reshape(shape)
        begin = end
    return found
