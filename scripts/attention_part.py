#!/usr/bin/env python
"""Time of attention alone in a decode step, dense and under A-VL, in one run.

    .venv/bin/python scripts/attention_part.py --json benchmarks/attention-part.json

Runs the attention nodes of all layers of shape S1 of make_random.py as ONNX Runtime runs them in a
decoder, by the compiled CPU kernel and by standard ops, over caches as large as a policy leaves
them. Before each step other memory is read, as a decoder's weights are. Candidates are interleaved;
a token's time is that of a policy's ordinary steps and its refresh, weighted by how often they
come. The rows that a refresh exchanges are moved outside the graph: `exchange_ms` is that, once for
a churn as random weights have it (two fifths of the core) and once for a tenth.
"""

from __future__ import annotations

import argparse
import json
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
CHURN = (0.4, 0.1)
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
    cache.positions = np.zeros((LAYERS, batch, KV_HEADS, active), np.int64)
    cache.active_len[:], cache.image_rows[:] = active, candidate.core
    if candidate.parked:
        cache.k_parked, cache.v_parked = rows(candidate.parked), rows(candidate.parked)
        cache.parked_positions = np.zeros((LAYERS, batch, candidate.parked), np.int64)
        cache.parked_len[:] = candidate.parked
    return cache


def bound(session: ort.InferenceSession, cache: SegmentCache, refresh: bool) -> ort.IOBinding:
    """A step's inputs and outputs, bound to memory once, as the backend does it.

    Masses are made where they are read, at a refresh.
    """
    batch, weightings = len(cache.active_len), 2 if refresh else 0
    row = np.random.default_rng(1).standard_normal((batch, HEADS, 1, HEAD_DIM), np.float32)
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


def swapped(cache: SegmentCache, churn: float, numbers: np.random.Generator) -> float:
    """Seconds that the exchange of one refresh takes."""
    core, apart = int(cache.image_rows[0]), int(cache.parked_len[0])
    count = min(int(churn * core), apart)
    spent = 0.0
    for row in range(len(cache.active_len)):
        leaving, entering = np.zeros((LAYERS, core), np.bool_), np.zeros((LAYERS, apart), np.bool_)
        for layer in range(LAYERS):
            leaving[layer, numbers.choice(core, count, replace=False)] = True
            entering[layer, numbers.choice(apart, count, replace=False)] = True
        begun = time.perf_counter()
        exchange(cache, row, leaving, entering)
        spent += time.perf_counter() - begun
    return spent


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
    bindings = {
        (way, name, refresh): bound(session, cache, refresh)
        for name, cache in caches.items()
        for refresh in ((False, True) if CANDIDATES[name].parked else (False,))
        for way, session in sessions.items()
    }
    steps: dict[tuple[str, str, bool], list[float]] = {key: [] for key in bindings}
    moves: dict[tuple[str, float], list[float]] = {
        (name, churn): [] for name, one in CANDIDATES.items() if one.parked for churn in CHURN
    }
    other, numbers = np.ones(OTHER // 8), np.random.default_rng(2)
    for repeat in range(repeats + 2):
        for key, binding in bindings.items():
            other.sum()
            begun = time.perf_counter()
            sessions[key[0]].run_with_iobinding(binding)
            if repeat >= 2:
                steps[key].append((time.perf_counter() - begun) * 1e3)
        for (name, churn), spent in moves.items():
            other.sum()
            once = swapped(caches[name], churn, numbers) * 1e3
            if repeat >= 2:
                spent.append(once)
    return {way: _rows(way, steps, moves) for way in sessions}


def _rows(
    way: str,
    steps: Mapping[tuple[str, str, bool], Sequence[float]],
    moves: Mapping[tuple[str, float], Sequence[float]],
) -> dict[str, Any]:
    own = {(name, refresh): times for (by, name, refresh), times in steps.items() if by == way}
    dense = statistics.median(own["dense", False])
    return {name: _row(name, one, dense, own, moves) for name, one in CANDIDATES.items()}


def _row(
    name: str,
    one: Candidate,
    dense: float,
    steps: Mapping[tuple[str, bool], Sequence[float]],
    moves: Mapping[tuple[str, float], Sequence[float]],
) -> dict[str, Any]:
    ordinary = statistics.median(steps[name, False])
    refresh = statistics.median(steps[name, True]) if one.parked else ordinary
    token = ((one.every - 1) * ordinary + refresh) / one.every
    return {
        "ordinary_ms": _spread(steps[name, False]),
        "refresh_ms": _spread(steps[name, True]) if one.parked else None,
        "token_ms": round(token, 3),
        "of_dense": round(token / dense, 4),
        "bytes_say": round(one.bytes_say, 4),
        "exchange_ms": {str(c): _spread(moves[name, c]) for c in CHURN} if one.parked else None,
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
    moved = rows["avl"]["exchange_ms"]
    return (
        f"A refresh replaces {100 * random:.0f} % of the core with random weights (median; "
        f"{100 * tiny:.0f} % with avl-tiny's trained ones, `scripts/churn.py`, "
        "[JSON](benchmarks/churn.json)), and rows change places outside the graph: at S1 that "
        f"takes {moved['0.4']['median']:.1f} ms for 40 % of the core and "
        f"{moved['0.1']['median']:.1f} ms for 10 %, where dense attention takes "
        f"{rows['dense']['token_ms']:.1f} ms a token and A-VL's {rows['avl']['token_ms']:.1f} ms; "
        f"without the compiled kernel they take {bodies['dense']['token_ms']:.1f} and "
        f"{bodies['avl']['token_ms']:.1f} ms "
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
                    f"exchange {row['exchange_ms']}"
                )
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
