"""Rows that the windows of layers leave behind."""

from __future__ import annotations

import numpy as np

from avl_runtime.kv.by_layer import alike
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.kv.moves import evict


def leave_behind(cache: SegmentCache, seq: int, position: int) -> bool:
    """Drop a sequence's rows that a row at `position`, and none behind it, sees; whether there are.

    A row sees `window` positions, its own included.
    """
    gone = [
        () if window is None else _behind(cache, layer, seq, position - window)
        for layer, window in enumerate(cache.windows)
    ]
    if not any(map(len, gone)):
        return False
    cache.claim()
    heads = cache.positions.shape[2]
    for first, last in alike(list(map(len, gone))):
        if len(gone[first]):
            slots = np.stack([np.asarray(gone[layer]) for layer in range(first, last)])
            evict(cache, seq, np.repeat(slots[:, None], heads, 1), first)
    cache.settle()
    return True


def _behind(cache: SegmentCache, layer: int, seq: int, last: int) -> tuple[int, ...]:
    """Slots of active rows at position `last` or before, ascending; the same in every KV head."""
    if last < 0:
        return ()
    held = cache.positions[layer, seq, 0, : cache.active_len[layer, seq]]
    return tuple(np.flatnonzero(held <= last).tolist())
