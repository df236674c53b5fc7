"""Device memory with its owners: freed with them, and counted by what it is for."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from avl_runtime.execute.device.protocol import Device

Kind = Literal["weights", "active", "parked", "scratch"]
ALIGNMENT = 256  # bytes; what TensorRT asks of every address


class Buffer:
    """Memory that is given back when nothing refers to it any more."""

    __slots__ = ("__weakref__", "address", "nbytes")

    def __init__(self, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes


class Part(Buffer):
    """A part of another buffer, which lives as long."""

    __slots__ = ("_whole",)

    def __init__(self, whole: Buffer, start: int, nbytes: int) -> None:
        super().__init__(whole.address + start, nbytes)
        self._whole = whole


class Memory:
    """A device's memory, and the host's that is pinned for parked rows.

    Attributes:
        used: live bytes by kind, as they were asked for.
        peak: the most that all kinds together were.
        parked_on_host: live bytes of the host's.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.used: Counter[str] = Counter()
        self.peak = 0
        self.parked_on_host = 0

    def allocate(self, kind: Kind, nbytes: int, *, zero: bool = False) -> Buffer:
        """New memory, of at least one byte.

        Raises:
            OutOfDeviceMemoryError: it does not fit.
        """
        nbytes = max(1, nbytes)
        address = self.device.allocate(nbytes)
        buffer = Buffer(address, nbytes)
        self.count(kind, nbytes)
        given_back = weakref.finalize(buffer, self._release, kind, address, nbytes)
        given_back.atexit = False  # the driver frees what is left, and may be gone by then
        if zero:
            self.device.zero(address, nbytes)
        return buffer

    def count(self, kind: Kind, nbytes: int) -> None:
        """Count bytes that somebody else allocated."""
        self.used[kind] += nbytes
        self.peak = max(self.peak, self.used.total())

    def park(self, nbytes: int) -> NDArray[np.uint8]:
        """Host memory for parked rows."""
        array = self.device.pinned(nbytes)
        self.parked_on_host += nbytes
        weakref.finalize(array, self._release_host, nbytes).atexit = False
        return array

    def _release_host(self, nbytes: int) -> None:
        self.parked_on_host -= nbytes

    def _release(self, kind: Kind, address: int, nbytes: int) -> None:
        self.used[kind] -= nbytes
        self.device.free(address)


def aligned(nbytes: int) -> int:
    """`nbytes` and what is missing to the next address that anything may start at."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
