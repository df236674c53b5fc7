#!/usr/bin/env python
"""Measure RESTORE's bias and merging and CAAC's raised attention on avl-tiny's held-out samples.

    .venv/bin/python scripts/restored_scores.py --samples 20 --json benchmarks/restore.json

What chooses image tokens before the decoder runs at a third and a ninth of them with positions that
are kept, closed up, and kept under RESTORE's bias; and what averages nothing by itself once more in
these three ways with RESTORE's merging, half of the tokens being anchors. CAAC runs on all tokens
and on a choice, at its own threshold and in every step. Told are scores by task, their differences
from the same without, sample by sample, with a 95 % interval, and which share of the steps CAAC had
computed again.
Nothing here is timed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from avl_runtime import LVLM
from avl_runtime.evaluate.measure import MAX_NEW_TOKENS
from avl_runtime.tasks import TASKS, samples
from avl_runtime.tasks.metrics import score
from held_out import Scores, apart, asked, changes, means, record, tiny

METHODS = ("divprune", "mmtok", "scope", "vispruner", "visionzip", "uniform", "pool")
SHARES = {"1/3": 0.3333, "1/9": 0.1111}
POSITIONS = {how: f"positions={how}" for how in ("renumber", "restore")}  # beside kept ones
MERGED = ("divprune", "mmtok", "scope", "vispruner", "visionzip:merge=False", "uniform")
MERGINGS = {  # half of what stays, as in the paper
    f"{how} merged": f"positions={how},gamma=0.5" for how in ("keep", *POSITIONS)
}
GATES = {"caac": "caac", "in every step": "caac:below=1"}
UNDER = {"dense": "dense", "1/9": "divprune:keep=0.1111"}


def scores_of(model: LVLM, policy: str, count: int) -> tuple[Scores, float]:
    """Of each held-out sample, by task, and the share of steps that were computed again."""
    found: dict[str, list[float]] = {}
    steps = again = 0
    for task in TASKS:
        for one in samples(task, "held-out", count):
            reply = model.generate(
                one.prompt,
                [one.image],
                policy=policy,
                max_new_tokens=MAX_NEW_TOKENS,
                temperature=0,
            )
            found.setdefault(task, []).append(score(one, reply.text))
            steps += reply.stats.new_tokens - 1
            again += reply.stats.steps_again
    return found, again / steps


def beside(scores: Scores, base: Scores) -> dict[str, Any]:
    """Scores, and how much better they are than others of the same samples."""
    gains, halves = apart(scores, base)
    return {"scores": means(scores), "gain": gains, "interval": halves}


def varied(
    model: LVLM, count: int, methods: Sequence[str], ways: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Methods at every share, their positions kept, beside the same with further options.

    Args:
        ways: options by what a row calls them.
    """
    rows = []
    for method in methods:
        for told, share in SHARES.items():
            text = f"{method}{',' if ':' in method else ':'}keep={share}"
            kept, _ = scores_of(model, text, count)
            row: dict[str, Any] = {"method": method, "share": told, "keep": means(kept)}
            for way, options in ways.items():
                row[way] = beside(scores_of(model, f"{text},{options}", count)[0], kept)
            rows.append(row)
    return rows


def raised(model: LVLM, count: int) -> list[dict[str, Any]]:
    """CAAC on all tokens and on a choice of them."""
    rows = []
    for told, text in UNDER.items():
        plain, _ = scores_of(model, text, count)
        for name, spec in GATES.items():
            policy = spec if text == "dense" else f"{text}+{spec}"
            found, again = scores_of(model, policy, count)
            row = {"under": told, "gate": name, "again": round(again, 4)}
            rows.append({**row, **beside(found, plain)})
    return rows


def table(report: dict[str, Any], rows: str = "positions") -> str:
    """A line for each method and share: scores, and what each other way changes them by."""
    ways = [way for way in report[rows][0] if way not in ("method", "share", "keep")]
    heads = ["policy", "share", *(f"{task}, kept" for task in TASKS)]
    heads += [f"{task}, {way}" for way in ways for task in TASKS]
    lines = [_line(heads), "|" + "---|" * len(heads)]
    for row in report[rows]:
        cells = [f"`{row['method']}`", row["share"]]
        cells += [f"{row['keep'][task]:.2f}" for task in TASKS]
        cells += [_change(row[way], task) for way in ways for task in TASKS]
        lines.append(_line(cells))
    return "\n".join(lines)


def sentence(report: dict[str, Any]) -> str:
    """What CAAC changes, as documents say it."""

    def said(row: dict[str, Any]) -> str:
        of = "all tokens" if row["under"] == "dense" else "a ninth of them (`divprune`)"
        how = "at its own threshold" if row["gate"] == "caac" else "in every step"
        gains = changes(row["gain"], row["interval"])
        return f"{how}, on {of} ({row['again']:.1%} of the steps computed again), by {gains}"

    return (
        f"Measured on avl-tiny ({report['samples']} held-out samples a task, 95 % intervals), "
        f"`caac` changes scores {'; '.join(map(said, report['caac']))} "
        "(`scripts/restored_scores.py`, [JSON](../benchmarks/restore.json))."
    )


def _change(row: dict[str, Any], task: str) -> str:
    gain = round(row["gain"][task], 2) + 0.0  # no -0.00
    return f"{gain:+.2f} ± {row['interval'][task]:.2f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parsed = asked(__doc__, 20, arguments)
    with tiny("--restore", "--vision-attention") as out:
        model = LVLM.load(out, backend="ort-cpu")
        found = {
            "positions": varied(model, parsed.samples, METHODS, POSITIONS),
            "merged": varied(model, parsed.samples, MERGED, MERGINGS),
            "caac": raised(model, parsed.samples),
        }
    print(json.dumps(record(parsed, found), indent=2))


if __name__ == "__main__":
    main()
