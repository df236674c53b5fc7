#!/usr/bin/env python
"""Measure LOOK-M's merging on avl-tiny's held-out samples, beside SnapKV at the same budget.

    .venv/bin/python scripts/merged_rows.py --samples 20 --json benchmarks/merged-rows.json

At a third and a ninth of all rows: scores of `snapkv` by task; and of `lookm` without merging and
in each of its three ways, with their differences from `snapkv` and from `lookm` without merging,
sample by sample, with 95 % intervals. Nothing here is timed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from avl_runtime import LVLM
from held_out import apart, asked, changes, means, record, tiny
from restored_scores import SHARES, beside, scores_of

WAYS = ("pivotal", "averaged", "weighted")


def measure(model: LVLM, count: int) -> list[dict[str, Any]]:
    """What is to be said of each share."""
    rows = []
    for told, share in SHARES.items():
        snapkv, _ = scores_of(model, f"snapkv:keep={share}", count)
        alone, _ = scores_of(model, f"lookm:keep={share},merge=none", count)
        row: dict[str, Any] = {"share": told, "snapkv": means(snapkv)}
        row["none"] = beside(alone, snapkv)
        for way in WAYS:
            found, _ = scores_of(model, f"lookm:keep={share},merge={way}", count)
            gains, halves = apart(found, alone)
            row[way] = beside(found, snapkv) | {"merged_gain": gains, "merged_interval": halves}
        rows.append(row)
    return rows


def sentence(report: dict[str, Any]) -> str:
    """What documents say of a record."""
    said = []
    for row in report["rows"]:
        base = ", ".join(f"{task} {score:.2f}" for task, score in row["snapkv"].items())
        alone = changes(row["none"]["gain"], row["none"]["interval"])
        ways = "; ".join(
            f"`merge={way}` by {changes(row[way]['merged_gain'], row[way]['merged_interval'])}"
            for way in WAYS
        )
        said.append(
            f"at {row['share']} of the rows, where `snapkv` scores {base}, `merge=none` differs "
            f"from it by {alone}, and merging changes that: {ways}"
        )
    return (
        f"Measured on avl-tiny ({report['samples']} held-out samples a task, 95 % intervals): "
        f"{'. And '.join(said)} (`scripts/merged_rows.py`, "
        "[JSON](../benchmarks/merged-rows.json))."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parsed = asked(__doc__, 20, arguments)
    with tiny() as out:
        rows = measure(LVLM.load(out, backend="ort-cpu"), parsed.samples)
    print(json.dumps(record(parsed, {"rows": rows}), indent=2))


if __name__ == "__main__":
    main()
