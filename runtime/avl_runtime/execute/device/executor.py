"""The decoder on a device: rows are placed by the host's choice and moved by kernels."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins import graph_io
from avl_plugins.errors import AvlError
from avl_plugins.graph_io import (
    ACTIVE,
    DEEPSTACK,
    HIDDEN,
    PARKED,
    POSITIONS,
    ROW_STANDING,
    WEIGHTS,
    named,
)
from avl_plugins.logits import Logits
from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.execute.device.batch import DeviceBatch, Stepped
from avl_runtime.execute.device.cache import DeviceCache, device_gathered
from avl_runtime.execute.device.growth import GROWTH, device_dense_bytes
from avl_runtime.execute.device.protocol import OutOfDeviceMemoryError
from avl_runtime.execute.device.standing import CachedStanding
from avl_runtime.execute.device.tensors import Masses, Nothing, Outputs, Upload, cache_inputs
from avl_runtime.execute.protocol import Chunk, Member, PromptTooLongError
from avl_runtime.kv.cache import Floats, SegmentCache
from avl_runtime.kv.standing import of_new


class DeviceExecutor:
    """See `protocol.Executor`."""

    shares = repeats = at_hand = False

    def __init__(self, backend: DeviceBackend) -> None:
        self.backend = backend
        self.chunk = backend.limits.prompt_rows
        self.most_rows: int | None = backend.limits.cache_rows
        self.most_sequences = backend.limits.batch
        self.most_answers = 1  # engines have no input that says which rows shall have logits
        # The stream, the buffers that rows pass through and the engines' own are one for all.
        self.turn: AbstractContextManager[Any] = threading.RLock()
        self._stepped = Stepped()
        self._found = (0, 0)  # memory free and in all, before the prompt that is read

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def kernels(self) -> str | None:
        return None

    @property
    def kv(self) -> str:
        return self.backend.manifest.dtype

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.backend.dtype

    def new_caches(self) -> list[SegmentCache]:
        backend = self.backend
        return [
            DeviceCache(backend.place, part.last_layer - part.first_layer, part.first_layer)
            for part in backend.manifest.segments
        ]

    def read(
        self,
        segment: int,
        cache: SegmentCache,
        seq: int,
        chunk: Chunk,
        weights: NDArray[np.float32],
        logits: Logits,
        *,
        last: bool,
        parked: bool = True,
    ) -> DevicePass:
        mine = on_device(cache)
        return DevicePass(self.backend, segment, chunk, weights, mine, seq, parked=parked)

    def check_prompt(self, caches: Sequence[SegmentCache], seq: int, added: int) -> None:
        most = self.backend.limits.cache_rows
        held = max(int(cache.active_len[:, seq].max()) for cache in caches)
        if held + added > most:
            raise PromptTooLongError(
                f"expected at most {most} cached rows, which is what the engines were built for, "
                f"found {held + added}; build them with --max-context {held + added}, or shorten "
                "the prompt"
            )
        self._found = self.backend.device.memory()

    def explained(
        self, error: AvlError, caches: Sequence[SegmentCache], seq: int, added: int
    ) -> AvlError:
        if not isinstance(error, OutOfDeviceMemoryError):
            return error
        place, dims = self.backend.place, self.backend.manifest.dims
        free, total = self._found
        held = max(int(cache.active_len[:, seq].max()) for cache in caches)
        need = 2 * dims.num_layers * place.nbytes(1, place.room(held + added))
        fits = max(0, free // (2 * dims.num_layers * place.nbytes(1, 1)) - held)
        return OutOfDeviceMemoryError(
            need,
            free,
            total,
            f" for the KV rows of a prompt of {added} tokens",
            f"about {fits} tokens fit: use fewer or smaller pictures, --policy avl+fastv",
        )

    def batch(
        self,
        parts: Sequence[Sequence[tuple[SegmentCache, int]]],
        members: Sequence[Member],
        steps: int,
    ) -> DeviceBatch:
        room = min(steps, GROWTH)
        caches = [
            device_gathered([(on_device(cache), seq) for cache, seq in segment], room)
            for segment in parts
        ]
        return DeviceBatch(self.backend, caches, members, steps, self._stepped)

    @property
    def row_bytes(self) -> list[tuple[int, int]]:
        each = 2 * self.backend.place.nbytes(1, 1)
        return [(each, each)] * len(self.backend.manifest.row_layers)

    @property
    def state_bytes(self) -> int:
        return 0

    def dense_bytes(self, rows: int, steps: int, limit: int) -> int:
        return device_dense_bytes(self.backend, rows, steps, limit)

    def device_bytes(self) -> dict[str, int]:
        memory = self.backend.memory
        used = {kind: memory.used[kind] for kind in ("weights", "active", "parked", "scratch")}
        return {**used, "parked_on_host": memory.parked_on_host}


def on_device(cache: SegmentCache) -> DeviceCache:
    """`cache`, which must be on a device.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(cache, DeviceCache):
        raise TypeError("expected a cache on the device")
    return cache


class DevicePass:
    """See `protocol.Pass`."""

    def __init__(
        self,
        backend: DeviceBackend,
        index: int,
        chunk: Chunk,
        weights: NDArray[np.float32],
        cache: DeviceCache,
        seq: int,
        *,
        parked: bool,
    ) -> None:
        segment, element = backend.manifest.segments[index], backend.element
        self._backend, self._cache, self._seq = backend, cache, seq
        self._positions = chunk.positions
        ids = np.ascontiguousarray(chunk.position_ids)
        graph = backend.manifest.graph_of(segment)
        layers, self._last = graph.layers, graph.ends
        values: dict[str, NDArray[Any]] = {
            HIDDEN: element.encode(chunk.hidden[None]),
            POSITIONS: graph_io.positions(ids),
            WEIGHTS: weights,
        }
        for number, layer in enumerate(layers):
            values[named(ACTIVE.length, layer)] = cache.active_len[number, seq : seq + 1]
            values[named(PARKED.length, layer)] = cache.parked_len[number, seq : seq + 1]
        for layer, added in zip(segment.deepstack, chunk.deepstack, strict=True):
            values[named(DEEPSTACK, layer)] = element.encode(added[None])
        known = chunk.standing
        if graph.restores:
            axes = backend.manifest.dims.position_axes
            values[ROW_STANDING] = of_new(known, chunk.positions[None], ids[:1], axes)
        upload = Upload(
            backend.memory, {name: (array.shape, array.dtype) for name, array in values.items()}
        )
        for name, array in values.items():
            upload.host[name][...] = array
        upload.queue()
        nothing = Nothing(cache.place, 1)
        has_parked = parked and bool(cache.parked_len[:, seq].any())
        parked_rows = cache.parked_rooms if has_parked else [nothing.rows] * cache.layers
        sizes = (1, len(chunk.positions))
        self._outputs = Outputs(cache.place, graph, sizes, cache.active_rooms, parked_rows)
        if has_parked:
            cache.fetch()
        rows = [rows.of(cache.place, seq) for rows in cache.rows]
        stood = None
        if graph.restores:
            heads = 0 if known is None else cache.place.heads if known.unlike else 1
            rooms = cache.active_rooms, parked_rows
            stood = CachedStanding(cache.place, graph, 1, rooms, heads)
            if known is not None:
                stood.note(known, cache, has_parked, seq)
                stood.queue(has_parked)
        backend.segments[index].run(
            {
                **upload.tensors,
                **cache_inputs(
                    cache.place,
                    rows,
                    1,
                    layers,
                    [upload.address(named(ACTIVE.length, layer)) for layer in layers],
                    [upload.address(named(PARKED.length, layer)) for layer in layers]
                    if has_parked
                    else None,
                    nothing,
                ),
                **self._outputs.tensors(parked_rows),
                **(stood.tensors(has_parked) if stood is not None else {}),
            },
            "prompt",
        )
        self._kept = (upload, nothing, rows, stood)  # until the run is done
        self._rows: NDArray[Any] | None = None
        self._masses: Masses | None = None

    @property
    def output(self) -> NDArray[Any]:
        if self._rows is None:
            _, *shape = self._outputs.shape
            stored = np.empty(shape, self._backend.element.stored)
            self._backend.device.download(stored, self._outputs.output.address)
            self._backend.device.synchronize()
            self._rows = self._backend.element.decode(stored) if self._last else stored
        return self._rows

    @property
    def rows(self) -> tuple[NDArray[Any], ...]:
        raise RuntimeError("expected rows in the host's memory, found a device's")

    @property
    def states(self) -> list[NDArray[Any]]:
        return []

    def masses(self) -> Masses:
        if self._masses is None:
            self._masses = self._outputs.download_masses()
            self._backend.device.synchronize()
        return self._masses

    def store(self, mass: Floats | None) -> None:
        new = (self._outputs.k_new, self._outputs.v_new)
        self._cache.add(new, self._seq, self._positions, mass)
