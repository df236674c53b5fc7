"""Naive references beside the kernels: float64 numpy, loops and sorts, nothing shared with them.

`avl_plugins.reference` says what the op means in the types of the schema. These keep float64 to the
end, so that a kernel's error can be told from the rounding of its result, and cover what only the
kernels do: moves of rows, and selections on the device.
"""

from __future__ import annotations

import math
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
    standing: tuple[Array, Int64, Int64, Int64] | None = None,
) -> tuple[Float64, Float64, Float64, Float64]:
    """`avl::SplitCacheAttention` without any rounding; with `standing` `RestoredCacheAttention`.

    Shapes: `schema.RESTORED_CACHE_ATTENTION`, in any numeric type.

    Args:
        standing: nearness, and where new, active and parked rows stand.

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
        if standing is not None:
            nearness, rows, *cached = standing
            active_at, parked_at = (at[b, min(kv, at.shape[1] - 1)] for at in cached)
            places = zip((active_at, parked_at, rows[b]), ends, strict=True)
            stood = np.concatenate([at[:n] for at, n in places])
            scores += [_bias(nearness, rows[b, s], key) for key in stood]
        weights = np.exp(scores - scores.max())
        probability = weights / weights.sum()
        out[b, h, s] = probability @ np.concatenate(values).astype(np.float64)
        begin = 0
        for place, n in zip(mass, ends, strict=True):
            share = probability[begin : begin + n] / group
            place[b, kv, :, :n] += np.outer(row_weights[b, :, s].astype(np.float64), share)
            begin += n
    return out, mass[0], mass[1], mass[2]


def _bias(nearness: Array, row: Int64, key: Int64) -> float:
    """ln(s (2 - D)) of RESTORE for one row and one key, 0 if one stands for no token."""
    if not (row[-1] and key[-1]):
        return 0.0
    apart = [abs(int(m) - int(n)) for m, n in zip(row[:-1], key[:-1], strict=True)]
    near = sum(float(nearness[axis, distance]) for axis, distance in enumerate(apart))
    return math.log(int(key[-1]) * (2 - near))


def move_rows(
    k_active: Array,
    v_active: Array,
    k_parked: Array,
    v_parked: Array,
    k_new: Array,
    v_new: Array,
    source: Int64,
    destination: Int64,
) -> None:
    """Moves of rows in place, one after another from a copy of all: reads come before all writes.

    Args:
        k_active, v_active, k_parked, v_parked, k_new, v_new: [B, Hkv, A | P | S, D], in any type.
        source, destination: [B, Hkv, M], addresses: 0 to A-1 are active rows, A to A+P-1 parked
            ones, A+P to A+P+S-1 new ones. A destination is a cached row that is written once, or
            -1 for no move.

    Raises:
        IndexError: an address is past the rows.
    """
    active, parked = k_active.shape[2], k_parked.shape[2]
    for a, p, n in ((k_active, k_parked, k_new), (v_active, v_parked, v_new)):
        before = np.concatenate([a, p, n], axis=2)
        for b, h, m in np.ndindex(source.shape):
            to = int(destination[b, h, m])
            if 0 <= to < active:
                a[b, h, to] = before[b, h, source[b, h, m]]
            elif to >= active:
                if to >= active + parked:
                    raise IndexError(f"destination {to} is past the {active + parked} cached rows")
                p[b, h, to - active] = before[b, h, source[b, h, m]]


def exchange(
    mass_active: Array, mass_parked: Array, positions: Int64, parked_positions: Int64, capacity: int
) -> list[tuple[int, int]]:
    """The moves of a refresh of one layer and sequence, each a source and a destination address.

    Args:
        mass_active, mass_parked: [Hkv, core] and [Hkv, parked], the last row's attention.
        positions, parked_positions: [core] and [parked], which break ties.
        capacity: A, the address of the first parked row.
    """
    core = mass_active.shape[1]
    scores = np.zeros(core + mass_parked.shape[1], np.float32)
    for head in np.concatenate([mass_active, mass_parked], axis=1):
        scores += head
    order = [*positions, *parked_positions]
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], order[i]))
    leaving = sorted(set(range(core)) - set(ranked[:core]))
    entering = sorted(set(ranked[:core]) - set(range(core)))
    moves: list[tuple[int, int]] = []
    for slot, row in zip(leaving, entering, strict=True):
        moves += [(capacity + row - core, slot), (slot, capacity + row - core)]
    return moves


def eviction(
    gathered: Array, positions: Int64, evictable: npt.NDArray[np.bool_], budget: int, recent: int
) -> list[tuple[int, int]]:
    """The moves that bring one head's text down to `budget` rows, `recent` of them the newest.

    Args:
        gathered, positions, evictable: [active rows], attention so far, token and whether the row
            may go.
    """
    text = [int(slot) for slot in np.flatnonzero(evictable)]
    if len(text) <= budget:
        return []
    by_age = sorted(text, key=lambda slot: -positions[slot])
    newest, rest = by_age[:recent], by_age[recent:]
    heavy = sorted(rest, key=lambda slot: (-gathered[slot], positions[slot]))[: budget - recent]
    dropped = set(text) - set(newest) - set(heavy)
    remaining = len(positions) - len(dropped)
    holes = sorted(slot for slot in dropped if slot < remaining)
    movers = [slot for slot in range(remaining, len(positions)) if slot not in dropped]
    return list(zip(movers, holes, strict=True))
