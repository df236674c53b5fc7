"""Tables of benchmarks/zoo.json: what drops image tokens, side by side; zoo_picture.py draws it.

.venv/bin/avl-export --model avl-tiny --vision-attention --split 2,3,4 --out telling.avl
.venv/bin/avl-eval telling.avl --zoo --samples 20 --json benchmarks/zoo.json
.venv/bin/python scripts/documents.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from avl_runtime.bench.idle import QUIET
from avl_runtime.evaluate import zoo
from held_out import SURE

Row = Mapping[str, Any]

SHARES = {0.5: "1/2", 0.3333: "1/3", 0.1111: "1/9", 0.0556: "1/18"}
NINTH = 0.1111
TASKS = ("ocr", "vqa", "caption")
COSTS = {"image_kv": "image KV", "kv": "total KV", "flops": "FLOPs"}
TIMES = {"first_ms": "first token", "step_ms": "each next"}
STAGES = tuple(zoo.STAGES.values())[:3]  # in which tokens are dropped


def by_name(rows: Sequence[Row]) -> dict[str, dict[float, Row]]:
    """Rows by policy and share, without those that drop nothing.

    By stage, and of one the best reader of a ninth first.
    """
    found: dict[str, dict[float, Row]] = {}
    for row in rows:
        if row["policy"] != "dense" and row["share"] < 1:
            found.setdefault(row["name"], {})[row["share"]] = row

    def place(name: str) -> tuple[int, float]:
        row = found[name][NINTH]
        return STAGES.index(row["stage"]), -row["scores"]["ocr"]

    return {name: found[name] for name in sorted(found, key=place)}


def timed(record: Mapping[str, Any]) -> bool:
    """Whether a record has times.

    Raises:
        ValueError: they are those of a busy machine, which say nothing.
    """
    times = record["times"]
    if times is None:
        return False
    if times["busy_before"] is None or times["busy_before"] > QUIET:
        raise ValueError(
            f"expected times of an idle machine, found {times['busy_before']} of its processors "
            "busy before; measure again, or with --no-times"
        )
    return True


def table(record: Mapping[str, Any]) -> str:
    """A line a policy: scores of reading by share, and of a ninth what else there is."""
    costs = COSTS | (TIMES if timed(record) else {})
    heads = ["policy", *(f"ocr, {share}" for share in SHARES.values())]
    heads += [f"{what}, 1/9" for what in ("vqa", "caption", *costs.values())]
    dense = _dense(record)
    cells = ["`dense`", *[_score(dense["scores"]["ocr"])] * len(SHARES)]
    lines = [*_head(heads), _line([*cells, *_ninth(dense, costs)])]
    stage = ""
    for name, shares in by_name(record["policies"]).items():
        ninth = shares[NINTH]
        if ninth["stage"] != stage:
            stage = ninth["stage"]
            lines.append(_line([f"**{stage}**", *[""] * (len(heads) - 1)]))
        cells = [f"`{name}`", *(_score(shares[one]["scores"]["ocr"]) for one in SHARES)]
        lines.append(_line([*cells, *_ninth(ninth, costs)]))
    return "\n".join(lines)


def whole(record: Mapping[str, Any]) -> str:
    """A table for each share, with all scores, their intervals, and all costs."""
    costs = COSTS | (TIMES if timed(record) else {})
    parts = []
    for share, told in SHARES.items():
        lines = _head(["policy", *TASKS, *costs.values()])
        lines.append(_line(["`dense`", *_all(_dense(record), costs)]))
        stage = ""
        for shares in by_name(record["policies"]).values():
            row = shares[share]
            if row["stage"] != stage:
                stage = row["stage"]
                lines.append(_line([f"**{stage}**", *[""] * (len(TASKS) + len(costs))]))
            lines.append(_line([f"`{row['policy']}`", *_all(row, costs)]))
        parts.append(f"## {told} of the tokens\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def surroundings(record: Mapping[str, Any]) -> str:
    """What the figures are of."""
    told = f"{record['samples_per_task']} held-out samples a task."
    if not timed(record):
        return f"{told} Times are left out: this record has none."
    times = record["times"]
    machine = times["machine"]
    return (
        f"{told} Times are medians over samples, in milliseconds, of an {machine['cpu']} with "
        f"{machine['processors']} processors: from a picture's patches to the first token, the "
        f"encoder included, and of each of {times['steps']} tokens behind it."
    )


def sentence(record: Mapping[str, Any]) -> str:
    """How the best before the decoder reads at a ninth, beside FastV at the same share."""
    found = by_name(record["policies"])
    best = next(name for name in found if not name.startswith("random"))
    one, other = found[best][NINTH], found["fastv"][NINTH]
    gain, error = difference(one, other, "ocr")
    return (
        f"Of what chooses before the decoder `{best}` reads most at a ninth of the tokens: "
        f"{_score(one['scores']['ocr'])} of the characters, where FastV at the same share reads "
        f"{_score(other['scores']['ocr'])} with {other['kv'] / one['kv']:.1f} times the cache: a "
        f"difference of {gain:+.2f} ± {SURE * error:.2f} (95 %, {record['samples_per_task']} "
        "samples a task, [JSON](benchmarks/zoo.json))."
    )


def difference(one: Row, other: Row, task: str) -> tuple[float, float]:
    """How much better one row is, and the standard error as if samples were others."""
    errors = [row["standard_errors"][task] for row in (one, other)]
    return one["scores"][task] - other["scores"][task], math.hypot(*errors)


def _ninth(row: Row, costs: Mapping[str, str]) -> list[str]:
    scores = [_score(row["scores"][task]) for task in ("vqa", "caption")]
    return scores + [_cost(row, name) for name in costs]


def _all(row: Row, costs: Mapping[str, str]) -> list[str]:
    scores = [
        f"{_score(row['scores'][task])} ± {SURE * row['standard_errors'][task]:.2f}"
        for task in TASKS
    ]
    return scores + [_cost(row, name) for name in costs]


def _cost(row: Row, name: str) -> str:
    return f"{row[name]:.2f} ms" if name in TIMES else f"{row[name]:.0%}"


def _head(heads: Sequence[str]) -> list[str]:
    return [_line(heads), "|" + "---|" * len(heads)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _dense(record: Mapping[str, Any]) -> Row:
    return next(row for row in record["policies"] if row["policy"] == "dense")


def _score(value: float) -> str:
    return f"{value:.2f}"
