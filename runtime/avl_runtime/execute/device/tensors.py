"""What a segment reads and writes, as tensors on the device by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from avl_plugins import graph_io
from avl_plugins.graph_io import (
    ACTIVE,
    BATCH,
    MADE,
    MASSES,
    MOST_WEIGHTINGS,
    NEW,
    PARKED,
    WEIGHTINGS,
    kind_of,
    named,
)
from avl_runtime.execute.device.memory import Buffer, Memory, aligned
from avl_runtime.execute.device.rows import Place, Rows
from avl_runtime.kv.by_layer import ByLayer, Floats

Use = Literal["step", "refresh", "prompt"]  # what a run of a segment is for
FLOAT = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An address and a shape, in the type that the graph declares for its name."""

    address: int
    shape: tuple[int, ...]


class SegmentRunner(Protocol):
    """One decoder segment, loaded."""

    def recordable(self, use: Use) -> bool:
        """Whether what the next run of this use queues can be recorded and replayed.

        Asked when there has been a run of this use with the same shapes.
        """
        ...

    def run(self, tensors: Mapping[str, Tensor], use: Use) -> None:
        """Queue a run on the device's stream.

        Args:
            tensors: inputs and outputs; cached rows as [B, Hkv, rows, D].
            use: a decode step, one that reads parked rows too, or a part of a prompt. Runs of one
                use leave the recorded runs of another as they are.
        """
        ...


@dataclass(frozen=True, slots=True)
class Masses:
    """Attention on the host; see `kv.sight.Masses`."""

    mass_active: ByLayer
    mass_parked: ByLayer
    mass_new: Floats


class Outputs:
    """Memory for what a segment writes: S new rows, mass on A active and up to P parked rows."""

    def __init__(
        self, place: Place, graph: graph_io.Segment, sizes: tuple[int, int, int, int]
    ) -> None:
        """
        Args:
            sizes: B, S, A and P.

        Raises:
            OutOfDeviceMemoryError: they do not fit.
        """
        batch, rows, active, parked = sizes
        known = {BATCH: batch, NEW: rows, WEIGHTINGS: MOST_WEIGHTINGS}
        known |= {ACTIVE.name: active, PARKED.name: parked}
        result, *of_layer = graph.outputs(graph.layers[:1])
        shapes = {kind_of(value.name): value.sized(known) for value in of_layer}
        self._layers = graph.layers
        count, item = len(self._layers), place.element.stored.itemsize
        self.sizes = sizes
        self.name, self.shape = result.name, result.sized(known)
        self._row_shape = shapes[MADE.keys]
        self._mass_shapes = {kind: shapes[kind] for kind in MASSES}

        def allocate(shape: tuple[int, ...], itemsize: int) -> Buffer:
            return place.memory.allocate("scratch", int(np.prod(shape)) * itemsize)

        self._memory = place.memory
        self.output = allocate(self.shape, item)
        self._new = [[allocate(self._row_shape, item) for _ in self._layers] for _ in "kv"]
        self._mass = {
            kind: place.memory.allocate("scratch", count * _mass_bytes(shape))
            for kind, shape in self._mass_shapes.items()
        }

    @property
    def output_tensor(self) -> Tensor:
        """[B, S, C] hidden states or [B, 1, V] logits."""
        return Tensor(self.output.address, self.shape)

    @property
    def k_new(self) -> list[int]:
        """Addresses of [B, Hkv, S, D] for each layer."""
        return [buffer.address for buffer in self._new[0]]

    @property
    def v_new(self) -> list[int]:
        """As `k_new`."""
        return [buffer.address for buffer in self._new[1]]

    def mass(self, kind: str) -> list[int]:
        """Addresses of a kind of mass, such as `mass_active`, for each layer."""
        start = self._mass[kind].address
        size = _mass_bytes(self._mass_shapes[kind])
        return [start + index * size for index in range(len(self._layers))]

    def tensors(self, parked_rows: int) -> dict[str, Tensor]:
        """All outputs of a run that reads caches with room for so many parked rows, by name."""
        found = {self.name: self.output_tensor}
        shapes = dict(self._mass_shapes)
        shapes[PARKED.mass] = (*shapes[PARKED.mass][:-1], parked_rows)
        for kind, shape in shapes.items():
            for layer, address in zip(self._layers, self.mass(kind), strict=True):
                found[named(kind, layer)] = Tensor(address, shape)
        for kind, addresses in ((MADE.keys, self.k_new), (MADE.values, self.v_new)):
            for layer, address in zip(self._layers, addresses, strict=True):
                found[named(kind, layer)] = Tensor(address, self._row_shape)
        return found

    def download_masses(self) -> Masses:
        """Queue copies of all masses; they are there after the next `synchronize`."""
        active, parked, made = map(self._download, MASSES)
        return Masses(ByLayer([active]), ByLayer([parked]), made)

    def _download(self, kind: str) -> Floats:
        shape = self._mass_shapes[kind]
        padded = np.empty((len(self._layers), _mass_bytes(shape) // FLOAT.itemsize), np.float32)
        self._memory.device.download(padded, self._mass[kind].address)
        return padded[:, : int(np.prod(shape))].reshape(len(self._layers), *shape)


def _mass_bytes(shape: tuple[int, ...]) -> int:
    """Of one layer's mass, so that the next one's is aligned as well."""
    return aligned(int(np.prod(shape)) * FLOAT.itemsize)


class Nothing:
    """Parked rows that are not there: one block of zeros, of length 0."""

    def __init__(self, place: Place, batch: int) -> None:
        self.rows = place.room(1)
        shape = (batch, place.heads, self.rows, place.head_dim)
        size = place.nbytes(batch, self.rows)
        self._rows = place.memory.allocate("scratch", size, zero=True)
        self._length = place.memory.allocate("scratch", 8 * batch, zero=True)
        self.kept = Tensor(self._rows.address, shape)
        self.length = Tensor(self._length.address, (batch,))


def cache_inputs(
    place: Place,
    rows: Sequence[Rows],
    batch: int,
    layers: Sequence[int],
    active_len: Sequence[int],
    parked_len: Sequence[int] | None,
    nothing: Nothing,
) -> dict[str, Tensor]:
    """What a segment reads of its cache, by name.

    Args:
        rows: of each of `layers`.
        active_len, parked_len: addresses of [B] int64 for each layer; None leaves parked rows out.
    """
    found = {}
    for number, (layer, mine) in enumerate(zip(layers, rows, strict=True)):
        active = (batch, place.heads, mine.active, place.head_dim)
        parked = (batch, place.heads, mine.parked, place.head_dim)
        found[named(ACTIVE.keys, layer)] = Tensor(mine.k_active.address, active)
        found[named(ACTIVE.values, layer)] = Tensor(mine.v_active.address, active)
        found[named(ACTIVE.length, layer)] = Tensor(active_len[number], (batch,))
        if parked_len is None:
            for kind in (PARKED.keys, PARKED.values):
                found[named(kind, layer)] = nothing.kept
            found[named(PARKED.length, layer)] = nothing.length
        else:
            found[named(PARKED.keys, layer)] = Tensor(mine.k_parked.address, parked)
            found[named(PARKED.values, layer)] = Tensor(mine.v_parked.address, parked)
            found[named(PARKED.length, layer)] = Tensor(parked_len[number], (batch,))
    return found


class Upload:
    """Small arrays that lie behind each other in one buffer, filled from the host in one copy.

    The host's side is pinned: it must not be written while a copy may still read it.
    """

    def __init__(self, memory: Memory, fields: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        """
        Args:
            fields: shape and type by name.
        """
        starts, end = {}, 0
        for name, (shape, dtype) in fields.items():
            starts[name] = end
            end += aligned(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self._device = memory.device
        self._buffer = memory.allocate("scratch", end)
        self._pinned = memory.device.pinned(max(1, end))
        self.host: dict[str, NDArray[Any]] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, (shape, dtype) in fields.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            part = self._pinned[starts[name] : starts[name] + size]
            self.host[name] = part.view(dtype).reshape(shape)
            self.host[name][...] = 0
            self.tensors[name] = Tensor(self._buffer.address + starts[name], shape)

    def queue(self) -> None:
        """Queue the copy of everything."""
        self._device.upload(self._buffer.address, self._pinned)

    def address(self, name: str) -> int:
        """Of one array on the device."""
        return self.tensors[name].address
