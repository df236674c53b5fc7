#!/usr/bin/env python
"""Time of attention alone in a prompt, by the compiled CPU kernel and by standard ops, in one run.

    .venv/bin/python scripts/prompt_part.py --json benchmarks/prompt-part.json

Runs the attention nodes of all layers of shape S1 of make_random.py as ONNX Runtime runs them in a
decoder: over a prompt of 3008 rows in chunks of 256, of which the last ranks its rows, and over a
few rows behind such a prompt, as a chat's turn or a verified draft has them. The kernel runs in
float32, and where there is AMX for it in bf16, from 64 rows on. The ways are interleaved. Beside
wall time there is the processor's, which other programs change less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from attention_nodes import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    TEXT,
    VISUAL,
    attention_session,
)
from avl_plugins import cpu
from avl_plugins.cpu.host import host
from avl_runtime.bench.surroundings import idle_surroundings
from avl_runtime.machine.resources import cores

PROMPT = VISUAL + TEXT
CHUNK = 256
LEAST = 64  # rows that are computed in bf16
COMPUTES = {"kernel": "fp32", "kernel in bf16": "bf16"}
BODY = "body"


def chunks(rows: int) -> list[tuple[int, int]]:
    """What is read and when: rows cached before and new rows, of each run."""
    if rows < CHUNK:
        return [(PROMPT, rows)]
    return [(begin, min(CHUNK, rows - begin)) for begin in range(0, rows, CHUNK)]


def inputs(
    cached: int, rows: int, numbers: np.random.Generator, cache: Sequence[NDArray[np.float32]]
) -> dict[str, NDArray[Any]]:
    """A run's inputs; the row behind the prompt has a weight, as where a policy ranks by it."""

    def normal(heads: int) -> NDArray[np.float32]:
        return numbers.standard_normal((1, heads, rows, HEAD_DIM), np.float32)

    weights = np.zeros((1, 2, rows), np.float32)
    weights[0, 0, -1] = cached + rows >= PROMPT
    nothing = np.zeros((1, KV_HEADS, 1, HEAD_DIM), np.float32)
    given: dict[str, NDArray[Any]] = {
        "q": normal(HEADS),
        "k_new": normal(KV_HEADS),
        "v_new": normal(KV_HEADS),
        "row_weights": weights,
        "active_len": np.array([cached]),
        "parked_len": np.array([0]),
    }
    for layer in range(LAYERS):
        given |= {f"{part}_active.{layer}": cache[2 * layer + i] for i, part in enumerate("kv")}
        given |= {f"{part}_parked.{layer}": nothing for part in "kv"}
    return given


def bound(session: ort.InferenceSession, given: Mapping[str, NDArray[Any]]) -> ort.IOBinding:
    """A run's inputs, and outputs in memory that ONNX Runtime takes."""
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return binding


def ways_of(rows: int) -> tuple[str, ...]:
    """What is compared for so many new rows."""
    kernels = host()
    has_amx = rows >= LEAST and kernels is not None and kernels.runs_amx()
    return (*(COMPUTES if has_amx else ("kernel",)), BODY)


def measure(threads: int, rows: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of each way, of the wall and of the processor, and a kernel's over the body's.

    A ratio is the median of those of one repeat each.
    """
    numbers = np.random.default_rng(0)
    shape = (1, KV_HEADS, PROMPT + 64, HEAD_DIM)
    cache = [numbers.standard_normal(shape, np.float32) for _ in range(2 * LAYERS)]
    runs = [inputs(cached, new, numbers, cache) for cached, new in chunks(rows)]
    ways = ways_of(rows)
    sessions = {
        way: attention_session(
            threads, 1, way != BODY, one_row=False, compute=COMPUTES.get(way, "fp32")
        )
        for way in ways
    }
    bindings = {way: [bound(one, given) for given in runs] for way, one in sessions.items()}
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, session in sessions.items():
            wall, spent = time.perf_counter(), time.process_time()
            for binding in bindings[way]:
                session.run_with_iobinding(binding)
            if repeat:
                times[way].append((time.perf_counter() - wall, time.process_time() - spent))
    found: dict[str, Any] = {}
    for way in ways:
        wall_ms, spent_ms = (
            statistics.median(each) * 1e3 for each in zip(*times[way], strict=True)
        )
        found[way] = {"wall_ms": round(wall_ms, 2), "processor_ms": round(spent_ms, 2)}
    for way in ways[:-1]:
        pairs = list(zip(times[way], times[BODY], strict=True))
        for place, name in enumerate(("wall", "processor")):
            ratio = statistics.median(own[place] / other[place] for own, other in pairs)
            found[way][f"{name}_of_body"] = round(ratio, 3)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rows", default=f"{PROMPT},64,8", help="new rows of each measurement")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--idle-wait", type=float, default=60)
    parsed = parser.parse_args(arguments)
    if cpu.library() is None:
        parser.error("expected the compiled CPU kernels, found none; avl-doctor says why")
    shape = {"layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    report = {
        "shape": shape | {"prompt": PROMPT, "chunk": CHUNK},
        **idle_surroundings(parsed.threads, parsed.idle_wait),
        "rows": {
            rows: measure(parsed.threads, int(rows), parsed.repeats)
            for rows in parsed.rows.split(",")
        },
    }
    for rows, found in report["rows"].items():
        print(f"{rows} rows: {found}")
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
