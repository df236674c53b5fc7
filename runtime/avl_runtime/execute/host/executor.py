"""The decoder on the host: caches are NumPy arrays, which segments read and write in place."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError
from avl_plugins.graph_io import ROW_ENDS, ROW_POSITIONS, ROW_STANDING
from avl_plugins.logits import Logits
from avl_plugins.schema import COMPUTED, Plane
from avl_runtime.execute.host.batch import HostBatch
from avl_runtime.execute.host.segments import BoundSegment, HostBackend
from avl_runtime.execute.protocol import Chunk, Member
from avl_runtime.kv.cache import Floats, Ints, NewRows, SegmentCache
from avl_runtime.kv.gather import gathered
from avl_runtime.kv.growth import dense_bytes
from avl_runtime.kv.sight import Masses
from avl_runtime.kv.standing import of_new
from avl_runtime.kv.states import no_states
from avl_runtime.package.manifest import Manifest

CHUNK = 256  # rows; longer chunks are slower on a CPU and hold more scores at once
ANSWERS = 16  # rows of which the largest logits are found by codes of 8 bits (cpu/ort_logits.c)


class HostExecutor:
    """See `protocol.Executor`."""

    shares = repeats = at_hand = True
    most_rows: int | None = None
    most_sequences = sys.maxsize

    def __init__(self, backend: HostBackend, manifest: Manifest) -> None:
        self.backend, self.manifest = backend, manifest
        self.chunk = CHUNK
        # Rows that a window has left behind are not there for a prompt that begins alike. Nor is a
        # block of several layers one array where their heads differ in size.
        if manifest.reach.window is not None or manifest.dims.head_dims is not None:
            self.shares = False
        self.most_answers = ANSWERS if backend.answers_rows else 1
        # Each thread has buffers and caches of its own, and sessions may be run by several.
        self.turn: AbstractContextManager[Any] = nullcontext()

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def kernels(self) -> str | None:
        return self.backend.kernels

    @property
    def kv(self) -> str:
        kept = self.backend.kept
        return self.manifest.dtype if kept == COMPUTED else kept.name

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.backend.dtype

    def new_caches(self) -> list[SegmentCache]:
        backend, heads = self.backend, self.manifest.dims.num_kv_heads
        caches = []
        for segment in self.manifest.segments:
            graph = self.manifest.graph_of(segment)
            layers = self.manifest.windows(segment), graph.row_layers
            active, parked = zip(*map(self._planes, graph.row_layers), strict=True)
            kinds = active, parked, backend.kept.parked_bits
            states = no_states(graph, backend.dtype)
            caches.append(SegmentCache(1, heads, *kinds, *layers, states))
        return caches

    def _planes(self, layer: int) -> tuple[tuple[Plane, ...], tuple[Plane, ...]]:
        """What a row of a head has that is active, and one that is parked."""
        kept, size = self.backend.kept, self.manifest.dims.head_size(layer)
        return kept.planes(size, self.dtype), kept.parked(size, self.dtype)

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
    ) -> HostPass:
        dtype, ids = self.backend.dtype, np.ascontiguousarray(chunk.position_ids)
        positions, known = chunk.positions[None], chunk.standing
        axes = self.manifest.dims.position_axes
        standing = of_new(known, positions, ids[:1], axes)
        reach = {ROW_ENDS: chunk.row_ends[None], ROW_POSITIONS: positions, ROW_STANDING: standing}
        bound = self.backend.bind(
            segment,
            np.ascontiguousarray(chunk.hidden[None], dtype),
            ids if len(ids) == 1 else ids[:, None],
            weights,
            [np.ascontiguousarray(added[None], dtype) for added in chunk.deepstack],
            reach=reach,
        )
        seen = cache if cache.batch == 1 else cache.window(seq)
        held = seen.parked_len if parked else None
        bound.run(seen, held, logits=logits, ends=last, standing=known)
        bound.release()
        return HostPass(bound, cache, seq, chunk.positions)

    def check_prompt(self, caches: Sequence[SegmentCache], seq: int, added: int) -> None:
        """The host's memory is not known before it is taken."""

    def explained(
        self, error: AvlError, caches: Sequence[SegmentCache], seq: int, added: int
    ) -> AvlError:
        return error

    def batch(
        self,
        parts: Sequence[Sequence[tuple[SegmentCache, int]]],
        members: Sequence[Member],
        steps: int,
    ) -> HostBatch:
        caches = [gathered(segment, steps) for segment in parts]
        return HostBatch(self.backend, self.manifest, caches, members)

    @property
    def row_bytes(self) -> list[tuple[int, int]]:
        heads = self.manifest.dims.num_kv_heads
        found = []
        for layer in self.manifest.row_layers:
            active, parked = (
                heads * sum(plane.width * plane.dtype.itemsize for plane in kinds)
                for kinds in self._planes(layer)
            )
            found.append((active, parked))
        return found

    @property
    def state_bytes(self) -> int:
        dtype = self.backend.dtype
        graphs = map(self.manifest.graph_of, self.manifest.segments)
        return sum(array.nbytes for graph in graphs for array in no_states(graph, dtype))

    def dense_bytes(self, rows: int, steps: int, limit: int) -> int:
        heads = self.manifest.dims.num_kv_heads
        windows = [one for part in self.manifest.segments for one in self.manifest.windows(part)]
        held = sum(
            dense_bytes(
                *(rows if window is None else min(rows, window), steps, limit, heads),
                *self._planes(layer),
            )
            for layer, window in zip(self.manifest.row_layers, windows, strict=True)
        )
        return held + self.state_bytes

    def device_bytes(self) -> None:
        return None


class HostPass:
    """See `protocol.Pass`."""

    def __init__(self, bound: BoundSegment, cache: SegmentCache, seq: int, positions: Ints) -> None:
        self._bound, self._cache, self._seq, self._positions = bound, cache, seq, positions

    @property
    def output(self) -> NDArray[Any]:
        rows: NDArray[Any] = self._bound.output[0]
        return rows

    @property
    def rows(self) -> tuple[NewRows, ...]:
        return self._bound.new

    @property
    def states(self) -> list[NDArray[Any]]:
        return self._bound.states

    def masses(self) -> Masses:
        return self._bound

    def store(self, mass: Floats | None) -> None:
        self._cache.extend(self._bound.new, self._seq, self._positions, mass)
        self._cache.states.replace(self._seq, self._bound.states)
