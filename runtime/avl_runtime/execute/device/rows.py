"""K and V of a layer on a device, and moving them into memory of another size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from avl_runtime.execute.device.elements import Element
from avl_runtime.execute.device.memory import Buffer, Memory, Part, aligned
from avl_runtime.execute.device.update import NOWHERE, Mover

Ints = NDArray[np.int64]


class Staging:
    """Device memory that parked rows pass through where they lie on the host.

    Segments and conversations use it in turn, so that it is as large as the largest of them.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._whole: Buffer | None = None

    def parts(self, sizes: Sequence[int]) -> list[Buffer]:
        """Parts of so many bytes each.

        Raises:
            OutOfDeviceMemoryError: they do not fit.
        """
        *starts, end = accumulate(map(aligned, sizes), initial=0)
        if self._whole is None or self._whole.nbytes < end:
            self._whole = None  # given back first, unless somebody's steps are bound to it
            self._whole = self._memory.allocate("scratch", end)
        whole = self._whole
        return [Part(whole, start, nbytes) for start, nbytes in zip(starts, sizes, strict=True)]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rows of a segment lie and how they are moved.

    Attributes:
        row_block: room for rows comes in multiples of it.
        staging: where parked rows come to when they are read; None where they stay on the device.
    """

    memory: Memory
    mover: Mover
    element: Element
    heads: int
    head_dim: int
    row_block: int
    staging: Staging | None

    def room(self, rows: int) -> int:
        """At least one and at least `rows` rows, in whole blocks."""
        return -(-max(1, rows) // self.row_block) * self.row_block

    def nbytes(self, batch: int, rows: int) -> int:
        """Of K or of V [B, Hkv, rows, D]."""
        return batch * self.heads * rows * self.head_dim * self.element.stored.itemsize


@dataclass(frozen=True, slots=True)
class Rows:
    """K and V of a layer: active [B, Hkv, A, D], parked [B, Hkv, P, D]; A and P are rooms."""

    k_active: Buffer
    v_active: Buffer
    k_parked: Buffer
    v_parked: Buffer
    active: int
    parked: int

    @property
    def nbytes(self) -> int:
        """Of all rows, those on the host too."""
        buffers = (self.k_active, self.v_active, self.k_parked, self.v_parked)
        return sum(buffer.nbytes for buffer in buffers)

    def of(self, place: Place, seq: int) -> Rows:
        """One sequence's."""

        def part(buffer: Buffer, rows: int) -> Buffer:
            size = place.nbytes(1, rows)
            return Part(buffer, seq * size, size)

        return Rows(
            part(self.k_active, self.active),
            part(self.v_active, self.active),
            part(self.k_parked, self.parked),
            part(self.v_parked, self.parked),
            self.active,
            self.parked,
        )


@dataclass(frozen=True, slots=True)
class Parked:
    """Parked rows of a layer on the host: K and V, as bytes of pinned memory."""

    k: NDArray[np.uint8]
    v: NDArray[np.uint8]

    def fetch(self, place: Place, rows: Rows) -> None:
        """Queue copying them to where `rows` are read."""
        place.memory.device.upload(rows.k_parked.address, self.k)
        place.memory.device.upload(rows.v_parked.address, self.v)

    def stow(self, place: Place, rows: Rows) -> None:
        """Queue copying them back."""
        place.memory.device.download(self.k, rows.k_parked.address)
        place.memory.device.download(self.v, rows.v_parked.address)


def park(place: Place, rows: Rows) -> tuple[Rows, Parked | None]:
    """Bring the parked rows of one layer to the host, if they belong there.

    Where they are read is then shared with other layers, until `staged` has parted it.
    """
    if place.staging is None:
        return rows, None
    size = rows.k_parked.nbytes
    parked = Parked(place.memory.park(size), place.memory.park(size))
    parked.stow(place, rows)
    k, v = place.staging.parts([size, size])
    return replace(rows, k_parked=k, v_parked=v), parked


def staged(place: Place, layers: Sequence[Rows]) -> list[Rows]:
    """Layers whose parked rows lie on the host, each with a part of its own to be read at.

    Raises:
        OutOfDeviceMemoryError: the parts do not fit.
    """
    if place.staging is None:
        return list(layers)
    parts = iter(place.staging.parts([rows.k_parked.nbytes for rows in layers for _ in "kv"]))
    found = []
    for rows in layers:
        k, v = next(parts), next(parts)
        if (k.address, v.address) != (rows.k_parked.address, rows.v_parked.address):
            found.append(replace(rows, k_parked=k, v_parked=v))
        else:
            found.append(rows)
    return found


def new_rows(place: Place, batch: int, active: int, parked: int) -> Rows:
    """Zeros: graphs mask what is past a length, but still multiply by it.

    Raises:
        OutOfDeviceMemoryError: they do not fit.
    """
    active, parked = place.room(active), place.room(parked)
    allocate, size = place.memory.allocate, place.nbytes
    return Rows(
        allocate("active", size(batch, active), zero=True),
        allocate("active", size(batch, active), zero=True),
        allocate("parked", size(batch, parked), zero=True),
        allocate("parked", size(batch, parked), zero=True),
        active,
        parked,
    )


def gather(place: Place, to: Rows, sequence: int, origin: Rows, stay: Ints, aside: Ints) -> None:
    """Fill `to` with rows of `origin`; no memory is in both.

    Args:
        sequence: of `to`, the first that is filled.
        stay, aside: [B, Hkv, n] and [B, Hkv, m], the slots that become active and parked rows 0, 1,
            ...: i for an active, -1 - i for a parked row of `origin`.
    """
    targets = [
        buffer.address + place.nbytes(sequence, rows)
        for buffer, rows in (
            (to.k_active, to.active),
            (to.v_active, to.active),
            (to.k_parked, to.parked),
            (to.v_parked, to.parked),
        )
    ]
    labels = np.concatenate([stay, aside], 2)
    slots = [np.arange(stay.shape[2]), to.active + np.arange(aside.shape[2])]
    destination = np.broadcast_to(np.concatenate(slots), labels.shape)
    for was_parked, k, v, rows in (
        (False, origin.k_active, origin.v_active, origin.active),
        (True, origin.k_parked, origin.v_parked, origin.parked),
    ):
        taken = (labels < 0) == was_parked
        if not taken.any():
            continue
        index = -1 - labels if was_parked else labels
        # The rows of `origin` are what the kernel calls new rows: it can read them from anywhere.
        source = np.where(taken, to.active + to.parked + index, 0)
        place.mover.move(
            [[*targets, k.address, v.address, to.active, to.parked]],
            source[None],
            np.where(taken, destination, NOWHERE)[None],
            rows,
        )
