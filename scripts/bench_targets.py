"""Ratios between the records of bench_all.py, and what they shall be."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

AVL = "avl"
TIGHT = "avl:core=0.1,refresh=8"
CHAIN = "avl+fastv"
LONG = "avl:text=0.01,text_min=128"
SDPA, GENAI = "transformers sdpa", "onnxruntime-genai"
SPARE = 150 << 20  # bytes of memory that a run may take beside what it must
CHUNK = 256  # rows of a prefill chunk

Report = Mapping[str, Any]
Rows = Mapping[str, Mapping[str, Any]]


def targets(records: Mapping[str, Report]) -> list[dict[str, Any]]:
    """Every target whose records are there, with what was found."""
    rows = {
        name: {row["name"]: row for row in report["candidates"]} for name, report in records.items()
    }
    found = []
    for what, wanted, at_most, value in _wanted(records, rows):
        try:
            ratio = value()
        except KeyError:  # a record or a peer was left out
            continue
        reached = ratio <= wanted if at_most else ratio >= wanted
        found.append(
            {
                "what": what,
                "found": round(ratio, 4),
                "wanted": wanted,
                "at_most": at_most,
                "reached": reached,
            }
        )
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """What `targets` gives as Markdown."""
    lines = ["| ratio | found | wanted | reached |", "|---|---|---|---|"]
    for one in found:
        wanted = f"{'at most' if one['at_most'] else 'at least'} {one['wanted']}"
        reached = "yes" if one["reached"] else "**no**"
        lines.append(f"| {one['what']} | {one['found']:.2f} | {wanted} | {reached} |")
    return "\n".join(lines)


def _wanted(
    records: Mapping[str, Report], rows: Mapping[str, Rows]
) -> Iterator[tuple[str, float, bool, Callable[[], float]]]:
    """What, the limit, whether it is an upper one, and what computes the ratio."""

    def time(record: str, name: str, part: str) -> float:
        return float(rows[record][name][part]["median"])

    def step(record: str, name: str) -> float:
        return time(record, name, "decode_token")

    def ratio(record: str, part: str, name: str, other: str = "dense") -> Callable[[], float]:
        return lambda: time(record, name, part) / time(record, other, part)

    def faster(record: str, name: str) -> Callable[[], float]:
        return lambda: step(record, "dense") / step(record, name)

    for shape in ("s1", "s2", "s3"):
        told = f"{shape.upper()}: dense decode over onnxruntime-genai's"
        yield told, 1.0, True, ratio(shape, "decode_token", "dense", GENAI)
        told = f"{shape.upper()}: dense prefill over transformers sdpa's"
        yield told, 1.1, True, ratio(shape, "prefill", "dense", SDPA)
    yield "S3: transformers sdpa's decode over dense", 1.8, False, ratio("s3", "decode_token", SDPA)
    kinds = (
        ("s1", "fp32", 1.2, 1.3),
        ("s1-int4", "INT4", 1.5, 2.0),
        ("s1-batch4", "batch 4", 1.5, 2.0),
    )
    for record, told, usual, tight in kinds:
        yield f"S1 {told}: speed-up of a token by A-VL", usual, False, faster(record, AVL)
        yield f"S1 {told}: speed-up of a token by {TIGHT}", tight, False, faster(record, TIGHT)
    yield "S1: prefill of FastV over dense", 0.68, True, ratio("s1", "prefill", "fastv")
    yield "24 layers: prefill of FastV over dense", 0.60, True, ratio("deep", "prefill", "fastv")
    yield (
        "S1 fp32: end to end of A-VL with FastV over dense",
        0.70,
        True,
        ratio("s1", "end_to_end", CHAIN),
    )
    yield (
        "S1 INT4: end to end of A-VL with FastV over dense",
        0.60,
        True,
        ratio("s1-int4", "end_to_end", CHAIN),
    )
    yield (
        "0.5 B: speed-up of decode by INT4",
        2.0,
        False,
        ratio("half-billion", "decode_token", "dense [fp32]", "dense [int4]"),
    )
    for name in ("dense", AVL, CHAIN):
        told = f"S1: peak RSS of {name}, share of what it may take"
        yield told, 1.0, True, partial(_peak, records, rows, name)
    told = "long text: step 2000 over step 200 under a text budget"
    yield told, 1.1, True, lambda: _growth(rows["long-text"][LONG])


def _peak(records: Mapping[str, Report], rows: Mapping[str, Rows], name: str) -> float:
    return _memory(records["s1"], rows["s1"][name])


def _memory(report: Report, row: Mapping[str, Any]) -> float:
    """Peak memory over weights, live KV, one prefill chunk's activations and a bit to spare."""
    dims, asked = report["dims"], report["workload"]
    total = asked["visual_tokens"] + asked["text_tokens"]
    scores = 2 * dims["num_heads"] * CHUNK * total  # before and behind softmax
    rows = CHUNK * (8 * dims["hidden_size"] + 3 * dims["intermediate_size"])
    hidden = total * dims["hidden_size"]  # between segments
    kv = max(
        row["kv_bytes"],
        2 * dims["num_layers"] * dims["num_kv_heads"] * dims["head_dim"] * total * 4,
    )
    allowed = report["weight_bytes"] + kv + 4 * (scores + rows + hidden) + SPARE
    return float(row["peak_rss_bytes"] / allowed)


def _growth(row: Mapping[str, Any]) -> float:
    """Time of the steps around the 2000th over that around the 200th."""
    steps = row["step_ms"]
    late, early = (statistics.median(steps[at - 50 : at + 50]) for at in (2000, 200))
    return float(late / early)
