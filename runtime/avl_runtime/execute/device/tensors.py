"""What a segment reads and writes, as tensors on the device by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from avl_runtime.execute.device.memory import Buffer, Memory, aligned
from avl_runtime.execute.device.rows import Place, Rows
from avl_runtime.package.manifest import Dims, Segment

Floats = NDArray[np.float32]
Use = Literal["step", "refresh", "prompt"]  # what a run of a segment is for
WEIGHTINGS = 2  # of a mass: the last query row, and all text rows
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
    """Attention [L, B, Hkv, 2, rows] on the host; see `kv.sight.Masses`."""

    mass_active: Floats
    mass_parked: Floats
    mass_new: Floats


class Outputs:
    """Memory for what a segment writes: S new rows, mass on A active and up to P parked rows."""

    def __init__(
        self,
        place: Place,
        segment: Segment,
        dims: Dims,
        sizes: tuple[int, int, int, int],
        *,
        last: bool,
    ) -> None:
        """
        Args:
            sizes: B, S, A and P.
            last: whether the segment yields logits, and not hidden states.

        Raises:
            OutOfDeviceMemoryError: they do not fit.
        """
        batch, rows, active, parked = sizes
        self._layers = range(segment.first_layer, segment.last_layer)
        count, heads, item = len(self._layers), place.heads, place.element.stored.itemsize
        self.sizes = sizes
        self.name = "logits" if last else "hidden_out"
        self.shape = (batch, 1, dims.vocab_size) if last else (batch, rows, dims.hidden_size)
        self._row_shape = (batch, heads, rows, place.head_dim)
        self._mass_shapes = {
            name: (batch, heads, WEIGHTINGS, size)
            for name, size in (("active", active), ("parked", parked), ("new", rows))
        }

        def allocate(shape: tuple[int, ...], itemsize: int) -> Buffer:
            return place.memory.allocate("scratch", int(np.prod(shape)) * itemsize)

        self._memory = place.memory
        self.output = allocate(self.shape, item)
        self._new = [[allocate(self._row_shape, item) for _ in self._layers] for _ in "kv"]
        self._mass = {
            name: place.memory.allocate("scratch", count * _mass_bytes(shape))
            for name, shape in self._mass_shapes.items()
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

    def mass(self, name: str) -> list[int]:
        """Addresses of the mass on "active", "parked" or "new" rows for each layer."""
        start = self._mass[name].address
        size = _mass_bytes(self._mass_shapes[name])
        return [start + index * size for index in range(len(self._layers))]

    def tensors(self, parked_rows: int) -> dict[str, Tensor]:
        """All outputs of a run that reads caches with room for so many parked rows, by name."""
        found = {self.name: self.output_tensor}
        shapes = dict(self._mass_shapes)
        shapes["parked"] = (*shapes["parked"][:-1], parked_rows)
        for name, shape in shapes.items():
            for layer, address in zip(self._layers, self.mass(name), strict=True):
                found[f"mass_{name}.{layer}"] = Tensor(address, shape)
        for name, addresses in (("k_new", self.k_new), ("v_new", self.v_new)):
            for layer, address in zip(self._layers, addresses, strict=True):
                found[f"{name}.{layer}"] = Tensor(address, self._row_shape)
        return found

    def download_masses(self) -> Masses:
        """Queue copies of all masses; they are there after the next `synchronize`."""
        return Masses(*(self._download(name) for name in ("active", "parked", "new")))

    def _download(self, name: str) -> Floats:
        shape = self._mass_shapes[name]
        padded = np.empty((len(self._layers), _mass_bytes(shape) // FLOAT.itemsize), np.float32)
        self._memory.device.download(padded, self._mass[name].address)
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
        found[f"k_active.{layer}"] = Tensor(mine.k_active.address, active)
        found[f"v_active.{layer}"] = Tensor(mine.v_active.address, active)
        found[f"active_len.{layer}"] = Tensor(active_len[number], (batch,))
        if parked_len is None:
            found[f"k_parked.{layer}"] = found[f"v_parked.{layer}"] = nothing.kept
            found[f"parked_len.{layer}"] = nothing.length
        else:
            found[f"k_parked.{layer}"] = Tensor(mine.k_parked.address, parked)
            found[f"v_parked.{layer}"] = Tensor(mine.v_parked.address, parked)
            found[f"parked_len.{layer}"] = Tensor(parked_len[number], (batch,))
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
