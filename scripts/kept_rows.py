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
from typing import Any

import numpy as np

from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.evaluate.measure import MAX_NEW_TOKENS, divergences, forced_logits
from avl_runtime.tasks import TASKS, samples
from avl_runtime.tasks.metrics import score
from held_out import asked, means, record, tiny

POLICIES = ("dense", "avl", "avl+fastv")
KINDS = ("auto", "int8")


def measure(models: dict[str, LVLM], policy: str, count: int) -> dict[str, Any]:
    """What is to be said of one policy."""
    scores: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    apart, same, size = list[float](), list[bool](), dict.fromkeys(KINDS, 0)
    for task in TASKS:
        for one in samples(task, "held-out", count):
            replies = {}
            for kind, model in models.items():
                reply = model.generate(
                    one.prompt, [one.image], policy=policy, max_new_tokens=MAX_NEW_TOKENS
                )
                replies[kind] = reply
                found = score(one, reply.text)
                scores[kind].setdefault(task, []).append(found)
                size[kind] += reply.stats.kv_bytes
            tokens = replies["auto"].token_ids
            same.append(tokens == replies["int8"].token_ids)
            exact, other = (
                forced_logits(
                    model.loaded,
                    model.processor.encode(one.prompt, [one.image]),
                    parse(policy),
                    tokens,
                )
                for model in models.values()
            )
            apart += map(float, divergences(exact, other))
    return {
        "policy": policy,
        "scores": {kind: means(by_task) for kind, by_task in scores.items()},
        "divergence": float(np.mean(apart)),
        "divergence_p99": float(np.percentile(apart, 99)),
        "same_replies": float(np.mean(same)),
        "bytes": size["int8"] / size["auto"],
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
