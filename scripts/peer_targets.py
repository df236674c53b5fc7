"""What shall be reached beside other programs, and beside an older build of avl."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

AVL, CHAIN = "avl", "avl+fastv"
SPLIT = "avl:keep=0.5,core=0.3,refresh=3"  # as side_by_side.py calls A-VL
CODES = " [int8 rows]"  # behind a policy whose cached rows have 8 bits
PEERS, NO_AMX, BF16 = "bench-peers-int4", "bench-peers-int4-no-amx", "bench-peers-bf16"
BESIDE, REQUESTS = "side-by-side-int8-rows", "whole-requests"
FILES = (PEERS, NO_AMX, BF16, BESIDE, REQUESTS)
DEFAULT, F32, LLAMA = "openvino", "openvino f32", "llama.cpp"

Records = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio that shall be no larger than `limit`.

    Attributes:
        value: computes it from records by the names of their files; a KeyError says what is not
            there.
    """

    what: str
    limit: float
    value: Callable[[Records], float]


def ratios() -> Iterator[Ratio]:
    """All of them."""
    for what, limit, part, own, peers in (
        ("dense decode with rows of 8 bits", 0.60, "decode_token", f"dense{CODES}", (DEFAULT, F32)),
        ("dense prefill", 1.0, "prefill", "dense", (DEFAULT,)),
        ("prefill of FastV", 0.65, "prefill", "fastv", (DEFAULT,)),
        ("end to end of A-VL with FastV", 0.55, "end_to_end", CHAIN, (DEFAULT, F32)),
    ):
        over = "OpenVINO's" if len(peers) == 1 else "the best of OpenVINO's"
        yield Ratio(f"S1, INT4: {what} over {over}", limit, _median(PEERS, part, own, peers))
    yield Ratio(
        "S1, INT4, without AMX: dense prefill with rows of 8 bits over OpenVINO's in fp32",
        0.75,
        _median(NO_AMX, "prefill", f"dense{CODES}", (F32,)),
    )
    yield Ratio(
        "S1, fp16 checkpoint computed in bf16: dense prefill over OpenVINO's",
        1.1,
        _median(BF16, "prefill", "dense", (DEFAULT,)),
    )
    yield Ratio(
        "S1, INT4: peak RSS of dense with rows of 8 bits over llama.cpp's in Q4_0", 1.35, _peak
    )
    for name, policy, limit in (("dense", "dense", 0.55), ("A-VL", SPLIT, 0.65)):
        yield Ratio(
            f"S1, INT4: {name} decode with rows of 8 bits over the older build's",
            limit,
            _newer(policy),
        )
    yield Ratio(
        "S1, INT4: peak RSS with rows of 8 bits over the older build's",
        0.75,
        lambda records: float(records[BESIDE]["peak_rss"]["ratio"]),
    )
    for case, what in (("tiny", "avl-tiny"), ("s1", "S1 with a tower of 24 layers, INT4")):
        yield Ratio(
            f"{what}: a whole request's first token over the best of VLMPipeline's",
            0.9,
            _first(case),
        )


def _median(record: str, part: str, own: str, peers: tuple[str, ...]) -> Callable[[Records], float]:
    """A median of avl-bench, by rows of 8 bits where it has no other, over the others' least."""

    def found(records: Records) -> float:
        rows = _rows(records[record])
        mine = own if own in rows else own + CODES
        return float(_of(rows, mine, part) / min(_of(rows, peer, part) for peer in peers))

    return found


def _of(rows: Mapping[str, Any], name: str, part: str) -> float:
    return float(rows[name][part]["median"])


def _rows(report: Mapping[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in report["candidates"]}


def _peak(records: Records) -> float:
    rows = _rows(records[PEERS])
    return float(rows[f"dense{CODES}"]["peak_rss_bytes"] / rows[LLAMA]["peak_rss_bytes"])


def _newer(policy: str) -> Callable[[Records], float]:
    return lambda records: float(records[BESIDE]["policies"][policy]["token"]["ratio"]["median"])


def _first(case: str) -> Callable[[Records], float]:
    def found(records: Records) -> float:
        rows = _rows(records[REQUESTS][case])
        best = min(_of(rows, peer, "first_ms") for peer in (DEFAULT, F32))
        own = "dense bf16" if "dense bf16" in rows else "dense"  # as OpenVINO's by default
        return _of(rows, own, "first_ms") / best

    return found
