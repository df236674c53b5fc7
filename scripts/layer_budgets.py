#!/usr/bin/env python
"""Measure VL-Cache's budgets by the sum of rows against budgets row by row, on avl-tiny.

    .venv/bin/python scripts/layer_budgets.py --samples 20 --json benchmarks/layer-budgets.json

The paper counts for each row behind the picture the tokens that it gives at least 1 % of its
maximum; `vlcache` counts them once, of the sum of these rows. Here rows are asked for one by one, a
reading of the prompt for each. Told are scores by task under either, their differences, sample by
sample, with a 95 % interval, and which part of all rows moves to other layers. Nothing is timed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from avl_plugins.policies import View, VLCache
from avl_plugins.policies.cached.retain import last_rows
from avl_plugins.policies.cached.vlcache import FLOOR, apportion
from avl_plugins.policies.view import Indices, Mask
from avl_runtime import LVLM
from avl_runtime.evaluate.measure import MAX_NEW_TOKENS
from avl_runtime.tasks import TASKS, samples
from avl_runtime.tasks.metrics import score
from held_out import apart, asked, changes, means, record, tiny

KEEPS = (0.25, 0.1)


@dataclass(frozen=True, slots=True)
class One(VLCache):
    """One row behind the picture alone, and what it gives in each layer."""

    name: ClassVar[str] = "one"

    row: int = 0
    seen: list[View] = field(default_factory=list, compare=False)

    def probes(self, positions: Indices, image: Mask) -> Indices:
        return last_rows(positions, image)[self.row : self.row + 1]

    def budgets(self, views: Sequence[View]) -> list[int]:
        self.seen.extend(views)
        return [view.positions.shape[-1] for view in views]


@dataclass(frozen=True, slots=True)
class Apportioned(VLCache):
    """VL-Cache with densities that are told."""

    name: ClassVar[str] = "apportioned"

    densities: tuple[float, ...] = ()
    given: list[list[int]] = field(default_factory=list, compare=False)

    def budgets(self, views: Sequence[View]) -> list[int]:
        rows = [view.positions.shape[-1] for view in views]
        found = apportion(self.densities, rows, sum(self.counts(rows, views[0].total)))
        self.given.extend([found, VLCache.budgets(self, views)])
        return found


def row_densities(model: LVLM, request: dict[str, Any]) -> tuple[float, ...]:
    """Of each layer the share of tokens that a row gives a hundredth of its most, mean of rows."""
    prompt = model.processor.encode(request["prompt"], request["images"])
    count = len(last_rows(np.arange(len(prompt.input_ids)), prompt.image_mask))
    found = []
    for row in range(count):
        policy = One(row=row)
        model.generate(**request, policy=policy, max_new_tokens=1)
        of_row = []
        for view in policy.seen:
            sees = view.positions[0] <= view.probes[0]
            given = view.attention[0]
            much = sees & (given >= FLOOR * given.max(1, keepdims=True))
            of_row.append(float((much.sum(1) / sees.sum(1)).mean()))
        found.append(of_row)
    return tuple(np.mean(found, 0).tolist())


def measure(model: LVLM, count: int) -> list[dict[str, Any]]:
    """What is to be said of each share."""
    rows = []
    scores: dict[tuple[float, str], dict[str, list[float]]] = {}
    moved: dict[float, list[float]] = {keep: [] for keep in KEEPS}
    for task in TASKS:
        for one in samples(task, "held-out", count):
            request: dict[str, Any] = {"prompt": one.prompt, "images": [one.image]}
            densities = row_densities(model, request)
            for keep in KEEPS:
                by_row = Apportioned(keep=keep, densities=densities)
                for name, policy in (("sum", VLCache(keep=keep)), ("rows", by_row)):
                    reply = model.generate(
                        **request, policy=policy, max_new_tokens=MAX_NEW_TOKENS, temperature=0
                    )
                    found = scores.setdefault((keep, name), {})
                    found.setdefault(task, []).append(score(one, reply.text))
                elsewhere = np.abs(np.subtract(by_row.given[0], by_row.given[1])).sum() / 2
                moved[keep].append(float(elsewhere / sum(by_row.given[0])))
    for keep in KEEPS:
        gains, halves = apart(scores[keep, "rows"], scores[keep, "sum"])
        rows.append(
            {
                "keep": keep,
                "scores": {name: means(scores[keep, name]) for name in ("sum", "rows")},
                "rows_minus_sum": gains,
                "interval": halves,
                "moved": round(float(np.mean(moved[keep])), 4),
            }
        )
    return rows


def sentence(report: dict[str, Any]) -> str:
    """What documents say of a record."""
    said = []
    for row in report["rows"]:
        moved = f"{100 * row['moved']:.0f} % of the rows"
        gains = changes(row["rows_minus_sum"], row["interval"])
        said.append(f"{moved} with `keep={row['keep']}`, where scores change by {gains}")
    return (
        f"Measured on avl-tiny ({report['samples']} held-out samples a task, 95 % intervals): to "
        f"count row by row, as VL-Cache's paper does, moves to other layers {'; and '.join(said)} "
        "(`scripts/layer_budgets.py`, [JSON](../benchmarks/layer-budgets.json))."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parsed = asked(__doc__, 20, arguments)
    with tiny() as out:
        rows = measure(LVLM.load(out, backend="ort-cpu"), parsed.samples)
    print(json.dumps(record(parsed, {"rows": rows}), indent=2))


if __name__ == "__main__":
    main()
