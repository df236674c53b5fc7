"""What the runtime asks of a device: memory, copies, the packaged kernels, and recorded work.

Addresses are integers. Copies, launches and replays are queued on the device's one stream and are
done in order; the host sees what they wrote after `synchronize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError


class DeviceError(AvlError):
    """A device cannot do what was asked."""


class OutOfDeviceMemoryError(DeviceError):
    """An allocation does not fit.

    Attributes:
        wanted, free, total: bytes asked for, left, and of the device in all.
    """

    def __init__(
        self,
        wanted: int,
        free: int,
        total: int,
        what: str = "",
        advice: str = "end other programs that use it, or use fewer or smaller pictures",
    ) -> None:
        super().__init__(
            f"expected {mebibytes(wanted)} of device memory{what}, found {mebibytes(free)} free of "
            f"{mebibytes(total)}; {advice}, or --backend ort-cpu"
        )
        self.wanted, self.free, self.total = wanted, free, total


class Graph(Protocol):
    """Work that was recorded."""

    def replay(self) -> None:
        """Queue the work again, reading and writing the same addresses."""
        ...


class Device(Protocol):
    """One device.

    Attributes:
        name: for people.
        stream: handle of the stream that everything is queued on.
    """

    name: str
    stream: int

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all."""
        ...

    def allocate(self, nbytes: int) -> int:
        """The address of new memory, whose content is undefined.

        Raises:
            OutOfDeviceMemoryError: it does not fit.
        """
        ...

    def free(self, address: int) -> None:
        """Give memory back once queued work is done with it."""
        ...

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Host memory that copies read and write while the host goes on; freed with the array."""
        ...

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Queue a copy of a C-contiguous array.

        A pinned array is read when its turn comes, and must not change before; any other may.
        """
        ...

    def download(self, array: NDArray[Any], address: int) -> None:
        """Queue a copy into a C-contiguous array, to be read after `synchronize`."""
        ...

    def copy(self, to: int, origin: int, nbytes: int) -> None:
        """Queue a copy inside the device."""
        ...

    def zero(self, address: int, nbytes: int) -> None:
        """Queue writing zeros."""
        ...

    def write_column(self, address: int, pitch: int, value: int, rows: int) -> None:
        """Queue writing the 32-bit `value` at `rows` addresses, `pitch` bytes apart."""
        ...

    def launch(self, name: str, values: Mapping[str, int]) -> None:
        """Queue the packaged kernel `name`.

        Args:
            values: addresses and sizes by the names of its arguments and of its grid.
        """
        ...

    def record(self, work: Callable[[], None]) -> Graph:
        """Record what `work` queues, instead of doing it. It must not allocate or synchronise."""
        ...

    def synchronize(self) -> None:
        """Wait until all that was queued is done."""
        ...


def mebibytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / (1 << 20):.1f} MiB"
