"""ONNX Runtime on the CPU: works anywhere, and is the reference for the other backends.

Inputs and outputs are bound to NumPy arrays without copies: an OrtValue made from a NumPy array on
the CPU shares its memory, so a decode step only writes into buffers bound before. A cache's arrays
are bound again only when the cache has replaced them.

Attention of a decode step and linears are kernels of ours where those were compiled
(`avl_plugins.cpu`) and rows are float32, and else their bodies of standard ops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from avl_plugins import cpu, graph_io
from avl_plugins.cpu.host import Host, host
from avl_plugins.cpu.logits import Wanted
from avl_plugins.cpu.refresh import Refresh
from avl_plugins.graph_io import (
    ACTIVE,
    ANSWERED,
    BATCH,
    DEEPSTACK,
    HIDDEN,
    LOGITS_FROM,
    MADE,
    NEW,
    PARKED,
    POSITIONS,
    SLIDING,
    WEIGHTINGS,
    WEIGHTS,
    named,
)
from avl_plugins.logits import Logits
from avl_plugins.schema import COMPUTED, RowType
from avl_runtime.execute.host.compute import compute_entries, told
from avl_runtime.execute.host.ort_options import (
    LARGE,
    WORTH_SHRINKING,
    give_back,
    has_room,
    session_config,
    shrinking,
    tight_memory,
)
from avl_runtime.execute.host.segments import NOTHING
from avl_runtime.execute.protocol import BackendError
from avl_runtime.kv.by_layer import ByLayer, unfilled
from avl_runtime.kv.cache import Ints, SegmentCache
from avl_runtime.machine.huge_pages import huge_pages
from avl_runtime.machine.resources import cores
from avl_runtime.package.graph_fit import check_media, check_segment
from avl_runtime.package.package import Package
from avl_runtime.vision import Kind

DTYPES: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
}


class OrtBackend:
    """A package's graphs as ONNX Runtime sessions on the CPU."""

    name = "ort-cpu"

    def __init__(
        self,
        package: Package,
        threads: int | None,
        kept: RowType = COMPUTED,
        compute: str = "auto",
    ) -> None:
        manifest = package.manifest
        if manifest.dtype not in DTYPES:
            raise BackendError(
                f"expected an fp32 or fp16 package on ort-cpu, found {manifest.dtype}, which "
                "ONNX Runtime's CPU does not run; export with --dtype fp32 or --quantize int4"
            )
        self.dtype = DTYPES[manifest.dtype]
        self.kept = kept
        self.planes = kept.planes(manifest.dims.head_dim, self.dtype)
        self.parked = kept.parked(manifest.dims.head_dim, self.dtype)
        self._graphs = [manifest.graph_of(segment, kept) for segment in manifest.segments]
        decoders = [segment.graph(kept) for segment in manifest.segments]
        self._threads = threads or cores()
        self._compute = compute_entries(compute, manifest)
        self._encoding = compute_entries(compute, manifest, "vision")
        with huge_pages(), tight_memory():
            files = set(manifest.encoders.values())
            opened = {file: self._session(package, file, encoder=True) for file in files}
            self._encoders = {kind: opened[file] for kind, file in manifest.encoders.items()}
            self._sessions = [self._session(package, file, encoder=False) for file in decoders]
        for session, graph, file in zip(self._sessions, self._graphs, decoders, strict=True):
            check_segment(session, graph, file, manifest.dtype)
        given = {one.name for one in self._sessions[-1].get_overridable_initializers()}
        self.answers_rows = LOGITS_FROM in given
        self._files = manifest.encoders
        self._host = host() if self.dtype == np.float32 else None
        self.kernels = told(self._compute, self._encoding, kept, manifest)

    def _session(self, package: Package, file: str, *, encoder: bool) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        packs = has_room(package.float32_bytes())
        entries = session_config(package.manifest.quantization, encoder, packs) | {
            # Each session has threads of its own. Spinning on after a run, which is the default,
            # they take the cores from the next segment's threads and from Python between steps.
            "session.force_spinning_stop": "1",
            "session.model_external_initializers_file_folder_path": str(package.weights_folder),
            **(self._encoding if encoder else self._compute),
        }
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
        if self.dtype == np.float32:
            _register_kernels(options)
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

    def encode(self, kind: Kind, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        feeds = {
            name: array.astype(self.dtype, copy=False) if array.dtype == np.float32 else array
            for name, array in inputs.items()
        }
        check_media(self._encoders[kind], self._files[kind], feeds)
        return [np.asarray(array) for array in self._encoders[kind].run(None, feeds)]

    def bind(
        self,
        segment: int,
        hidden: NDArray[Any],
        position_ids: NDArray[np.int64],
        row_weights: NDArray[np.float32],
        deepstack: Sequence[NDArray[Any]],
        answers: int = 1,
        reach: Mapping[str, Ints] = NOTHING,
    ) -> OrtBoundSegment:
        graph = self._graphs[segment]
        layers = zip(graph.deepstack, deepstack, strict=True)
        added = {named(DEEPSTACK, layer): array for layer, array in layers}
        inputs = {HIDDEN: hidden, POSITIONS: position_ids, WEIGHTS: row_weights, **added}
        inputs |= {name: reach[name] for name in graph.reach}
        if graph.ends and answers > 1:
            inputs[LOGITS_FROM] = np.array([-answers])
        return OrtBoundSegment(self._sessions[segment], graph, self._host, inputs, answers)


def _register_kernels(options: ort.SessionOptions) -> None:
    """Offer a session the compiled kernels, if there are any.

    Raises:
        BackendError: they are not for this machine, or damaged.
    """
    library = cpu.library()
    if library is None:
        return
    try:
        options.register_custom_ops_library(str(library))
    # ONNX Runtime's own exception classes share no base but Exception.
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise BackendError(
            f"{library}: expected CPU kernels compiled on this machine, found: {reason}; compile "
            f"them with python -m avl_plugins.cpu.build, or set {cpu.SWITCH}=off"
        ) from error


class OrtBoundSegment:
    """A decoder segment bound to its buffers; see `segments.BoundSegment`."""

    def __init__(
        self,
        session: ort.InferenceSession,
        graph: graph_io.Segment,
        host: Host | None,
        inputs: dict[str, NDArray[Any]],
        answers: int,
    ) -> None:
        batch, rows, _ = inputs[HIDDEN].shape
        dtype, dims = inputs[HIDDEN].dtype, graph.dims
        heads, count = dims.num_kv_heads, len(graph.layers)
        sizes = {BATCH: batch, NEW: rows, ANSWERED: answers, WEIGHTINGS: 0}
        sizes |= {ACTIVE.name: 0, PARKED.name: 0}
        self.output = np.empty(graph.outputs([])[0].sized(sizes), dtype)
        planes = graph.kept.planes(dims.head_dim, dtype)
        self.new = tuple(
            np.empty((count, batch, heads, rows, plane.width), plane.dtype) for plane in planes
        )
        self.mass_new = np.empty((count, batch, heads, 0, rows), np.float32)
        self.mass_active = self.mass_parked = ByLayer(())
        self._session = session
        self._host = host
        self._last = graph.ends
        self._refresh: Refresh | None = None  # of the cache that is bound
        self._layers = graph.layers
        self._sliding = [n for n in graph.layers if graph.kind(n) is SLIDING]
        self._inputs = inputs
        self._output_name = graph.result
        self._kept = graph.kept
        self._nothing, self._nothing_parked = (
            [np.zeros((batch, heads, 1, plane.width), plane.dtype) for plane in kinds]
            for kinds in (planes, graph.kept.parked(dims.head_dim, dtype))
        )
        self._no_length = np.zeros(batch, np.int64)
        self._parked_len = np.zeros((count, batch), np.int64)  # rows that a step reads
        self._no_weights = np.zeros((batch, 0, rows), np.float32)
        self._bindings: dict[tuple[bool, bool], _Binding] = {}  # reads parked rows, makes masses
        self._bound: tuple[SegmentCache, int] | None = None  # a cache, and the version bound

    def run(
        self,
        cache: SegmentCache,
        parked_len: Ints | None = None,
        *,
        masses: bool = True,
        core: Ints | None = None,
        logits: Logits = Logits.ALL,
        ends: bool = False,
    ) -> bool:
        # A list, as NumPy's any() is slow where a run has emptied the processor's caches.
        parked = parked_len is not None and any(map(any, parked_len.tolist()))
        if self._bound is None or self._bound[0] is not cache or self._bound[1] != cache.version:
            # All bindings at once, so that none keeps arrays alive that the cache has replaced.
            for (reads_parked, _), binding in self._bindings.items():
                self._bind_cache(binding, cache, reads_parked)
            self._bound = (cache, cache.version)
            self._refresh = None
        if (parked, masses) not in self._bindings:
            self._bindings[parked, masses] = self._make_binding(masses)
            self._bind_cache(self._bindings[parked, masses], cache, parked)
        binding = self._bindings[parked, masses]
        if parked_len is not None:
            self._parked_len[...] = parked_len
        self.mass_active = binding.mass[ACTIVE.mass]
        self.mass_parked = binding.mass[PARKED.mass]
        self.mass_new = binding.mass_new
        options = shrinking() if ends and cache.nbytes >= WORTH_SHRINKING else None
        wanted = Wanted(self._host if self._last else None, logits)
        if core is None:
            with wanted:
                self._session.run_with_iobinding(binding.io, options)
            if ends and cache.nbytes >= LARGE:
                give_back()
            return False
        if self._refresh is None:  # made once, as that takes as long as a small layer
            rows = cache.k_active, cache.k_parked
            labels = cache.positions, cache.parked_positions
            self._refresh = Refresh(*rows, *labels, self._host)
        with self._refresh.of(core) as refresh, wanted:
            self._session.run_with_iobinding(binding.io, options)
        return refresh.done

    def release(self) -> None:
        self._bound = self._refresh = None
        for binding in self._bindings.values():
            for layer in self._layers:
                for kind, nothing in zip(ACTIVE.planes(self._kept), self._nothing, strict=True):
                    binding.bind_input(named(kind, layer), nothing)

    def _make_binding(self, masses: bool) -> _Binding:
        weightings = self._inputs[WEIGHTS].shape[1] if masses else 0
        count, batch, heads, rows, _ = self.new[0].shape
        mass_new = np.empty((count, batch, heads, weightings, rows), np.float32)
        binding = _Binding(self._session.io_binding(), mass_new)
        for name, array in self._inputs.items():
            binding.bind_input(name, array)
        if not masses:
            binding.bind_input(WEIGHTS, self._no_weights)
        binding.bind_output(self._output_name, self.output)
        for index, layer in enumerate(self._layers):
            for kind, plane in zip(MADE.planes(self._kept), self.new, strict=True):
                binding.bind_output(named(kind, layer), plane[index])
            binding.bind_output(named(MADE.mass, layer), mass_new[index])
        return binding

    def _bind_cache(self, binding: _Binding, cache: SegmentCache, parked: bool) -> None:
        absent = [[nothing] * len(self._layers) for nothing in self._nothing_parked]
        held = cache.parked if parked else absent
        for place, planes in ((ACTIVE, cache.active), (PARKED, held)):
            for kind, arrays in zip(place.planes(self._kept), planes, strict=True):
                for layer, array in zip(self._layers, arrays, strict=True):
                    binding.bind_input(named(kind, layer), array)
        for index, layer in enumerate(self._layers):
            binding.bind_input(named(ACTIVE.length, layer), cache.active_len[index])
            parked_len = self._parked_len[index] if parked else self._no_length
            binding.bind_input(named(PARKED.length, layer), parked_len)
        for layer in self._sliding:
            # A step's rows lie within the window, and its graph does not look where.
            index, step = layer - self._layers[0], self.new[0].shape[3] == 1
            room = 1 if step else cache.k_active[index].shape[2]
            positions = np.ascontiguousarray(cache.positions[index, :, 0, :room])
            binding.bind_input(named(ACTIVE.positions, layer), positions)
        self._bind_mass(binding, ACTIVE.mass, cache.k_active)
        self._bind_mass(binding, PARKED.mass, held[0])

    def _bind_mass(self, binding: _Binding, kind: str, keys: Sequence[NDArray[Any]]) -> None:
        """Bind buffers [B, Hkv, R, rows] for what each layer's keys [B, Hkv, rows, D] receive."""
        rooms = [rows.shape[2] for rows in keys]
        if binding.rooms.get(kind) == rooms:
            return
        _, batch, heads, weightings, _ = binding.mass_new.shape
        masses = binding.mass[kind] = unfilled([(batch, heads, weightings, n) for n in rooms])
        binding.rooms[kind] = rooms
        for layer, mass in zip(self._layers, masses, strict=True):
            binding.bind_output(named(kind, layer), mass)


class _Binding:
    """An IOBinding, the inputs bound to it by name, and its buffers for masses.

    Attributes:
        mass_new: [L, B, Hkv, R, S].
        mass: [B, Hkv, R, rows] of each kind of cached rows.
        rooms: those rows, of each layer.
    """

    __slots__ = ("arrays", "io", "mass", "mass_new", "rooms")

    def __init__(self, io: ort.IOBinding, mass_new: NDArray[np.float32]) -> None:
        self.io, self.mass_new = io, mass_new
        self.arrays: dict[str, NDArray[Any]] = {}
        self.mass: dict[str, ByLayer] = {}
        self.rooms: dict[str, list[int]] = {}

    def bind_input(self, name: str, array: NDArray[Any]) -> None:
        # A growing cache replaces a third of its arrays, and binding costs more than looking.
        if self.arrays.get(name) is not array:
            self.arrays[name] = array
            if name == LOGITS_FROM:  # an initializer that may be replaced, which is no input
                self.io.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            else:  # takes a third of the time
                self.io.bind_cpu_input(name, array)

    def bind_output(self, name: str, array: NDArray[Any]) -> None:
        self.io.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
