"""Launches of the `update` kernel from lists that the host has made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.kernels.catalog import MOVES
from avl_runtime.execute.device.memory import Buffer, Memory

Ints = NDArray[np.int64]
LONGEST = MOVES[-1]  # moves of one launch
NOWHERE = -1


def update_kernel(moves: int) -> str:
    """The smallest kernel for lists of `moves`, at most `LONGEST`."""
    return f"update-{next(limit for limit in MOVES if limit >= moves)}"


def launch_update(
    memory: Memory,
    table: int,
    source: int,
    destination: int,
    sizes: tuple[int, int, int],
    new_rows: int,
    moves: int,
    words: int,
) -> None:
    """Launch on lists that are on the device.

    Args:
        table: address of [L, 8] int64, as `kernels.update` says.
        source, destination: addresses of [L, B, Hkv, moves] int64.
        sizes: L, B and Hkv.
        words: 16-bit words of a row.
    """
    layers, batch, heads = sizes
    memory.device.launch(
        update_kernel(moves),
        {
            "table": table,
            "source": source,
            "destination": destination,
            "S": new_rows,
            "M": moves,
            "D": words,
            "L": layers,
            "B": batch,
            "Hkv": heads,
        },
    )


class Mover:
    """Moves rows by lists from the host, through a buffer that grows as it must."""

    def __init__(self, memory: Memory, words: int) -> None:
        """
        Args:
            words: 16-bit words of a row of K or of V.
        """
        self._memory = memory
        self._words = words
        self._buffer: Buffer | None = None

    def move(
        self, table: Sequence[Sequence[int]], source: Ints, destination: Ints, new_rows: int
    ) -> None:
        """Move rows; moves that depend on each other must lie within `LONGEST` of one another.

        Args:
            table: [L, 8], as `kernels.update` says.
            source, destination: [L, B, Hkv, M] addresses.
            new_rows: S, rows of what the table calls new.
        """
        *sizes, moves = source.shape
        layers, batch, heads = sizes
        for begin in range(0, moves, LONGEST):
            part = slice(begin, begin + LONGEST)
            lists = [np.ascontiguousarray(each[..., part]) for each in (source, destination)]
            addresses = self._upload([np.array(table, np.int64), *lists])
            launch_update(
                self._memory,
                *addresses,
                (layers, batch, heads),
                new_rows,
                lists[0].shape[3],
                self._words,
            )

    def _upload(self, arrays: Sequence[NDArray[Any]]) -> tuple[int, int, int]:
        """Put arrays behind each other into the buffer, once earlier launches have read it."""
        starts, end = [], 0
        for array in arrays:
            starts.append(end)
            end += -(-array.nbytes // 16) * 16
        if self._buffer is None or self._buffer.nbytes < end:
            self._buffer = None  # given back first
            self._buffer = self._memory.allocate("scratch", end)
        addresses = [self._buffer.address + start for start in starts]
        for address, array in zip(addresses, arrays, strict=True):
            self._memory.device.upload(address, array)
        table, source, destination = addresses
        return table, source, destination
