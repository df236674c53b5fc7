"""ONNX Runtime on the CPU: works anywhere, and is the reference for the other backends.

Inputs and outputs are bound to NumPy arrays without copies: an OrtValue made from a NumPy array on
the CPU shares its memory, so a decode step only writes into buffers bound before. A cache's arrays
are bound again only when the cache has replaced them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from avl_runtime.backends.protocol import BackendError
from avl_runtime.cache import LayerCache
from avl_runtime.package import Dims, Package, Segment

DTYPES: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
}


class OrtBackend:
    """A package's graphs as ONNX Runtime sessions on the CPU."""

    name = "ort-cpu"

    def __init__(self, package: Package, threads: int | None) -> None:
        manifest = package.manifest
        if manifest.dtype not in DTYPES:
            raise BackendError(
                f"expected an fp32 or fp16 package on ort-cpu, found {manifest.dtype}, which "
                "ONNX Runtime's CPU kernels do not have; export with --dtype fp32"
            )
        self.dtype = DTYPES[manifest.dtype]
        self._dims = manifest.dims
        self._segments = manifest.segments
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        # Without prepacking, fp32 weights stay mapped from the checkpoint instead of being copied.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(package.weights_folder)
        )
        self._vision = _session(package, manifest.vision.file, options)
        self._sessions = [_session(package, part.file, options) for part in manifest.segments]

    def image_features(self, pixel_values: NDArray[np.float32]) -> NDArray[Any]:
        inputs = {"pixel_values": pixel_values.astype(self.dtype, copy=False)}
        (features,) = self._vision.run(["image_features"], inputs)
        return np.asarray(features)

    def bind(
        self,
        segment: int,
        hidden: NDArray[Any],
        position_ids: NDArray[np.int64],
        row_weights: NDArray[np.float32],
    ) -> OrtBoundSegment:
        return OrtBoundSegment(
            self._sessions[segment],
            self._segments[segment],
            self._dims,
            segment == len(self._segments) - 1,
            (hidden, position_ids, row_weights),
        )


class OrtBoundSegment:
    """A decoder segment bound to its buffers; see `protocol.BoundSegment`."""

    def __init__(
        self,
        session: ort.InferenceSession,
        segment: Segment,
        dims: Dims,
        last: bool,
        inputs: tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float32]],
    ) -> None:
        hidden, position_ids, row_weights = inputs
        batch, rows, _ = hidden.shape
        heads, dtype = dims.num_kv_heads, hidden.dtype
        count = segment.last_layer - segment.first_layer
        self.output = np.empty((batch, 1, dims.vocab_size) if last else hidden.shape, dtype)
        new = (batch, heads, rows, dims.head_dim)
        self.k_new = [np.empty(new, dtype) for _ in range(count)]
        self.v_new = [np.empty(new, dtype) for _ in range(count)]
        self.mass_new = [np.empty((batch, heads, 2, rows), np.float32) for _ in range(count)]
        self.mass_active: list[NDArray[np.float32]] = [self.mass_new[0]] * count
        self.mass_parked: list[NDArray[np.float32]] = [self.mass_new[0]] * count
        self._session = session
        self._layers = range(segment.first_layer, segment.last_layer)
        self._shared = {
            "hidden": hidden,
            "position_ids": position_ids,
            "row_weights": row_weights,
        }
        self._output_name = "logits" if last else "hidden_out"
        self._nothing = np.zeros((batch, heads, 1, dims.head_dim), dtype)
        self._no_length = np.zeros(batch, np.int64)
        self._bindings: dict[bool, _Binding] = {}

    def run(self, caches: Sequence[LayerCache], parked: bool) -> None:
        parked = parked and any(cache.parked_len.any() for cache in caches)
        binding = self._bindings.get(parked)
        if binding is None:
            binding = self._bindings[parked] = self._make_binding(len(caches))
        for index, cache in enumerate(caches):
            if binding.versions[index] != (id(cache), cache.version):
                self._bind_cache(binding, index, cache, parked)
        self.mass_active, self.mass_parked = binding.mass_active, binding.mass_parked
        self._session.run_with_iobinding(binding.io)

    def _make_binding(self, count: int) -> _Binding:
        binding = _Binding(self._session.io_binding(), count)
        for name, array in self._shared.items():
            binding.bind_input(name, array)
        binding.bind_output(self._output_name, self.output)
        for index, layer in enumerate(self._layers):
            binding.bind_output(f"k_new.{layer}", self.k_new[index])
            binding.bind_output(f"v_new.{layer}", self.v_new[index])
            binding.bind_output(f"mass_new.{layer}", self.mass_new[index])
        return binding

    def _bind_cache(self, binding: _Binding, index: int, cache: LayerCache, parked: bool) -> None:
        layer = self._layers[index]
        nothing, no_length = self._nothing, self._no_length
        k_parked, v_parked, parked_len = (
            (cache.k_parked, cache.v_parked, cache.parked_len)
            if parked
            else (nothing, nothing, no_length)
        )
        binding.bind_input(f"k_active.{layer}", cache.k_active)
        binding.bind_input(f"v_active.{layer}", cache.v_active)
        binding.bind_input(f"active_len.{layer}", cache.active_len)
        binding.bind_input(f"k_parked.{layer}", k_parked)
        binding.bind_input(f"v_parked.{layer}", v_parked)
        binding.bind_input(f"parked_len.{layer}", parked_len)
        for name, masses, keys in (
            ("mass_active", binding.mass_active, cache.k_active),
            ("mass_parked", binding.mass_parked, k_parked),
        ):
            masses[index] = np.empty((*keys.shape[:2], 2, keys.shape[2]), np.float32)
            binding.bind_output(f"{name}.{layer}", masses[index])
        binding.versions[index] = (id(cache), cache.version)


class _Binding:
    """An IOBinding, what keeps its memory alive, and which cache versions it has seen."""

    __slots__ = ("io", "kept", "mass_active", "mass_parked", "versions")

    def __init__(self, io: ort.IOBinding, count: int) -> None:
        self.io = io
        self.kept: dict[str, ort.OrtValue] = {}
        self.versions: list[tuple[int, int]] = [(0, -1)] * count
        empty = np.empty((0, 0, 2, 0), np.float32)
        self.mass_active = [empty] * count
        self.mass_parked = [empty] * count

    def bind_input(self, name: str, array: NDArray[Any]) -> None:
        value = self.kept[name] = ort.OrtValue.ortvalue_from_numpy(array)
        self.io.bind_ortvalue_input(name, value)

    def bind_output(self, name: str, array: NDArray[Any]) -> None:
        value = self.kept[name] = ort.OrtValue.ortvalue_from_numpy(array)
        self.io.bind_ortvalue_output(name, value)


def _session(package: Package, file: str, options: ort.SessionOptions) -> ort.InferenceSession:
    graph = package.read(file)
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's own exception classes share no base but Exception.
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise BackendError(
            f"{package.file(file)}: expected a graph ONNX Runtime {ort.__version__} can load, "
            f"found: {reason}; export again with this version of avl"
        ) from error
