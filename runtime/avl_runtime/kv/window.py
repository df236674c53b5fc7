"""Rows that the windows of layers leave behind."""

from __future__ import annotations

import numpy as np

from avl_runtime.kv.by_layer import alike
from avl_runtime.kv.cache import Ints, SegmentCache
from avl_runtime.kv.moves import evict

_NO_ROWS: Ints = np.empty(0, np.int64)


def leave_behind(cache: SegmentCache, seq: int, position: int) -> bool:
    """Drop a sequence's rows that a row at `position`, and none behind it, sees; whether there are.

    A row sees `window` positions, its own included.
    """
    gone = [
        _NO_ROWS if window is None else _behind(cache, layer, seq, position - window)
        for layer, window in enumerate(cache.windows)
    ]
    counts = list(map(len, gone))
    if not any(counts):
        return False
    cache.claim()
    heads = cache.positions.shape[2]
    for first, last in alike(counts):
        if counts[first]:
            slots = np.stack(gone[first:last])
            evict(cache, seq, np.repeat(slots[:, None], heads, 1), first)
    cache.settle()
    return True


def _behind(cache: SegmentCache, layer: int, seq: int, last: int) -> Ints:
    """Slots of active rows at position `last` or before, ascending; the same in every KV head."""
    if last < 0:
        return _NO_ROWS
    held = cache.positions[layer, seq, 0, : cache.active_len[layer, seq]]
    return np.flatnonzero(held <= last)
