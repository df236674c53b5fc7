"""What a segment reads and writes, as tensors on the device by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from avl_plugins import graph_io
from avl_plugins.graph_io import (
    ACTIVE,
    ANSWERED,
    BATCH,
    CACHED,
    MADE,
    MASSES,
    MOST_WEIGHTINGS,
    NEW,
    PARKED,
    WEIGHTINGS,
    named,
)
from avl_runtime.execute.device.memory import Buffer, Memory, aligned
from avl_runtime.execute.device.rows import Place, Rows
from avl_runtime.kv.by_layer import ByLayer, Floats, alike

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
    """Memory for what a segment writes: S new rows, mass on active and on parked rows."""

    def __init__(
        self,
        place: Place,
        graph: graph_io.Segment,
        sizes: tuple[int, int],
        active: Sequence[int],
        parked: Sequence[int],
    ) -> None:
        """
        Args:
            sizes: B and S.
            active, parked: A and the most P of each layer.

        Raises:
            OutOfDeviceMemoryError: they do not fit.
        """
        batch, rows = sizes
        known = {BATCH: batch, NEW: rows, ANSWERED: 1, WEIGHTINGS: MOST_WEIGHTINGS}
        for kind, rooms in ((ACTIVE, active), (PARKED, parked)):
            known |= {
                kind.rows(layer): room for layer, room in zip(graph.layers, rooms, strict=True)
            }
        result, *of_layers = graph.outputs()
        shapes = {value.name: value.sized(known) for value in of_layers}
        self._layers = graph.layers
        item = place.element.stored.itemsize
        self.name, self.shape = result.name, result.sized(known)
        self._row_shape = shapes[named(MADE.keys, self._layers[0])]

        def allocate(shape: tuple[int, ...]) -> Buffer:
            return place.memory.allocate("scratch", int(np.prod(shape)) * item)

        self.output = allocate(self.shape)
        self._new = [[allocate(self._row_shape) for _ in self._layers] for _ in "kv"]
        self._mass = {
            kind: _LayerMasses(place.memory, [shapes[named(kind, layer)] for layer in self._layers])
            for kind in MASSES
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
        return self._mass[kind].addresses

    def tensors(self, parked_rows: Sequence[int]) -> dict[str, Tensor]:
        """All outputs of a run, by name.

        Args:
            parked_rows: those that each layer is given room for, whether it has any or not.
        """
        found = {self.name: self.output_tensor}
        for kind, masses in self._mass.items():
            for index, layer in enumerate(self._layers):
                shape = masses.shapes[index]
                if kind == PARKED.mass:
                    shape = (*shape[:-1], parked_rows[index])
                found[named(kind, layer)] = Tensor(masses.addresses[index], shape)
        for kind, addresses in ((MADE.keys, self.k_new), (MADE.values, self.v_new)):
            for layer, address in zip(self._layers, addresses, strict=True):
                found[named(kind, layer)] = Tensor(address, self._row_shape)
        return found

    def download_masses(self) -> Masses:
        """Queue copies of all masses; they are there after the next `synchronize`."""
        active, parked = (ByLayer(self._mass[place.mass].download()) for place in CACHED)
        (made,) = self._mass[MADE.mass].download()  # every layer has as many new rows
        return Masses(active, parked, made)


class _LayerMasses:
    """A kind of mass [B, Hkv, R, rows] of each layer; layers lie behind each other.

    Attributes:
        addresses: where each begins, as aligned as the first.
    """

    def __init__(self, memory: Memory, shapes: Sequence[tuple[int, ...]]) -> None:
        self.shapes = list(shapes)
        self._memory = memory
        *self._starts, self._end = accumulate(map(_mass_bytes, shapes), initial=0)
        self._buffer = memory.allocate("scratch", self._end)
        self.addresses = [self._buffer.address + start for start in self._starts]

    def download(self) -> Iterator[Floats]:
        """Queue a copy; yields arrays [l, B, Hkv, R, rows] of layers that are alike."""
        whole = np.empty(self._end // FLOAT.itemsize, np.float32)
        self._memory.device.download(whole, self._buffer.address)
        for first, last in alike(self.shapes):
            shape = self.shapes[first]
            begin = self._starts[first] // FLOAT.itemsize
            step = _mass_bytes(shape) // FLOAT.itemsize
            padded = whole[begin : begin + (last - first) * step].reshape(last - first, step)
            yield padded[:, : int(np.prod(shape))].reshape(last - first, *shape)


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
