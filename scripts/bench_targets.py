"""Ratios between the records of bench_all.py, and what they shall be."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from avl_plugins.policies import Divide, Refresh, parse
from peer_targets import ratios
from state_bytes import HEAD_BITS, of_peer

AVL = "avl"
TIGHT = "avl:core=0.1,refresh=8"
CHAIN = "avl+fastv"
LONG = "avl:text=0.01,text_min=128"
SDPA, GENAI = "transformers sdpa", "onnxruntime-genai"
SPARE = 150 << 20  # bytes of memory that a run may take beside what it must
CHUNK = 256  # rows of a prefill chunk
# How names of records end, and what the table says: how the checkpoint stores its weights.
STORED = {"": "", "-fp16": ", fp16 checkpoint"}
INT4_BITS = 4.5  # of a weight in blocks of 64, with its share of a scale

Report = Mapping[str, Any]
Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A ratio that shall be reached.

    Attributes:
        limit: the most or, unless `at_most`, the least it may be.
        value: computes it; a KeyError says that its record is not there.
        bytes_allow: what it would be if time went with the bytes that a step reads.
    """

    what: str
    limit: float
    at_most: bool
    value: Callable[[], float]
    bytes_allow: Callable[[], float] | None = None


def targets(
    records: Mapping[str, Report],
    attention: Report | None = None,
    others: Mapping[str, Report] | None = None,
) -> list[dict[str, Any]]:
    """Every target, with what was found, or with what of its record is absent.

    Args:
        records: avl-bench's, by name.
        attention: what attention_part.py found.
        others: of `peer_targets.FILES`, by name.
    """
    rows = {
        name: {row["name"]: row for row in report["candidates"]} for name, report in records.items()
    }
    found = []
    beside = (
        Wanted(one.what, one.limit, True, partial(one.value, others or {})) for one in ratios()
    )
    for one in (*_wanted(records, rows), *beside, *_of_attention(attention or {})):
        told: dict[str, Any] = {"what": one.what, "wanted": one.limit, "at_most": one.at_most}
        try:
            ratio = one.value()
        except KeyError as error:
            found.append(told | {"found": None, "absent": str(error.args[0])})
            continue
        reached = ratio <= one.limit if one.at_most else ratio >= one.limit
        found.append(
            told
            | {
                "found": round(ratio, 4),
                "reached": reached,
                "bytes_allow": round(one.bytes_allow(), 4) if one.bytes_allow else None,
            }
        )
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """What `targets` gives as Markdown."""
    lines = ["| ratio | found | wanted | reached | bytes say |", "|---|---|---|---|---|"]
    for one in found:
        wanted = f"{'at most' if one['at_most'] else 'at least'} {one['wanted']}"
        if one["found"] is None:
            lines.append(f"| {one['what']} | not measured | {wanted} | | |")
            continue
        reached = "yes" if one["reached"] else "**no**"
        said = f"{one['bytes_allow']:.2f}" if one["bytes_allow"] else ""
        lines.append(f"| {one['what']} | {one['found']:.3f} | {wanted} | {reached} | {said} |")
    return "\n".join(lines)


def computed(report: Report) -> str:
    """What the documents say of one fp16 checkpoint, computed in fp32 and in fp16."""
    rows = {row["name"]: row for row in report["candidates"]}
    wide, half = (rows[f"dense [{dtype}]"] for dtype in ("fp32", "fp16"))
    took = [f"{row['decode_token']['median']:.1f} ms" for row in (wide, half)]
    held = [f"{row['peak_rss_bytes'] / 1e6:.0f} MB" for row in (wide, half)]
    return (
        f"Of S1's fp16 checkpoint a dense token takes {took[0]} computed in fp32 and {took[1]} "
        f"computed in fp16, with {held[0]} and {held[1]} at the peak "
        "(`scripts/bench_all.py --only s1-computed`, [JSON](benchmarks/bench-s1-computed.json))."
    )


def spread(report: Report) -> str:
    """What the documents say of how far runs of one record differ."""
    rows = {row["name"]: row["decode_step"] for row in report["candidates"]}
    own, peer = (
        f"{rows[name]['minimum']:.1f} ms in its best run and {rows[name]['median']:.1f} ms in the "
        "median"
        for name in ("dense", "onnxruntime-genai")
    )
    return f"Dense steps of S1's record take {own}, onnxruntime-genai's {peer}."


def weight_bytes(dims: Mapping[str, int], bits: float) -> float:
    """Bytes of weights that a greedy step reads, at `bits` a weight."""
    heads = 2 * dims["head_dim"] * (dims["num_heads"] + dims["num_kv_heads"])
    layer = dims["hidden_size"] * (heads + 3 * dims["intermediate_size"])
    head = dims["vocab_size"] * dims["hidden_size"]
    return (dims["num_layers"] * layer * bits + head * min(bits, HEAD_BITS)) / 8


def row_bytes(dims: Mapping[str, int]) -> int:
    """Bytes of keys and values of one token in all layers, in fp32."""
    return 2 * 4 * dims["num_layers"] * dims["num_kv_heads"] * dims["head_dim"]


def _wanted(records: Mapping[str, Report], rows: Mapping[str, Rows]) -> Iterator[Wanted]:

    def time(record: str, name: str, part: str) -> float:
        return float(rows[record][name][part]["median"])

    def step(record: str, name: str) -> float:
        return time(record, name, "decode_token")

    def ratio(record: str, part: str, name: str, other: str = "dense") -> Callable[[], float]:
        return lambda: time(record, name, part) / time(record, other, part)

    def faster(record: str, name: str) -> Callable[[], float]:
        return lambda: step(record, "dense") / step(record, name)

    for suffix, stored in STORED.items():
        for shape in ("s1", "s2", "s3"):
            told = f"{shape.upper()}{stored}: dense decode over onnxruntime-genai's"
            yield Wanted(told, 1.0, True, ratio(shape + suffix, "decode_token", "dense", GENAI))
            told = f"{shape.upper()}{stored}: dense prefill over transformers sdpa's"
            yield Wanted(told, 1.1, True, ratio(shape + suffix, "prefill", "dense", SDPA))
        told = f"S3{stored}: transformers sdpa's decode over dense"
        yield Wanted(told, 1.8, False, ratio("s3" + suffix, "decode_token", SDPA))
    for part, what, limit in (("decode_token", "decode", 0.8), ("prefill", "prefill", 1.0)):
        told = f"Qwen3.5-0.8B{STORED['-fp16']}: dense {what} over transformers sdpa's"
        read = partial(_of_states, records, "qwen3.5") if what == "decode" else None
        yield Wanted(told, limit, True, ratio("qwen3.5", part, "dense", SDPA), read)
    kinds = (
        ("s1", "", 32, 1.2, 1.3),
        ("s1-fp16", STORED["-fp16"], 16, 1.2, 1.3),
        ("s1-int4", ", INT4", INT4_BITS, 1.5, 2.0),
        ("s1-batch4", ", batch 4", 32, 1.5, 2.0),
        ("s1-fp16-batch4", f"{STORED['-fp16']}, batch 4", 16, 1.5, 2.0),
    )
    for record, told, bits, usual, tight in kinds:
        for name, shown, limit in ((AVL, "A-VL", usual), (TIGHT, TIGHT, tight)):
            yield Wanted(
                f"S1{told}: speed-up of a token by {shown}",
                limit,
                False,
                faster(record, name),
                partial(_fewer_bytes, records, record, bits, name),
            )
    for suffix, stored in STORED.items():
        told = f"S1{stored}: prefill of FastV over dense"
        yield Wanted(told, 0.68, True, ratio("s1" + suffix, "prefill", "fastv"))
    yield Wanted(
        "24 layers: prefill of FastV over dense", 0.60, True, ratio("deep", "prefill", "fastv")
    )
    ends = (("s1", "", 0.70), ("s1-fp16", STORED["-fp16"], 0.70), ("s1-int4", ", INT4", 0.60))
    for record, stored, limit in ends:
        told = f"S1{stored}: end to end of A-VL with FastV over dense"
        yield Wanted(told, limit, True, ratio(record, "end_to_end", CHAIN))
    yield Wanted(
        "0.5 B: speed-up of decode by INT4",
        2.0,
        False,
        ratio("half-billion", "decode_token", "dense [fp32]", "dense [int4]"),
    )
    for suffix, stored in STORED.items():
        for name in ("dense", AVL, CHAIN):
            told = f"S1{stored}: peak RSS of {name}, share of what it may take"
            yield Wanted(told, 1.0, True, partial(_peak, records, rows, "s1" + suffix, name))
    told = "long text: step 2000 over step 200 under a text budget"
    yield Wanted(told, 1.1, True, lambda: _growth(rows["long-text"][LONG]))


def _of_attention(report: Report) -> Iterator[Wanted]:
    """Attention alone; its graph's time, without the exchange of rows that a refresh decides."""
    for batch, told in (("1", ""), ("4", " at batch 4")):
        for name, shown, limit in ((AVL, "A-VL", 0.42), (TIGHT, TIGHT, 0.22)):
            yield Wanted(
                f"S1{told}: attention of {shown} over dense attention",
                limit,
                True,
                partial(_found, report, batch, name, "of_dense"),
                partial(_found, report, batch, name, "bytes_say"),
            )


def _found(report: Report, batch: str, name: str, part: str) -> float:
    return float(report["batches"][batch]["kernel"][name][part])


def _of_states(records: Mapping[str, Report], record: str) -> float:
    return of_peer(records[record])


def _fewer_bytes(records: Mapping[str, Report], record: str, bits: float, name: str) -> float:
    """Bytes of weights and KV that a dense step reads, over those of a policy's mean step."""
    dims, asked = records[record]["dims"], records[record]["workload"]
    weights, row = weight_bytes(dims, bits), row_bytes(dims)
    text, visual = asked["text_tokens"] + asked["new_tokens"] / 2, asked["visual_tokens"]
    actions = parse(name).actions()
    divide = next((one for one in actions if isinstance(one, Divide)), None)
    refresh = next((one for one in actions if isinstance(one, Refresh)), None)
    if divide is None or refresh is None:
        raise ValueError(f"expected a policy that splits image rows, found {name}")

    def read(share: float) -> float:
        return float(weights + asked["batch"] * row * (text + share * visual))

    return read(1) / read(divide.core + (divide.keep - divide.core) / refresh.every)


def _peak(records: Mapping[str, Report], rows: Mapping[str, Rows], record: str, name: str) -> float:
    return _memory(records[record], rows[record][name])


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
