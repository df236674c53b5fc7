#!/usr/bin/env python
"""Measure rows of 8 bits against rows as computed, on avl-tiny's held-out samples.

    .venv/bin/python scripts/kept_rows.py --samples 200 --json benchmarks/kept-rows.json

Of every policy: scores by task, as avl-eval counts them, with rows of either kind; the divergence
KL(as computed || int8) in nats a token, over the greedy reply that rows as computed give; how many
replies are the same, token for token; and bytes of the cache. Nothing here is timed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from avl_runtime import LVLM
from avl_runtime.evaluate.cases import task_cases
from avl_runtime.evaluate.rows import compare_rows
from avl_runtime.tasks import TASKS
from held_out import asked, record, tiny

POLICIES = ("dense", "avl", "avl+fastv")
KINDS = ("auto", "int8")


def measure(models: dict[str, LVLM], policy: str, count: int) -> dict[str, Any]:
    """What is to be said of one policy."""
    cases = chain.from_iterable(task_cases(task, count) for task in TASKS)
    found = compare_rows(models["auto"], models["int8"], policy, cases)
    means = found.means()
    return {
        "policy": policy,
        "scores": {
            kind: {task: round(pair[place], 4) for task, pair in means.items()}
            for place, kind in enumerate(KINDS)
        },
        "divergence": float(np.mean(found.divergence)),
        "divergence_p99": float(np.percentile(found.divergence, 99)),
        "same_replies": float(np.mean(found.same)),
        "bytes": found.size[1] / found.size[0],
    }


def sentence(report: dict[str, Any]) -> str:
    """What documents say of a record."""
    rows = report["rows"]
    apart = max(
        abs(row["scores"]["int8"][task] - found)
        for row in rows
        for task, found in row["scores"]["auto"].items()
    )
    means = ", ".join(f"{row['divergence']:.1e} under `{row['policy']}`" for row in rows)
    same = ", ".join(f"{row['same_replies']:.1%}" for row in rows)
    return (
        f"On avl-tiny ({report['samples']} held-out samples a task) scores differ by at most "
        f"{apart:.4f} from those with fp32 rows. KL divergence from them is {means} nats a token; "
        f"{same} of the replies are the same, token for token; the cache has "
        f"{rows[0]['bytes']:.2f} of the bytes, at a head size of 32 "
        "(`scripts/kept_rows.py`, [JSON](../benchmarks/kept-rows.json))."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parsed = asked(__doc__, 200, arguments)
    with tiny() as out:
        models = {kind: LVLM.load(out, backend="ort-cpu", kv=kind) for kind in KINDS}
        rows = [measure(models, policy, parsed.samples) for policy in POLICIES]
    print(json.dumps(record(parsed, {"rows": rows}), indent=2))


if __name__ == "__main__":
    main()
