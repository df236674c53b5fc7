"""A decoder segment in ONNX Runtime, bound to NumPy arrays without copies.

An OrtValue made from a NumPy array on the CPU shares its memory, so a decode step only writes into
buffers bound before. A cache's arrays are bound again only when the cache has replaced them, as it
does states after every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from avl_plugins import graph_io
from avl_plugins.cpu.host import Host
from avl_plugins.cpu.logits import Wanted
from avl_plugins.cpu.refresh import Refresh
from avl_plugins.graph_io import (
    ACTIVE,
    ANSWERED,
    BATCH,
    HIDDEN,
    LOGITS_FROM,
    MADE,
    NEW,
    PARKED,
    SLIDING,
    WEIGHTINGS,
    WEIGHTS,
    named,
)
from avl_plugins.logits import Logits
from avl_plugins.schema import Plane
from avl_runtime.execute.host.ort_options import LARGE, WORTH_SHRINKING, shrinking
from avl_runtime.execute.host.segments import no_standing
from avl_runtime.kv.by_layer import ByLayer, unfilled
from avl_runtime.kv.cache import Ints, NewRows, SegmentCache
from avl_runtime.kv.standing import Standing
from avl_runtime.machine.memory import give_back_surplus
from avl_runtime.machine.pages import LEFT


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
        heads, count = dims.num_kv_heads, len(graph.row_layers)
        sizes = {BATCH: batch, NEW: rows, ANSWERED: answers, WEIGHTINGS: 0}
        sizes |= {ACTIVE.name: 0, PARKED.name: 0}
        self.output = np.empty(graph.outputs([])[0].sized(sizes), dtype)
        head_sizes = [dims.head_size(layer) for layer in graph.row_layers]
        planes, parked = (
            list(zip(*(kinds(size, dtype) for size in head_sizes), strict=True))
            for kinds in (graph.kept.planes, graph.kept.parked)
        )
        self.new = tuple(_new_rows(by_layer, (batch, heads, rows)) for by_layer in planes)
        self.mass_new = np.empty((count, batch, heads, 0, rows), np.float32)
        self.mass_active = self.mass_parked = ByLayer(())
        states, types = graph.states(), {"T": dtype}
        self.states = [
            np.empty(made.sized(sizes), types.get(made.dtype) or np.dtype(made.dtype))
            for _, made in states
        ]
        self._states = [(held.name, made.name) for held, made in states]
        self._session = session
        self._host = host
        self._last = graph.ends
        self._refresh: Refresh | None = None  # of the cache that is bound
        self._layers = graph.row_layers
        rowed = enumerate(graph.row_layers)
        self._sliding = [(at, n) for at, n in rowed if graph.kind(n) is SLIDING]
        self._is_step = rows == 1
        self._restores = graph.restores
        self._no_standing = no_standing(batch, 1, dims.position_axes)[:, None]
        self._inputs = inputs
        self._output_name = graph.result
        self._kept = graph.kept
        self._nothing, self._nothing_parked = (
            [
                [np.zeros((batch, heads, 1, plane.width), plane.dtype) for plane in by_layer]
                for by_layer in kinds
            ]
            for kinds in (planes, parked)
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
        standing: Standing | None = None,
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
        if not self._is_step:  # rows move, and are added, in the same arrays
            self._bind_positions(binding, cache)
        if self._restores and (standing is not None or binding.stands):
            self._bind_standing(binding, cache, standing, parked)
        both = zip(self._states, cache.states.arrays, self.states, strict=True)
        for (held_name, made_name), held, made in both:
            binding.bind_input(held_name, held)
            binding.bind_output(made_name, made)
        if parked_len is not None:
            self._parked_len[...] = parked_len
        self.mass_active = binding.mass[ACTIVE.mass]
        self.mass_parked = binding.mass[PARKED.mass]
        self.mass_new = binding.mass_new
        options = shrinking() if ends and cache.nbytes >= WORTH_SHRINKING else None
        wanted = Wanted(self._host if self._last else None, logits)
        if core is None or not parked:  # without parked rows there is nothing to swap
            with wanted:
                self._session.run_with_iobinding(binding.io, options)
            if ends and cache.nbytes >= LARGE:
                give_back_surplus()
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
            for kind, arrays in zip(ACTIVE.planes(self._kept), self._nothing, strict=True):
                for layer, nothing in zip(self._layers, arrays, strict=True):
                    binding.bind_input(named(kind, layer), nothing)

    def _make_binding(self, masses: bool) -> _Binding:
        weightings = self._inputs[WEIGHTS].shape[1] if masses else 0
        count, (batch, heads, rows, _) = len(self._layers), self.new[0][0].shape
        mass_new = np.empty((count, batch, heads, weightings, rows), np.float32)
        binding = _Binding(self._session.io_binding(), mass_new)
        for name, array in self._inputs.items():
            binding.bind_input(name, array)
        if not masses:
            binding.bind_input(WEIGHTS, self._no_weights)
        for _, layer in self._sliding:
            # A step's rows lie within the window, and its graph does not look where.
            binding.bind_input(named(ACTIVE.positions, layer), np.zeros((batch, 1), np.int64))
        binding.bind_output(self._output_name, self.output)
        for index, layer in enumerate(self._layers):
            for kind, plane in zip(MADE.planes(self._kept), self.new, strict=True):
                binding.bind_output(named(kind, layer), plane[index])
            binding.bind_output(named(MADE.mass, layer), mass_new[index])
        return binding

    def _bind_cache(self, binding: _Binding, cache: SegmentCache, parked: bool) -> None:
        held = cache.parked if parked else self._nothing_parked
        for place, planes in ((ACTIVE, cache.active), (PARKED, held)):
            for kind, arrays in zip(place.planes(self._kept), planes, strict=True):
                for layer, array in zip(self._layers, arrays, strict=True):
                    binding.bind_input(named(kind, layer), array)
        for index, layer in enumerate(self._layers):
            binding.bind_input(named(ACTIVE.length, layer), cache.active_len[index])
            parked_len = self._parked_len[index] if parked else self._no_length
            binding.bind_input(named(PARKED.length, layer), parked_len)
        self._bind_mass(binding, ACTIVE.mass, cache.k_active)
        self._bind_mass(binding, PARKED.mass, held[0])

    def _bind_positions(self, binding: _Binding, cache: SegmentCache) -> None:
        """Bind where the active rows of layers with a window are."""
        for index, layer in self._sliding:
            positions = cache.positions[index, :, 0, : cache.rooms[index]].copy()
            binding.bind_input(named(ACTIVE.positions, layer), positions)

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

    def _bind_standing(
        self, binding: _Binding, cache: SegmentCache, standing: Standing | None, parked: bool
    ) -> None:
        nowhere = self._no_standing, self._no_standing
        found = repeat(nowhere) if standing is None else standing.of_cached(cache, parked)
        for layer, both in zip(self._layers, found, strict=False):
            for place, rows in zip((ACTIVE, PARKED), both, strict=True):
                binding.bind_input(named(place.standing, layer), rows)
        binding.stands = standing is not None


def _new_rows(planes: Sequence[Plane], shape: tuple[int, int, int]) -> NewRows:
    """Arrays for a plane of new rows [*shape, width], one a layer."""
    if len(set(planes)) == 1:
        return LEFT.empty((len(planes), *shape, planes[0].width), planes[0].dtype)
    return [LEFT.empty((*shape, plane.width), plane.dtype) for plane in planes]


class _Binding:
    """An IOBinding, what is bound to it by name, and its buffers for masses.

    Attributes:
        mass_new: [L, B, Hkv, R, S].
        mass: [B, Hkv, R, rows] of each kind of cached rows.
        rooms: those rows, of each layer.
        stands: whether rows are bound that stand somewhere, or, at first, none.
    """

    __slots__ = ("arrays", "io", "mass", "mass_new", "outputs", "rooms", "stands")

    def __init__(self, io: ort.IOBinding, mass_new: NDArray[np.float32]) -> None:
        self.io, self.mass_new = io, mass_new
        self.arrays: dict[str, NDArray[Any]] = {}
        self.outputs: dict[str, NDArray[Any]] = {}
        self.mass: dict[str, ByLayer] = {}
        self.rooms: dict[str, list[int]] = {}
        self.stands = True

    def bind_input(self, name: str, array: NDArray[Any]) -> None:
        # A growing cache replaces a third of its arrays, and binding costs more than looking.
        if self.arrays.get(name) is not array:
            self.arrays[name] = array
            if name == LOGITS_FROM:  # an initializer that may be replaced, which is no input
                self.io.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            else:  # takes a third of the time
                self.io.bind_cpu_input(name, array)

    def bind_output(self, name: str, array: NDArray[Any]) -> None:
        if self.outputs.get(name) is array:
            return
        self.outputs[name] = array
        self.io.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
