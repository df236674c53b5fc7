"""The two small tables of README, from the records of avl-eval and avl-bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench_targets import GENAI
from peer_targets import AVL, CHAIN, CODES, DEFAULT, F32, LLAMA

Report = Mapping[str, Any]

SHOWN = ("dense", "fastv", "avl", "avl:keep=0.25", "avl+fastv", "random", "random:of=avl")
NUMBERS = " [fp32 rows]"  # behind a policy whose cached rows are as computed
SPEEDS = {
    GENAI: "onnxruntime-genai",
    LLAMA: "llama.cpp, Q4_0",
    DEFAULT: "OpenVINO GenAI",
    F32: "OpenVINO GenAI, in fp32",
    f"dense{NUMBERS}": "avl, `dense`",
    f"dense{CODES}": "avl, `dense`, `--kv int8`",
    f"{AVL}{CODES}": "avl, `avl`, `--kv int8`",
    f"{CHAIN}{CODES}": "avl, `avl+fastv`, `--kv int8`",
}


def quality(report: Report) -> str:
    """Scores of some policies, and what share of dense attention's bytes and arithmetic they take.

    Args:
        report: what `avl-eval --json` wrote.
    """
    rows = {row["policy"]: row for row in report["policies"]}
    tasks = list(rows["dense"]["scores"])
    return _table(
        ["policy", *tasks, "KV", "arithmetic"],
        [
            [
                f"`{name}`",
                *(f"{rows[name]['scores'][task]:.3f}" for task in tasks),
                *(f"{rows[name][part]:.0%}" for part in ("kv", "flops")),
            ]
            for name in SHOWN
        ],
    )


def speed(report: Report) -> str:
    """Medians of other libraries, then of some policies.

    Args:
        report: what `avl-bench --json` wrote.
    """
    rows = {row["name"]: row for row in report["candidates"]}
    return _table(
        ["", "prompt", "a token", "whole answer", "peak memory"],
        [
            [
                shown,
                f"{rows[name]['prefill']['median'] / 1e3:.1f} s",
                f"{rows[name]['decode_token']['median']:.1f} ms",
                f"{rows[name]['end_to_end']['median'] / 1e3:.1f} s",
                f"{rows[name]['peak_rss_bytes'] / 1e6:.0f} MB",
            ]
            for name, shown in SPEEDS.items()
        ],
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])
