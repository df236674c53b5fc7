"""Drafted tokens on the host: segments stay bound from one check to the next.

Binding a segment's buffers takes as long as running a small one, so that those of the last few
shapes are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins import graph_io
from avl_runtime.execute.check import Drafted
from avl_runtime.execute.host.segments import (
    BoundSegment,
    HostBackend,
    causal_reach,
    no_standing,
)
from avl_runtime.kv.cache import Ints, SegmentCache
from avl_runtime.kv.sight import Masses
from avl_runtime.package.manifest import Manifest

KEPT = 4  # shapes whose buffers are kept; of a large vocabulary logits of one take ten megabytes


class HostChecks:
    """Runs drafted tokens of one batch."""

    def __init__(self, backend: HostBackend, manifest: Manifest) -> None:
        self._backend, self._manifest = backend, manifest
        self._bound: dict[tuple[int, int, int], _Bound] = {}  # the one used last comes last

    def run(self, caches: Sequence[SegmentCache], drafted: Drafted) -> HostChecked:
        """Run all segments over drafted tokens, which `caches` have room for."""
        count, rows, _ = drafted.hidden.shape
        key = (drafted.seqs[0], count, rows)
        bound = self._bound.pop(key, None)
        if bound is None:
            bound = _Bound(self._backend, self._manifest, count, rows)
        self._bound[key] = bound
        if len(self._bound) > KEPT:
            del self._bound[next(iter(self._bound))]
        bound.run(caches, drafted)
        return HostChecked(bound, caches, drafted)

    def release(self, segment: int) -> None:
        """Let go of a segment's active rows, so that they are freed as they are replaced."""
        for bound in self._bound.values():
            bound.release(segment)


class _Bound:
    """All segments, bound for S new rows of b sequences.

    Attributes:
        segments: in order.
        logits: [b, S, V], of the last run.
    """

    def __init__(self, backend: HostBackend, manifest: Manifest, count: int, rows: int) -> None:
        dims = manifest.dims
        axes = () if dims.position_axes == 1 else (dims.position_axes,)
        self._hidden = np.zeros((count, rows, graph_io.width(dims, 0)), backend.dtype)
        self._position_ids: Ints = np.zeros((*axes, count, rows), np.int64)
        self._weights = np.zeros((count, 1, rows), np.float32)
        self._positions: Ints = np.zeros((count, rows), np.int64)
        self._standing = no_standing(count, rows, dims.position_axes)
        self._last_position = dims.max_positions - 1  # padding may lie behind it
        text_only = np.zeros((count, rows, dims.hidden_size), backend.dtype)
        self.segments: list[BoundSegment] = []
        made: NDArray[Any] = self._hidden
        reach = causal_reach(self._positions, self._standing)
        for index, segment in enumerate(manifest.segments):
            deepstack = [text_only] * len(segment.deepstack)
            given = made, self._position_ids, self._weights, deepstack
            bound = backend.bind(index, *given, rows, reach)
            self.segments.append(bound)
            made = bound.output
        self.logits = made
        self._windows: list[_Window | None] = [None] * len(self.segments)

    def run(self, caches: Sequence[SegmentCache], drafted: Drafted) -> None:
        self._hidden[...] = drafted.hidden
        self._position_ids[...] = drafted.position_ids
        self._positions[...] = drafted.positions
        self._standing[...] = 0
        if drafted.standing is not None:
            ids = np.minimum(drafted.position_ids, self._last_position)
            self._standing[...] = drafted.standing.of_new(drafted.positions, ids)
        if drafted.weights is not None:
            self._weights[...] = drafted.weights
        for index, (bound, cache) in enumerate(zip(self.segments, caches, strict=True)):
            seen = self._seen(index, cache, drafted)
            parked_len = None
            if any(drafted.parked):
                parked_len = np.where(drafted.parked, seen.parked_len, 0)
            masses = drafted.weights is not None
            known = drafted.standing
            bound.run(seen, parked_len, masses=masses, logits=drafted.logits, standing=known)

    def release(self, segment: int) -> None:
        self._windows[segment] = None
        self.segments[segment].release()

    def _seen(self, index: int, cache: SegmentCache, drafted: Drafted) -> SegmentCache:
        """A segment's cache with the sequences of `drafted` alone."""
        if len(drafted.seqs) == cache.batch:
            return cache
        held = self._windows[index]
        if held is None or not held.shows(cache):
            held = self._windows[index] = _Window(cache, drafted.seqs[0])
        held.view.states = cache.states.window(drafted.seqs[0])  # other arrays after each step
        return held.view


class _Window:
    """One sequence of a batch's cache, for as long as the cache has the same arrays.

    Attributes:
        view: the sequence as a cache.
    """

    def __init__(self, cache: SegmentCache, seq: int) -> None:
        self.view = cache.window(seq)
        self._arrays = cache.version, cache.active_len, cache.parked_len

    def shows(self, cache: SegmentCache) -> bool:
        version, active_len, parked_len = self._arrays
        return (
            version == cache.version
            and active_len is cache.active_len
            and parked_len is cache.parked_len
        )


class HostChecked:
    """See `check.Checked`; overwritten by the next run of the same shape."""

    def __init__(self, bound: _Bound, caches: Sequence[SegmentCache], drafted: Drafted) -> None:
        self._bound, self._caches, self._drafted = bound, caches, drafted
        self.logits = np.asarray(bound.logits, np.float32)
        self.rows = drafted.hidden.shape[1]

    def masses(self, segment: int) -> Masses:
        return self._bound.segments[segment]

    def store(self, segment: int, index: int, count: int) -> None:
        bound, drafted = self._bound.segments[segment], self._drafted
        part = slice(index, index + 1)
        new = [[rows[part, :, :count] for rows in plane] for plane in bound.new]
        positions = drafted.positions[index, :count]
        cache, seq = self._caches[segment], drafted.seqs[index]
        if bound.states and count != self.rows:
            raise ValueError(
                f"expected all {self.rows} rows, which states have read, found {count}"
            )
        cache.extend(new, seq, positions, None)
        cache.states.replace(seq, [made[part].copy() for made in bound.states])
