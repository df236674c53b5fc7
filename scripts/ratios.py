"""Pairs of figures (old, new), and their ratios as records have them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from avl_runtime.bench.summary import Spread


def compared(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Medians of both in milliseconds, and the ratio new over old with its spread."""
    old, new = (round(1e3 * Spread.of([one[side] for one in pairs]).median, 4) for side in (0, 1))
    return {"old_ms": old, "new_ms": new, "ratio": ratios(pairs)}


def ratios(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """New over old of each pair: median, extremes, quartiles and how many."""
    spread = dataclasses.asdict(Spread.of([new / old for old, new in pairs]))
    return {name: round(value, 4) for name, value in spread.items()} | {"count": len(pairs)}


def of_peaks(found: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Peaks of memory of (old, new) processes, as the JSON has them."""
    old, new = (round(statistics.median(one[side] for one in found)) for side in (0, 1))
    return {"old_bytes": old, "new_bytes": new, "ratio": round(new / old, 4)}


def of_overheads(found: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Of every policy that both measured, the ratio of medians."""
    known = [policy for policy in found[0][0] if policy in found[0][1]]
    return {
        policy: compared(
            [
                (old[policy]["median"] / 1e3, new[policy]["median"] / 1e3)
                for old, new in (tuple(both) for both in found)
            ]
        )
        for policy in known
    }


def sentence(name: str, one: Mapping[str, Any]) -> str:
    ratio = one["ratio"]
    return (
        f"{name}: {one['old_ms']:.3f} ms, now {one['new_ms']:.3f} ms, ratio {ratio['median']:.3f} "
        f"(quartiles {ratio['quartile_1']:.3f}-{ratio['quartile_3']:.3f}, {ratio['count']} pairs)"
    )
