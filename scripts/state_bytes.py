"""Bytes that a decode step reads of a decoder whose layers keep states, as Qwen3.5's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD_BITS = 8  # of the output matrix's copy, which greedy steps read (LogitsLinear)


def step_bytes(report: Mapping[str, Any], bits: int, head_bits: int) -> dict[str, float]:
    """Of a step in the middle of a workload's new tokens, by what is read.

    Rows and states are in fp32; a state is read and written.

    Args:
        report: avl-bench's.
        bits: of a weight, and `head_bits` of one of the output matrix.
    """
    dims, asked = report["dims"], report["workload"]
    states, hidden = dims["states"], dims["hidden_size"]
    values = states["heads"] * states["value_size"]
    # Projections to the convolution, the gate, two numbers a head, and back.
    delta = hidden * (states["channels"] + 2 * values + 2 * states["heads"])
    # Queries with their gates, keys and values, and back.
    full = hidden * dims["head_dim"] * (3 * dims["num_heads"] + 2 * dims["num_kv_heads"])
    count = len(states["layers"])
    rowed = dims["num_layers"] - count
    mlps = dims["num_layers"] * 3 * hidden * dims["intermediate_size"]
    tokens = asked["text_tokens"] + asked["visual_tokens"] + asked["new_tokens"] / 2
    state = states["heads"] * states["key_size"] * states["value_size"]
    state += states["channels"] * (states["kernel"] - 1)
    return {
        "weights": (count * delta + rowed * full + mlps) * bits / 8,
        "head": dims["vocab_size"] * hidden * head_bits / 8,
        "rows": 2 * 4 * rowed * dims["num_kv_heads"] * dims["head_dim"] * tokens,
        "states": 2 * 4 * count * state,
    }


def of_peer(report: Mapping[str, Any]) -> float:
    """Bytes that a dense step reads, over those of transformers with weights in fp32."""
    own, peer = step_bytes(report, 16, HEAD_BITS), step_bytes(report, 32, 32)
    return sum(own.values()) / sum(peer.values())


def sentence(report: Mapping[str, Any]) -> str:
    """What the documents say of a dense step's bytes."""
    own, peer = step_bytes(report, 16, HEAD_BITS), step_bytes(report, 32, 32)
    rows = {row["name"]: row["decode_token"]["median"] / 1e3 for row in report["candidates"]}
    whole, theirs = sum(own.values()), sum(peer.values())
    parts = {name: f"{part / 1e6:.0f}" for name, part in own.items()}
    return (
        f"A dense step of Qwen3.5-0.8B's decoder reads {whole / 1e9:.2f} GB: {parts['weights']} MB "
        f"of weights, {parts['head']} of the output matrix's copy, {parts['rows']} of rows, and "
        f"{parts['states']} of states, which are written too. That is "
        f"{whole / rows['dense'] / 1e9:.0f} GB a second. transformers reads {theirs / 1e9:.2f} GB, "
        f"its weights in fp32, at {theirs / rows['transformers sdpa'] / 1e9:.0f} GB a second."
    )
