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
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from avl_plugins import cpu
from avl_plugins.cpu.refresh import Refresh
from avl_plugins.function import attention_node_attributes, split_cache_attention_functions
from avl_plugins.policies import parse
from avl_plugins.schema import SPLIT_CACHE_ATTENTION
from avl_runtime.bench.idle import wait_idle
from avl_runtime.bench.surroundings import machine
from avl_runtime.cache import SegmentCache
from avl_runtime.huge_pages import huge_pages
from avl_runtime.moves import exchange
from avl_runtime.resources import cores

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 8, 16, 16, 64
VISUAL, TEXT = 2880, 128  # at a reply's begin
OTHER = 64 << 20  # bytes read between steps: twice this machine's last cache
ANGLES = {"unrelated": math.pi / 2, "alike": 0.2}  # radians from one refresh's queries to the next
_OP = SPLIT_CACHE_ATTENTION


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy's cache: image rows that are active and parked, and steps from refresh to refresh.

    Attributes:
        bytes_say: its rows read a token over dense attention's.
    """

    core: int
    parked: int = 0
    every: int = 1

    @property
    def bytes_say(self) -> float:
        read = self.core + TEXT + self.parked / self.every
        return read / (VISUAL + TEXT)


def candidate(policy: str) -> Candidate:
    """The cache that `policy` leaves."""
    split = parse(policy).plan().split
    if split is None:
        return Candidate(VISUAL)
    core, kept = round(split.core * VISUAL), round(split.keep * VISUAL)
    return Candidate(core, kept - core, split.refresh)


CANDIDATES = {name: candidate(name) for name in ("dense", "avl", "avl:core=0.1,refresh=8")}


def attention_session(threads: int, batch: int, kernels: bool) -> ort.InferenceSession:
    """The attention nodes of all layers, each with a cache of its own."""
    sizes = {"B": batch, "H": HEADS, "Hkv": KV_HEADS, "D": HEAD_DIM, "S": 1}
    elements = {"T": TensorProto.FLOAT, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    shared = {"q", "k_new", "v_new", "row_weights", "parked_len", "active_len"}
    given: dict[str, Any] = {}
    made, nodes = [], []
    for layer in range(LAYERS):
        names = [v.name if v.name in shared else f"{v.name}.{layer}" for v in _OP.inputs]
        outputs = [f"{v.name}.{layer}" for v in _OP.outputs]
        for values, named, into in ((_OP.inputs, names, given), (_OP.outputs, outputs, None)):
            for value, name in zip(values, named, strict=True):
                shape = [sizes.get(dim, f"{dim}") for dim in value.shape]
                info = helper.make_tensor_value_info(name, elements[value.dtype], shape)
                if into is None:
                    made.append(info)
                else:
                    into[name] = info
        attributes: dict[str, Any] = attention_node_attributes(HEAD_DIM**-0.5)
        nodes.append(helper.make_node(_OP.name, names, outputs, domain=_OP.domain, **attributes))
    model = helper.make_model(
        helper.make_graph(nodes, "attention", list(given.values()), made),
        functions=split_cache_attention_functions(23, (HEADS, KV_HEADS)),
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(_OP.domain, _OP.version)],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if kernels:
        options.register_custom_ops_library(str(cpu.library()))
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def cache_of(candidate: Candidate, batch: int) -> SegmentCache:
    """Random rows as a policy leaves them in the middle of a reply."""
    numbers = np.random.default_rng(0)
    cache = SegmentCache(LAYERS, batch, KV_HEADS, HEAD_DIM, np.dtype(np.float32))

    def rows(count: int) -> list[NDArray[np.float32]]:
        shape = (batch, KV_HEADS, count, HEAD_DIM)
        return [numbers.standard_normal(shape, np.float32) for _ in range(LAYERS)]

    active = candidate.core + TEXT
    cache.k_active, cache.v_active = rows(active), rows(active)
    cache.positions = np.zeros((LAYERS, batch, KV_HEADS, active), np.int64) + np.arange(active)
    cache.active_len[:], cache.image_rows[:] = active, candidate.core
    if candidate.parked:
        cache.k_parked, cache.v_parked = rows(candidate.parked), rows(candidate.parked)
        cache.parked_positions = active + np.broadcast_to(
            np.arange(candidate.parked), (LAYERS, batch, candidate.parked)
        )
        cache.parked_len[:] = candidate.parked
    return cache


def bound(
    session: ort.InferenceSession, cache: SegmentCache, row: NDArray[np.float32], refresh: bool
) -> ort.IOBinding:
    """A step's inputs and outputs, bound to memory once, as the backend does it; `row` is q.

    Masses are made where they are read, at a refresh.
    """
    batch, weightings = len(cache.active_len), 2 if refresh else 0
    nothing = [np.zeros((batch, KV_HEADS, 1, HEAD_DIM), np.float32)] * LAYERS
    arrays = {
        "q": row,
        "k_new": row[:, :KV_HEADS].copy(),
        "v_new": row[:, :KV_HEADS].copy(),
        "row_weights": np.ones((batch, weightings, 1), np.float32),
        "active_len": cache.active_len,
        "parked_len": cache.parked_len if refresh else np.zeros(batch, np.int64),
    }
    per_layer = {
        "k_active": cache.k_active,
        "v_active": cache.v_active,
        "k_parked": cache.k_parked if refresh else nothing,
        "v_parked": cache.v_parked if refresh else nothing,
    }
    for name, layers in per_layer.items():
        arrays |= {f"{name}.{layer}": rows for layer, rows in enumerate(layers)}
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for layer in range(LAYERS):
        keys = {"active": cache.k_active[layer], "parked": per_layer["k_parked"][layer]}
        shapes = {
            f"mass_{kind}": (batch, KV_HEADS, weightings, k.shape[2]) for kind, k in keys.items()
        }
        shapes |= {"out": row.shape, "mass_new": (batch, KV_HEADS, weightings, 1)}
        for name, shape in shapes.items():
            array = np.empty(shape, np.float32)
            binding.bind_ortvalue_output(f"{name}.{layer}", ort.OrtValue.ortvalue_from_numpy(array))
    return binding


def moved_rows(cache: SegmentCache, count: int, numbers: np.random.Generator) -> float:
    """Seconds that NumPy takes to swap `count` rows of every layer, which are then swapped back."""
    core, apart = int(cache.image_rows[0]), int(cache.parked_len[0])
    spent = 0.0
    for row in range(len(cache.active_len)):
        leaving, entering = np.zeros((LAYERS, core), np.bool_), np.zeros((LAYERS, apart), np.bool_)
        for layer in range(LAYERS):
            leaving[layer, numbers.choice(core, count, replace=False)] = True
            entering[layer, numbers.choice(apart, count, replace=False)] = True
        begun = time.perf_counter()
        exchange(cache, row, leaving, entering)
        spent += time.perf_counter() - begun
        exchange(cache, row, leaving, entering)
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
            refresh = Refresh(
                cache.k_active, cache.image_rows, cache.positions, cache.parked_positions
            )
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
    """What a refresh moves, as the README quotes it; `churns` is what churn.py found."""
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
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--idle-wait", type=float, default=60)
    parsed = parser.parse_args(arguments)
    if cpu.library() is None:
        parser.error("expected the compiled CPU kernels, found none; avl-doctor says why")
    busy = wait_idle(parsed.idle_wait)
    shape = {"layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    report = {
        "shape": shape | {"visual_tokens": VISUAL, "text_tokens": TEXT},
        "threads": parsed.threads,
        "busy_before": busy,
        "machine": machine(),
        "onnxruntime": ort.__version__,
        "date": time.strftime("%Y-%m-%d"),
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
