"""Decode steps on the host: buffers are bound once and written in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins import graph_io
from avl_plugins.cpu.host import host
from avl_plugins.policies import Action, TextBudget, Tokens
from avl_plugins.policies.declared import is_refresh_by_attention, is_text_budget, refresh_fits
from avl_runtime.execute.check import Drafted
from avl_runtime.execute.host.check import HostChecked, HostChecks
from avl_runtime.execute.host.segments import (
    BoundSegment,
    HostBackend,
    causal_reach,
    no_standing,
)
from avl_runtime.execute.protocol import Member, Step
from avl_runtime.kv.append import Appender
from avl_runtime.kv.cache import Ints, SegmentCache
from avl_runtime.kv.sight import Masses, core_and_parked_rows
from avl_runtime.package.manifest import Manifest


class HostBatch:
    """See `protocol.Batch`.

    Args:
        caches: of each segment, all sequences in one.
    """

    def __init__(
        self,
        backend: HostBackend,
        manifest: Manifest,
        caches: list[SegmentCache],
        members: Sequence[Member],
    ) -> None:
        dims, batch = manifest.dims, len(members)
        self.caches = caches
        self._members = list(members)
        self._hidden = np.zeros((batch, 1, graph_io.width(dims, 0)), backend.dtype)
        axes = () if dims.position_axes == 1 else (dims.position_axes,)
        self._position_ids: Ints = np.zeros((*axes, batch, 1), np.int64)
        self._positions: Ints = np.zeros(batch, np.int64)
        text_only = np.zeros((batch, 1, dims.hidden_size), backend.dtype)
        # Where text stays nobody reads the attention that keys received from text rows.
        self._gathers = [each.evicts for each in members]
        self._evicts = any(self._gathers)
        weights = np.ones((batch, 2 if self._evicts else 1, 1), np.float32)
        self._segments: list[BoundSegment] = []
        self._appenders: list[Appender] = []
        rows: NDArray[Any] = self._hidden
        self._standing = no_standing(batch, 1, dims.position_axes)
        reach = causal_reach(self._positions[:, None], self._standing)
        for index, segment in enumerate(manifest.segments):
            deepstack = [text_only] * len(segment.deepstack)
            bound = backend.bind(index, rows, self._position_ids, weights, deepstack, reach=reach)
            self._segments.append(bound)
            self._appenders.append(Appender(bound.new, self._positions, host()))
            rows = bound.output
        self._logits = rows
        self._offered = [False] * batch  # whether the last step might refresh a sequence
        self._refreshed = [False] * len(self._segments)
        self._checks = HostChecks(backend, manifest)

    def run(self, step: Step) -> NDArray[np.float32]:
        self._hidden[:, 0] = step.hidden
        self._position_ids[..., 0] = step.position_ids[0]
        self._positions[:] = step.positions
        self._standing[...] = 0
        if step.standing is not None:
            ids = step.position_ids[0][:, None]
            self._standing[...] = step.standing.of_new(step.positions[:, None], ids)
        reads = step.reads_parked
        ranked = self._evicts or any(
            one.moves and one.ranking.reads_attention for actions in step.due for one in actions
        )
        self._offered = [
            read and self._is_declared(seq, actions)
            for seq, (actions, read) in enumerate(zip(step.due, reads, strict=True))
        ]
        for index, (bound, cache) in enumerate(zip(self._segments, self.caches, strict=True)):
            core = None
            if any(self._offered):
                cache.own()
                core = cache.image_rows
                if not all(self._offered):
                    core = np.where(self._offered, core, 0)
            parked_len = None
            if any(reads):
                parked_len = cache.parked_len
                if not all(reads):
                    parked_len = np.where(reads, parked_len, 0)
            self._refreshed[index] = bound.run(
                cache,
                parked_len,
                masses=ranked,
                core=core,
                logits=step.logits,
                standing=step.standing,
            )
        return np.asarray(self._logits[:, 0], np.float32)

    def _is_declared(self, seq: int, actions: Sequence[Action]) -> bool:
        """Whether the kernel's refresh is all that `actions` decide about image rows."""
        about_images = [action for action in actions if action.tokens is Tokens.IMAGE]
        if len(about_images) != 1 or not is_refresh_by_attention(about_images[0]):
            return False
        total = self._members[seq].image_tokens
        return all(
            refresh_fits(about_images[0], total, _decided(cache, seq)) for cache in self.caches
        )

    def did(self, segment: int, seq: int, action: Action) -> bool:
        return action.reads_parked and self._offered[seq] and self._refreshed[segment]

    def masses(self, segment: int) -> Masses:
        return self._segments[segment]

    def append(self, segment: int, steps: int) -> None:
        cache = self.caches[segment]
        masses = self._segments[segment] if self._evicts else None
        # Not kept: it would keep the batch, and all its rows, until cycles are looked for.
        release = partial(self._release, segment)
        self._appenders[segment].append(cache, masses, self._gathers, steps, release)
        bound = self._segments[segment]
        bound.states = cache.states.exchange(bound.states)

    def evict(self, segment: int, seq: int, action: Action) -> bool:
        if not isinstance(action, TextBudget) or not is_text_budget(action):
            return False
        member = self._members[seq]
        stay = action.budget(member.text_after_image)
        return self._appenders[segment].evict(
            self.caches[segment], seq, member.evictable_mask, stay, action.ranking.recent(stay)
        )

    def check(self, drafted: Drafted, steps: int) -> HostChecked:
        rows = drafted.hidden.shape[1]
        for index, cache in enumerate(self.caches):
            if cache.forked or cache.spare < rows:
                self._release(index)
                cache.make_room(steps, rows)
        return self._checks.run(self.caches, drafted)

    def _release(self, segment: int) -> None:
        """Let go of a segment's rows, as its cache is about to replace them."""
        self._segments[segment].release()
        self._checks.release(segment)


def _decided(cache: SegmentCache, seq: int) -> Iterator[tuple[int, int]]:
    """Core and parked rows of layers that policies decide about."""
    rows = zip(core_and_parked_rows(cache, seq), cache.windows, strict=True)
    return (each for each, window in rows if window is None)
