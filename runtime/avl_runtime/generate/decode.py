"""Decode: one token a step for a batch of conversations, and A-VL's moves between steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.logits import Logits
from avl_plugins.policies import Plan
from avl_runtime.execute import BoundSegment, HostBackend
from avl_runtime.generate.conversation import Conversation
from avl_runtime.generate.selection import HostSelection, placement
from avl_runtime.kv.cache import Floats, SegmentCache, stacked
from avl_runtime.package.manifest import Manifest
from avl_runtime.prompts.embedding import Embedding


class Decoder:
    """Runs decode steps over conversations whose prompts have been read.

    The caches of several conversations are stacked into one batch, which ends their use as single
    conversations; one conversation keeps its caches. Buffers are bound once, written in place.
    """

    def __init__(
        self,
        backend: HostBackend,
        manifest: Manifest,
        embedding: Embedding,
        conversations: Sequence[Conversation],
        plan: Plan,
        max_steps: int,
    ) -> None:
        dims, batch = manifest.dims, len(conversations)
        self._conversations = list(conversations)
        self._embedding = embedding
        self._plan = plan
        self._steps_left = max_steps
        self.step = 0
        self.refreshed = False  # whether the last step read parked rows and chose a new core
        self._selection = HostSelection(plan, self._conversations)
        self.caches = [
            stacked(list(segment), max_steps)
            for segment in zip(*(c.caches for c in conversations), strict=True)
        ]
        for conversation in conversations:
            # The batch owns the rows from here on; single caches gave them up.
            conversation.caches = self.caches if batch == 1 else []
        self._hidden = np.zeros((batch, 1, dims.hidden_size), backend.dtype)
        self._positions = np.zeros(batch, np.int64)  # indices of the newest tokens
        axes = () if dims.position_axes == 1 else (dims.position_axes,)
        self._position_ids = np.zeros((*axes, batch, 1), np.int64)
        text_only = np.zeros((batch, 1, dims.hidden_size), backend.dtype)
        # Where text stays nobody reads the attention that keys received from text rows.
        weights = np.ones((batch, 1 if plan.text is None else 2, 1), np.float32)
        self._segments: list[tuple[BoundSegment, SegmentCache, int]] = []
        rows: NDArray[Any] = self._hidden
        for index, (segment, cache) in enumerate(zip(manifest.segments, self.caches, strict=True)):
            deepstack = [text_only] * len(segment.deepstack)
            bound = backend.bind(index, rows, self._position_ids, weights, deepstack)
            self._segments.append((bound, cache, segment.first_layer))
            rows = bound.output
        self._logits = rows

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)

    def placement(
        self, seq: int, image_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """As `selection.placement`."""
        return placement(self.caches, seq, image_mask)

    def run(
        self,
        tokens: NDArray[np.int64],
        alive: NDArray[np.bool_],
        logits: Logits = Logits.ALL,
    ) -> NDArray[np.float32]:
        """One step: the newest token of each sequence in, the next token's logits [B, V] out.

        Args:
            tokens: [B]; ignored where not alive.
            alive: [B]; finished sequences add no rows.
            logits: which of them the caller reads.
        """
        self.step += 1
        seqs = [seq for seq, lives in enumerate(alive.tolist()) if lives]
        for seq in seqs:
            conversation = self._conversations[seq]
            self._positions[seq] = conversation.length
            self._position_ids[..., seq, 0] = conversation.next_position
            conversation.grow([int(tokens[seq])])
        self._hidden[:, 0] = self._embedding.lookup(tokens)
        split = self._plan.split
        self.refreshed = split is not None and split.is_refresh(self.step)
        selects = self.refreshed or self._plan.text is not None
        done = [
            bound.run(
                cache,
                parked=self.refreshed,
                masses=selects,
                core=self._selection.core(cache, seqs, self.step),
                logits=logits,
            )
            for bound, cache, _ in self._segments
        ]
        # A run leaves neither code nor data of ours in the processor's caches. Rows move after the
        # last one, so that a step fetches what moves them once and not once a segment.
        for (bound, cache, first_layer), refreshed in zip(self._segments, done, strict=True):
            self._selection.follow(
                cache,
                first_layer,
                bound if selects else None,
                seqs,
                self.step,
                partial(self._append, bound, cache, alive),
                refreshed,
            )
        self._steps_left -= 1
        return np.asarray(self._logits[:, 0], np.float32)

    def _append(
        self,
        bound: BoundSegment,
        cache: SegmentCache,
        alive: NDArray[np.bool_],
        new_mass: Floats | None,
    ) -> None:
        """Add the step's new rows to a segment's cache."""
        if cache.is_full:
            bound.release()
        cache.append(bound.k_new, bound.v_new, self._positions, new_mass, alive, self._steps_left)
