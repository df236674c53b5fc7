#!/usr/bin/env python
"""Time of attention alone in a decode step, dense and under A-VL, in one run.

    .venv/bin/python scripts/attention_part.py --json benchmarks/attention-part.json

Runs the attention nodes of all layers of shape S1 of make_random.py as ONNX Runtime runs them in a
decoder, by the compiled CPU kernel and by standard ops, over caches as large as a policy leaves
them. Before each step other memory is read, as a decoder's weights are. Candidates are interleaved;
a token's time is that of a policy's ordinary steps and its refresh, weighted by how often they
come. `exchange` is what a refresh takes beyond that, to rank the rows and swap those that the core
changes: for queries that have nothing to do with the refresh before, as random weights make them,
and for queries much like it. The kernel does it in the step; for the body it is NumPy's time alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_nodes import (
    CANDIDATES,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    TEXT,
    VISUAL,
    attention_session,
    bound,
    cache_of,
)
from avl_plugins import cpu
from avl_plugins.cpu.host import host
from avl_plugins.cpu.refresh import Refresh
from avl_runtime.bench.surroundings import idle_surroundings
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.kv.moves import exchange
from avl_runtime.machine.huge_pages import huge_pages
from avl_runtime.machine.resources import cores

OTHER = 64 << 20  # bytes read between steps: twice this machine's last cache
ANGLES = {"unrelated": math.pi / 2, "alike": 0.2}  # radians from one refresh's queries to the next


def moved_rows(cache: SegmentCache, count: int, numbers: np.random.Generator) -> float:
    """Seconds that NumPy takes to swap `count` rows of every layer, which are then swapped back."""
    core, apart = int(cache.image_rows[0, 0]), int(cache.parked_len[0, 0])
    spent = 0.0
    for seq in range(cache.batch):
        leaving, entering = np.zeros((LAYERS, core), np.bool_), np.zeros((LAYERS, apart), np.bool_)
        for layer in range(LAYERS):
            leaving[layer, numbers.choice(core, count, replace=False)] = True
            entering[layer, numbers.choice(apart, count, replace=False)] = True
        begun = time.perf_counter()
        exchange(cache, seq, leaving, entering)
        spent += time.perf_counter() - begun
        exchange(cache, seq, leaving, entering)
    return spent


def turn(query: NDArray[np.float32], angle: float, numbers: np.random.Generator) -> None:
    """Turn a query [B, H, 1, D] in place, into a direction drawn at random."""
    away = numbers.standard_normal(query.shape, np.float32)
    query[:] = math.cos(angle) * query + math.sin(angle) * away


@dataclass(slots=True)
class Exchanges:
    """Refreshes of one cache after queries of one kind.

    Attributes:
        rows: how many each layer swapped.
        milliseconds: of the kernel's step with its exchange, and of NumPy's exchange alone.
    """

    rows: list[int]
    milliseconds: dict[str, list[float]]


def measure(threads: int, batch: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Milliseconds a step and a token of each candidate, and their ratios to dense.

    Returns:
        The same for "kernel", the compiled one, and for "body", the op's standard ops.
    """
    sessions = {
        way: attention_session(threads, batch, way == "kernel") for way in ("kernel", "body")
    }
    with huge_pages():
        caches = {name: cache_of(one, batch) for name, one in CANDIDATES.items()}
    numbers = np.random.default_rng(2)
    query = numbers.standard_normal((batch, HEADS, 1, HEAD_DIM), np.float32)
    bindings = {
        (way, name, refresh): bound(session, cache, query, refresh)
        for name, cache in caches.items()
        for refresh in ((False, True) if CANDIDATES[name].parked else (False,))
        for way, session in sessions.items()
    }
    steps: dict[tuple[str, str, bool], list[float]] = {key: [] for key in bindings}
    exchanges = {
        (name, kind): Exchanges([], {way: [] for way in sessions})
        for name, one in CANDIDATES.items()
        if one.parked
        for kind in ANGLES
    }
    refreshes = {
        name: Refresh(
            cache.k_active, cache.k_parked, cache.positions, cache.parked_positions, host()
        )
        for name, cache in caches.items()
    }
    other = np.ones(OTHER // 8)
    for repeat in range(repeats + 2):
        for key, binding in bindings.items():
            other.sum()
            begun = time.perf_counter()
            sessions[key[0]].run_with_iobinding(binding)
            if repeat >= 2:
                steps[key].append((time.perf_counter() - begun) * 1e3)
        for (name, kind), found in exchanges.items():
            cache = caches[name]
            refresh = refreshes[name].of(cache.image_rows)
            turn(query, ANGLES[kind], numbers)
            other.sum()
            begun = time.perf_counter()
            with refresh:
                sessions["kernel"].run_with_iobinding(bindings["kernel", name, True])
            with_exchange = (time.perf_counter() - begun) * 1e3
            count = int(refresh.moved.mean())
            other.sum()
            alone = moved_rows(cache, count, numbers) * 1e3
            if repeat >= 2:
                found.rows.append(count)
                found.milliseconds["kernel"].append(with_exchange)
                found.milliseconds["body"].append(alone)
    return {way: _rows(way, steps, exchanges) for way in sessions}


def _rows(
    way: str,
    steps: Mapping[tuple[str, str, bool], Sequence[float]],
    exchanges: Mapping[tuple[str, str], Exchanges],
) -> dict[str, Any]:
    own = {(name, refresh): times for (by, name, refresh), times in steps.items() if by == way}
    dense = statistics.median(own["dense", False])
    rows: dict[str, Any] = {}
    for name, one in CANDIDATES.items():
        ordinary = statistics.median(own[name, False])
        refresh = statistics.median(own[name, True]) if one.parked else ordinary
        token = ((one.every - 1) * ordinary + refresh) / one.every
        rows[name] = {
            "ordinary_ms": _spread(own[name, False]),
            "refresh_ms": _spread(own[name, True]) if one.parked else None,
            "token_ms": round(token, 3),
            "of_dense": round(token / dense, 4),
            "bytes_say": round(one.bytes_say, 4),
            "exchange": {
                kind: _exchange(found, way, one.core, refresh)
                for (by, kind), found in exchanges.items()
                if by == name
            },
        }
    return rows


def _exchange(found: Exchanges, way: str, core: int, refresh: float) -> dict[str, Any]:
    in_step = refresh if way == "kernel" else 0.0  # the kernel's time is that of the whole step
    return {
        "churn": round(statistics.median(found.rows) / core, 3),
        "ms": _spread([each - in_step for each in found.milliseconds[way]]),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    first, median, third = statistics.quantiles(values, n=4)
    return {
        "median": round(median, 3),
        "quartile_1": round(first, 3),
        "quartile_3": round(third, 3),
    }


def sentence(report: Mapping[str, Any], churns: Mapping[str, Any]) -> str:
    """What a refresh moves, as the documents quote it; `churns` is what churn.py found."""
    usual = "avl:keep=0.5,core=0.3,refresh=3"
    tiny, random = (churns["packages"][name][usual]["median"] for name in ("avl-tiny", "S1-none"))
    rows, bodies = (report["batches"]["1"][way] for way in ("kernel", "body"))
    (most, few), (slow, _) = (
        [way["avl"]["exchange"][kind] for kind in ANGLES] for way in (rows, bodies)
    )
    return (
        f"A refresh replaces {100 * random:.0f} % of the core with random weights (median; "
        f"{100 * tiny:.0f} % with avl-tiny's trained ones, `scripts/churn.py`, "
        "[JSON](benchmarks/churn.json)), and rows change places: at S1 that takes "
        f"{most['ms']['median']:.1f} ms for {100 * most['churn']:.0f} % of the core and "
        f"{few['ms']['median']:.1f} ms for {100 * few['churn']:.0f} %, where dense attention takes "
        f"{rows['dense']['token_ms']:.1f} ms a token and A-VL's {rows['avl']['token_ms']:.1f} ms; "
        f"without the compiled kernel they take {bodies['dense']['token_ms']:.1f} and "
        f"{bodies['avl']['token_ms']:.1f} ms, and the {100 * slow['churn']:.0f} % "
        f"{slow['ms']['median']:.1f} ms "
        "(`scripts/attention_part.py`, [JSON](benchmarks/attention-part.json))."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--repeats", type=int, default=120)
    parser.add_argument("--idle-wait", type=float, default=60)
    parsed = parser.parse_args(arguments)
    if cpu.library() is None:
        parser.error("expected the compiled CPU kernels, found none; avl-doctor says why")
    shape = {"layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    report = {
        "shape": shape | {"visual_tokens": VISUAL, "text_tokens": TEXT},
        **idle_surroundings(parsed.threads, parsed.idle_wait),
        "batches": {
            batch: measure(parsed.threads, int(batch), parsed.repeats)
            for batch in parsed.batches.split(",")
        },
    }
    for batch, ways in report["batches"].items():
        for way, rows in ways.items():
            for name, row in rows.items():
                print(
                    f"batch {batch}, {way}, {name}: {row['token_ms']:.2f} ms, "
                    f"{row['of_dense']:.3f} of dense (bytes say {row['bytes_say']:.3f}); "
                    f"exchange {row['exchange']}"
                )
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
