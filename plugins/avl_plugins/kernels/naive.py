"""Naive references beside the kernels: float64 numpy, loops and sorts, nothing shared with them.

`avl_plugins.reference` says what the ops mean in the types of the schema. These keep float64 to the
end, so that a kernel's error can be told from the rounding of its result, and cover what only the
kernels do: many layers at once, and selections on the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


def attention(
    q: Array,
    k_new: Array,
    v_new: Array,
    k_active: Array,
    v_active: Array,
    active_len: Int64,
    k_parked: Array,
    v_parked: Array,
    parked_len: Int64,
    row_weights: Array,
    scale: float,
) -> tuple[Float64, Float64, Float64, Float64]:
    """`avl::SplitCacheAttention` without any rounding.

    Shapes: `schema.SPLIT_CACHE_ATTENTION`, in any numeric type.

    Returns:
        out [B, H, S, D], and mass on active, parked and new rows [B, Hkv, R, rows].
    """
    batch, heads, new, _ = q.shape
    kv_heads, active, parked = k_active.shape[1], k_active.shape[2], k_parked.shape[2]
    group = heads // kv_heads
    out = np.zeros(q.shape)
    mass = [np.zeros((batch, kv_heads, row_weights.shape[1], n)) for n in (active, parked, new)]
    for b, h, s in np.ndindex(batch, heads, new):
        kv = h // group
        ends = (int(active_len[b]), int(parked_len[b]), s + 1)
        keys = [c[b, kv, :n] for c, n in zip((k_active, k_parked, k_new), ends, strict=True)]
        values = [c[b, kv, :n] for c, n in zip((v_active, v_parked, v_new), ends, strict=True)]
        scores = np.concatenate(keys).astype(np.float64) @ q[b, h, s].astype(np.float64) * scale
        weights = np.exp(scores - scores.max())
        probability = weights / weights.sum()
        out[b, h, s] = probability @ np.concatenate(values).astype(np.float64)
        begin = 0
        for place, n in zip(mass, ends, strict=True):
            share = probability[begin : begin + n] / group
            place[b, kv, :, :n] += np.outer(row_weights[b, :, s].astype(np.float64), share)
            begin += n
    return out, mass[0], mass[1], mass[2]
