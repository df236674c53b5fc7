"""Prompts on the host: chunks of NumPy rows through segments that read and write them in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.logits import Logits
from avl_plugins.policies import Plan
from avl_runtime.execute import BoundSegment, HostBackend
from avl_runtime.generate.conversation import Chunk, Conversation, attention_by_position
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.package.manifest import Manifest

CHUNK = 256  # rows; longer chunks are slower on a CPU and hold more scores at once


class HostConversation(Conversation):
    """A conversation whose caches are NumPy arrays.

    Attributes:
        backend: that reads its prompts.
    """

    def __init__(self, backend: HostBackend, manifest: Manifest) -> None:
        dims = manifest.dims
        super().__init__(
            manifest,
            [
                SegmentCache(
                    segment.last_layer - segment.first_layer,
                    1,
                    dims.num_kv_heads,
                    dims.head_dim,
                    backend.dtype,
                )
                for segment in manifest.segments
            ],
        )
        self.backend = backend

    def _run_chunks(
        self, index: int, cache: SegmentCache, rows: Chunk, plan: Plan, logits: Logits
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        last = index == len(self._manifest.segments) - 1
        ranked = plan.prune is not None or plan.split is not None
        outputs = []
        mass = np.zeros((0, self.length), np.float32)
        cache.reserve(cache.top + len(rows.positions))
        for begin in range(0, len(rows.positions), CHUNK):
            chunk = rows.between(begin, begin + CHUNK)
            ends = begin + CHUNK >= len(rows.positions)
            weights = self._row_weights(chunk.positions, ranked and ends, plan.text is not None)
            bound = self._bind(index, chunk, weights)
            bound.run(cache, parked=True, ends=ends, logits=logits if ends else Logits.NONE)
            bound.release()
            if ranked and ends:
                mass = attention_by_position(cache, bound, chunk.positions, self.length)
            new_mass = None
            if plan.text is not None:
                cache.add_mass(0, bound.mass_active[:, 0, :, 1, : cache.active_len[0]])
                new_mass = bound.mass_new[:, :, :, 1]
            cache.extend(bound.k_new, bound.v_new, chunk.positions, new_mass)
            outputs.append(bound.output[0])
        return (outputs[-1] if last else np.concatenate(outputs)), mass

    def _bind(self, index: int, chunk: Chunk, weights: NDArray[np.float32]) -> BoundSegment:
        dtype, ids = self.backend.dtype, np.ascontiguousarray(chunk.position_ids)
        return self.backend.bind(
            index,
            np.ascontiguousarray(chunk.hidden[None], dtype),
            ids if len(ids) == 1 else ids[:, None],
            weights,
            [np.ascontiguousarray(added[None], dtype) for added in chunk.deepstack],
        )
