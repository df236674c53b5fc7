"""A package's graphs on a backend as plain functions of arrays by name, for comparisons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError
from avl_plugins.graph_io import (
    ACTIVE,
    DEEPSTACK,
    HIDDEN,
    MADE,
    MASSES,
    PARKED,
    POSITIONS,
    SLIDING,
    WEIGHTS,
    is_cached_rows,
    named,
)
from avl_plugins.schema import COMPUTED
from avl_runtime.execute import HostBackend, load_backend
from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.execute.device.tensors import Tensor, Use
from avl_runtime.execute.protocol import BackendError
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.kv.growth import resized
from avl_runtime.package.manifest import Manifest
from avl_runtime.package.package import Package
from avl_runtime.vision import Kind

Array = NDArray[Any]


class Runner(ABC):
    """Graphs of one package, whose failures are one sentence.

    Attributes:
        dtype: of the rows that they are given.
        most_rows: new rows that a segment takes at once, None for any number.
    """

    def __init__(
        self, name: str, manifest: Manifest, dtype: np.dtype[Any], most_rows: int | None = None
    ) -> None:
        self.name, self.manifest = name, manifest
        self.dtype, self.most_rows = dtype, most_rows

    def encode(self, kind: Kind, inputs: Mapping[str, Array]) -> list[Array]:
        """Outputs of an encoder, as `Backend.encode`."""
        with self._running(f"the {kind} encoder"):
            return self._encode(kind, inputs)

    def run(self, segment: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs of a decoder segment by name, copies, from all of its inputs by name."""
        with self._running(self.manifest.segments[segment].file):
            return self._run(segment, feeds)

    @abstractmethod
    def _encode(self, kind: Kind, inputs: Mapping[str, Array]) -> list[Array]: ...

    @abstractmethod
    def _run(self, segment: int, feeds: Mapping[str, Array]) -> dict[str, Array]: ...

    @contextmanager
    def _running(self, graph: str) -> Iterator[None]:
        try:
            yield
        except AvlError:
            raise
        # The exceptions of ONNX Runtime and TensorRT share no base but Exception.
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BackendError(
                f"{self.name}: expected {graph} to run, found: {reason}; look at the graph's "
                "layers with avl-check --layers, and at this machine with avl-doctor"
            ) from error


class HostRunner(Runner):
    """A backend whose segments read and write NumPy arrays."""

    def __init__(self, backend: HostBackend, manifest: Manifest) -> None:
        super().__init__(backend.name, manifest, backend.dtype)
        self._backend = backend

    def _encode(self, kind: Kind, inputs: Mapping[str, Array]) -> list[Array]:
        return self._backend.encode(kind, inputs)

    def _run(self, segment: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
        graph = self.manifest.graph_of(self.manifest.segments[segment])
        dims, layers = self.manifest.dims, graph.row_layers
        bound = self._backend.bind(
            segment,
            feeds[HIDDEN],
            feeds[POSITIONS],
            feeds[WEIGHTS],
            [feeds[named(DEEPSTACK, layer)] for layer in graph.deepstack],
            reach={name: feeds[name] for name in graph.reach},
        )
        planes = [COMPUTED.planes(dims.head_size(layer), self.dtype) for layer in layers]
        states = [feeds[held.name] for held, _ in graph.states()]
        cache = SegmentCache(1, dims.num_kv_heads, planes, states=states)
        for index, layer in enumerate(layers):
            if graph.kind(layer) is SLIDING:
                places = feeds[named(ACTIVE.positions, layer)]
                room = max(places.shape[1], cache.positions.shape[3])
                cache.positions = resized(cache.positions, 3, cache.positions.shape[3], room)
                cache.positions[index, :, :, : places.shape[1]] = places
        for kind, where in (("active", ACTIVE), ("parked", PARKED)):
            rows = [[feeds[named(name, i)] for i in layers] for name in where.planes(COMPUTED)]
            setattr(cache, kind, tuple(rows))
            lengths = np.stack([feeds[named(where.length, layer)] for layer in layers])
            setattr(cache, f"{kind}_len", lengths)
        bound.run(cache, cache.parked_len)
        found = {graph.result: bound.output.copy()}
        made = dict(zip(MADE.planes(COMPUTED), bound.new, strict=True))
        made |= {kind: getattr(bound, kind) for kind in MASSES}
        for index, layer in enumerate(layers):
            for kind in graph.kind(layer).makes:
                found[named(kind, layer)] = made[kind][index].copy()
        names = (value.name for _, value in graph.states())
        return found | dict(zip(names, bound.states, strict=True))


class DeviceRunner(Runner):
    """A backend whose segments read and write memory of a device, which is filled for each run."""

    def __init__(self, backend: DeviceBackend) -> None:
        rows = backend.limits.prompt_rows
        super().__init__(backend.name, backend.manifest, backend.dtype, rows)
        self._backend = backend

    def _encode(self, kind: Kind, inputs: Mapping[str, Array]) -> list[Array]:
        return self._backend.encode(kind, inputs)

    def _run(self, segment: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
        backend = self._backend
        element, place, memory = backend.element, backend.place, backend.memory
        graph = backend.manifest.graph_of(backend.manifest.segments[segment])
        arrays = {}
        for value in graph.inputs():
            whole = feeds[value.name]
            if is_cached_rows(value.name):
                whole = _padded(whole, place.room(whole.shape[2]))
            arrays[value.name] = element.encode(whole) if value.dtype == "T" else whole
        sizes = graph.sizes({name: array.shape for name, array in arrays.items()})
        rounded = {value.name for value in graph.outputs() if value.dtype == "T"}
        found = {
            value.name: np.empty(
                value.sized(sizes), element.stored if value.name in rounded else np.float32
            )
            for value in graph.outputs()
        }
        # Buffers live until the run is over.
        buffers = {n: memory.allocate("scratch", a.nbytes) for n, a in (arrays | found).items()}
        for name, array in arrays.items():
            memory.device.upload(buffers[name].address, np.ascontiguousarray(array))
        parked = feeds[named(PARKED.length, graph.first)].any()
        use: Use = "prompt" if feeds[HIDDEN].shape[1] > 1 else "refresh" if parked else "step"
        tensors = {n: Tensor(buffers[n].address, a.shape) for n, a in (arrays | found).items()}
        backend.segments[segment].run(tensors, use)
        for name, array in found.items():
            memory.device.download(array, buffers[name].address)
        memory.device.synchronize()
        return {n: element.decode(a) if n in rounded else a for n, a in found.items()}


def _padded(array: Array, rows: int) -> Array:
    """Cached rows [B, heads, n, width] and zeros behind them."""
    more = rows - array.shape[2]
    return np.pad(array, ((0, 0), (0, 0), (0, more), (0, 0)))


def load_runner(name: str, package: Package) -> Runner:
    """The graphs of `package` on the backend called `name`.

    Raises:
        BackendError: that backend cannot run the package on this machine.
    """
    backend = load_backend(name, package, None)
    if isinstance(backend, DeviceBackend):
        return DeviceRunner(backend)
    return HostRunner(backend, package.manifest)
