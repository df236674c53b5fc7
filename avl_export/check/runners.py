"""A package's graphs on a backend as plain functions of arrays by name, for comparisons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError
from avl_runtime.execute import HostBackend, load_backend
from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.execute.device.tensors import Tensor, Use
from avl_runtime.execute.protocol import BackendError
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.package.manifest import Manifest, Segment
from avl_runtime.package.package import Package
from avl_runtime.vision import Kind

Array = NDArray[Any]
MASSES = ("mass_active", "mass_parked", "mass_new")
CACHES = ("k_active.", "v_active.", "k_parked.", "v_parked.")
ROWS = ("hidden", "deepstack.", *CACHES)


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
        part, dims = self.manifest.segments[segment], self.manifest.dims
        layers = range(part.first_layer, part.last_layer)
        bound = self._backend.bind(
            segment,
            feeds["hidden"],
            feeds["position_ids"],
            feeds["row_weights"],
            [feeds[f"deepstack.{layer}"] for layer in part.deepstack],
        )
        cache = SegmentCache(len(layers), 1, dims.num_kv_heads, dims.head_dim, self.dtype)
        for name in ("k_active", "v_active", "k_parked", "v_parked"):
            setattr(cache, name, [feeds[f"{name}.{layer}"] for layer in layers])
        cache.active_len = feeds[f"active_len.{layers[0]}"]
        cache.parked_len = feeds[f"parked_len.{layers[0]}"]
        bound.run(cache, parked=bool(cache.parked_len.any()))
        last = part == self.manifest.segments[-1]
        found = {"logits" if last else "hidden_out": bound.output.copy()}
        for index, layer in enumerate(layers):
            for name in ("k_new", "v_new", *MASSES):
                found[f"{name}.{layer}"] = getattr(bound, name)[index].copy()
        return found


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
        arrays = {}
        for name, given in feeds.items():
            whole = given
            if name.startswith(CACHES):
                whole = _padded(given, place.room(given.shape[2]))
            arrays[name] = element.encode(whole) if name.startswith(ROWS) else whole
        part = backend.manifest.segments[segment]
        found = {
            name: np.empty(shape, np.float32 if name.startswith(MASSES) else element.stored)
            for name, shape in _output_shapes(backend.manifest, part, arrays).items()
        }
        # Buffers live until the run is over.
        buffers = {n: memory.allocate("scratch", a.nbytes) for n, a in (arrays | found).items()}
        for name, array in arrays.items():
            memory.device.upload(buffers[name].address, np.ascontiguousarray(array))
        parked = feeds[f"parked_len.{part.first_layer}"].any()
        use: Use = "prompt" if feeds["hidden"].shape[1] > 1 else "refresh" if parked else "step"
        tensors = {n: Tensor(buffers[n].address, a.shape) for n, a in (arrays | found).items()}
        backend.segments[segment].run(tensors, use)
        for name, array in found.items():
            memory.device.download(array, buffers[name].address)
        memory.device.synchronize()
        return {n: a if n.startswith(MASSES) else element.decode(a) for n, a in found.items()}


def _output_shapes(
    manifest: Manifest, segment: Segment, inputs: Mapping[str, Array]
) -> dict[str, tuple[int, ...]]:
    """Shapes of all outputs of a segment."""
    dims, (batch, rows, width) = manifest.dims, inputs["hidden"].shape
    last = segment == manifest.segments[-1]
    name, shape = ("logits", (1, dims.vocab_size)) if last else ("hidden_out", (rows, width))
    found: dict[str, tuple[int, ...]] = {name: (batch, *shape)}
    for layer in range(segment.first_layer, segment.last_layer):
        active, parked = (inputs[f"k_{at}.{layer}"].shape[2] for at in ("active", "parked"))
        for kind in ("k_new", "v_new"):
            found[f"{kind}.{layer}"] = (batch, dims.num_kv_heads, rows, dims.head_dim)
        for mass, keys in zip(MASSES, (active, parked, rows), strict=True):
            found[f"{mass}.{layer}"] = (batch, dims.num_kv_heads, 2, keys)
    return found


def _padded(array: Array, rows: int) -> Array:
    """Cached rows [B, Hkv, n, D] and zeros behind them."""
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
