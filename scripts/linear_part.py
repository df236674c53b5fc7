#!/usr/bin/env python
"""Time of a layer's quantized linears on AMX, on VNNI and by standard ops, in one run.

    .venv/bin/python scripts/linear_part.py --json benchmarks/linear-part.json

Runs the linears of one layer of shape S1 of make_random.py as ONNX Runtime runs them in a decoder,
for as many rows as a chunk of a prompt has, and for fewer. `amx` is the compiled kernel as it is,
`vnni` the same with AVL_AMX=off, `body` the op's standard ops. Before each run other memory is
read, as a decoder's other layers are. Ways are interleaved, and every round begins with the next
one; a ratio is the median over rounds of one way's time over another's in the same round. `error`
is |y - y64| / |y64| of the layer's first linears, where y64 is x in float64 times the weights that
codes stand for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from avl_export.quantize.packing import pack_int4
from avl_export.quantize.spec import BITS, DEFAULT_BLOCK
from avl_plugins import cpu
from avl_plugins.bodies.function import linear_function
from avl_plugins.bodies.linear_ops import QUANTIZED_LINEARS
from avl_plugins.cpu.host import host
from avl_plugins.schema import DOMAIN, VERSION
from avl_runtime.bench.surroundings import idle_surroundings
from avl_runtime.execute.host.ort_options import session_config
from avl_runtime.machine.resources import cores
from avl_runtime.package.quantization import Quantization

OTHER = 64 << 20  # bytes read between runs: twice this machine's last cache
WARMING = 2  # rounds that are not counted
WAYS = ("amx", "vnni", "body")


@dataclass(frozen=True, slots=True)
class Layer:
    """Widths of a decoder's layer."""

    hidden: int = 1024
    intermediate: int = 2816

    def groups(self) -> tuple[tuple[str, int, tuple[int, ...]], ...]:
        """Of linears that multiply the same rows: which input they read, its width, theirs."""
        wide = self.intermediate
        return (
            ("x", self.hidden, (self.hidden,) * 3),  # q, k, v
            ("x", self.hidden, (self.hidden,)),
            ("x", self.hidden, (wide,) * 2),
            ("h", wide, (self.hidden,)),
        )


@dataclass(frozen=True, slots=True)
class Quantized:
    """A layer's linears with random weights.

    Attributes:
        model: their nodes; inputs x [rows, hidden] and h [rows, intermediate].
        first: what the first group's codes stand for, [inputs, outputs] each.
    """

    model: ModelProto
    first: list[NDArray[np.float64]]


def quantized(layer: Layer, bits: Literal[4, 8]) -> Quantized:
    """The linears as avl-export stores them: INT4 in blocks, INT8 with one scale an output."""
    numbers = np.random.default_rng(bits)
    block = DEFAULT_BLOCK if bits == 4 else 0
    nodes, tensors, products, first = [], [], [], []
    for number, (source, inputs, outputs) in enumerate(layer.groups()):
        names = [source]
        for one, width in enumerate(outputs):
            most = 2 ** (bits - 1) - 1
            codes = numbers.integers(-most, most + 1, (inputs, width), np.int8)
            shape = (inputs // block, width) if block else (width,)
            scales = numbers.uniform(0.5, 1, shape).astype(np.float32) / np.float32(most)
            kind, stored = TensorProto.INT8, codes
            if bits == 4:
                kind, stored = TensorProto.INT4, pack_int4(codes)
            names += [f"codes.{number}.{one}", f"scales.{number}.{one}"]
            raw = stored.tobytes()
            tensors.append(helper.make_tensor(names[-2], kind, codes.shape, raw, raw=True))
            tensors.append(numpy_helper.from_array(scales, names[-1]))
            if not number:
                repeated = np.repeat(np.atleast_2d(scales), block or inputs, axis=0)
                first.append(codes * repeated.astype(np.float64))
        made = [f"y.{number}.{one}" for one in range(len(outputs))]
        products += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
            for name, width in zip(made, outputs, strict=True)
        ]
        form: dict[str, Any] = {"axis": 0 if block else 1, "block_size": block}
        op = QUANTIZED_LINEARS[len(outputs), False]
        nodes.append(helper.make_node(op.name, names, made, domain=op.domain, **form))
    widths = {"x": layer.hidden, "h": layer.intermediate}
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
        for name, width in widths.items()
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "linears", given, products, tensors),
        functions=[linear_function(QUANTIZED_LINEARS[count, False]) for count in (1, 2, 3)],
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    return Quantized(model, first)


@contextmanager
def switched(way: str) -> Iterator[None]:
    """The environment in which a session of a way is opened."""
    before = os.environ.get(cpu.AMX_SWITCH)
    os.environ[cpu.AMX_SWITCH] = "off" if way == "vnni" else "on"
    try:
        yield
    finally:
        if before is None:
            del os.environ[cpu.AMX_SWITCH]
        else:
            os.environ[cpu.AMX_SWITCH] = before


def opened(linears: Quantized, bits: Literal[4, 8], way: str, threads: int) -> ort.InferenceSession:
    """A session as the runtime opens it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    block = DEFAULT_BLOCK if bits == 4 else None
    entry = Quantization("rtn", bits, block, ("decoder",), False, None)
    for name, value in session_config(entry, encoder=False, packs=True).items():
        options.add_session_config_entry(name, value)
    if way != "body":
        options.register_custom_ops_library(str(cpu.library()))
    with switched(way):
        return ort.InferenceSession(
            linears.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def measure(
    layer: Layer, bits: Literal[4, 8], rows: Sequence[int], threads: int, rounds: int
) -> dict[str, Any]:
    """Milliseconds of each way for each number of rows, ratios, and errors."""
    linears = quantized(layer, bits)
    sessions = {way: opened(linears, bits, way, threads) for way in WAYS}
    numbers = np.random.default_rng(0)
    widths = {"x": layer.hidden, "h": layer.intermediate}
    feeds = {
        count: {
            name: numbers.standard_normal((count, width), np.float32)
            for name, width in widths.items()
        }
        for count in rows
    }
    times: dict[tuple[int, str], list[float]] = {(n, way): [] for n in rows for way in WAYS}
    other = np.ones(OTHER // 8)
    for turn in range(rounds + WARMING):
        for count in rows:
            for place in range(len(WAYS)):
                way = WAYS[(turn + place) % len(WAYS)]
                other.sum()
                begun = time.perf_counter()
                sessions[way].run(None, feeds[count])
                if turn >= WARMING:
                    times[count, way].append((time.perf_counter() - begun) * 1e3)
    return {
        str(count): compared({way: times[count, way] for way in WAYS})
        | {"error": {way: _error(one, linears, feeds[count]) for way, one in sessions.items()}}
        for count in rows
    }


def compared(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians of each way's milliseconds, and of ratios of the same round."""

    def ratio(way: str, over: str) -> float:
        pairs = zip(times[way], times[over], strict=True)
        return round(statistics.median(one / another for one, another in pairs), 3)

    return {
        "ms": {way: round(statistics.median(each), 3) for way, each in times.items()},
        "amx_over_vnni": ratio("amx", "vnni"),
        "amx_over_body": ratio("amx", "body"),
    }


def _error(
    session: ort.InferenceSession, linears: Quantized, feeds: dict[str, NDArray[np.float32]]
) -> float:
    weight = np.concatenate(linears.first, axis=1)
    found = np.concatenate(session.run(None, feeds)[: len(linears.first)], axis=1)
    wanted = feeds["x"].astype(np.float64) @ weight
    return float(f"{np.linalg.norm(found - wanted) / np.linalg.norm(wanted):.2g}")


def sentence(report: Mapping[str, Any]) -> str:
    """What the documents quote of a record."""
    told = []
    for kind, found in report["rows"].items():
        row = found["256"]
        told.append(
            f"{row['ms']['amx']:.1f} ms in {kind.upper()}, {row['amx_over_vnni']:.2f} of VNNI's "
            f"time and {row['amx_over_body']:.2f} of the standard ops' (error to float64: "
            f"{row['error']['amx']}, VNNI's {row['error']['vnni']})"
        )
    return (
        f"The linears of a layer of S1 ({report['threads']} threads, 256 rows) take on AMX "
        f"{', and '.join(told)} (`scripts/linear_part.py`, [JSON](benchmarks/linear-part.json))."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rows", default="1,64,65,128,256")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--idle-wait", type=float, default=60)
    parsed = parser.parse_args(arguments)
    kernels = host()
    instructions = kernels.instructions() if kernels else "no kernels"
    if "AMX" not in instructions:
        parser.error(f"expected kernels that run on AMX, found: {instructions}; see avl-doctor")
    layer, rows = Layer(), [int(count) for count in parsed.rows.split(",")]
    report = {
        "layer": {"hidden": layer.hidden, "intermediate": layer.intermediate},
        **idle_surroundings(parsed.threads, parsed.idle_wait),
        "rounds": parsed.rounds,
        "instructions": instructions,
        "rows": {
            kind: measure(layer, BITS[kind], rows, parsed.threads, parsed.rounds)
            for kind in ("int4", "int8")
        },
    }
    for kind, found in report["rows"].items():
        for count, row in found.items():
            print(f"{kind}, {count} rows: {row}")
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
