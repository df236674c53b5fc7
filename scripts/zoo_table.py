"""Tables and the picture of benchmarks/zoo.json: what drops image tokens, side by side.

.venv/bin/avl-export --model avl-tiny --vision-attention --out telling.avl
.venv/bin/avl-eval telling.avl --zoo --samples 20 --json benchmarks/zoo.json
.venv/bin/python scripts/documents.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

SHARES = {"0.5": "1/2", "0.3333": "1/3", "0.1111": "1/9", "0.0556": "1/18"}
NINTH = "0.1111"
TASKS = ("ocr", "vqa", "caption")
SURE = 1.96  # standard errors to either side: 95 %
WIDTH, HEIGHT, MARGIN, LEGEND = 760, 300, 44, 210  # pixels of a panel
COLOURS = ("#0070e0", "#e07800", "#3f8f2f", "#c2187c", "#7a5cff", "#009c8e", "#8c564b", "#b8860b")


def name_of(policy: str) -> str:
    """A policy without its share: `random:of=avl` of random:keep=0.1111,of=avl."""
    name, _, options = policy.partition(":")
    left = [one for one in options.split(",") if one and not one.startswith("keep=")]
    return f"{name}:{','.join(left)}" if left else name


def share_of(policy: str) -> str:
    """The share that it keeps, as it is written; FastV's and A-VL's 0.5 is not written."""
    options = policy.partition(":")[2].split(",")
    return next((one.removeprefix("keep=") for one in options if one.startswith("keep=")), "0.5")


def by_name(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Rows by policy and share, dense attention's aside; the best reader of a ninth first."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["policy"] != "dense":
            found.setdefault(name_of(row["policy"]), {})[share_of(row["policy"])] = row
    order = sorted(found, key=lambda name: -found[name][NINTH]["scores"]["ocr"])
    return {name: found[name] for name in order}


def table(record: Mapping[str, Any]) -> str:
    """A line a policy: scores of reading by share, and of a ninth what else there is."""
    heads = ["policy", *(f"ocr, {share}" for share in SHARES.values())]
    heads += ["vqa, 1/9", "caption, 1/9", "total KV, 1/9", "FLOPs, 1/9"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    dense = _dense(record)["scores"]
    lines.append(
        f"| `dense` | {' | '.join([_score(dense['ocr'])] * 4)} | {_score(dense['vqa'])} | "
        f"{_score(dense['caption'])} | 100% | 100% |"
    )
    for name, shares in by_name(record["policies"]).items():
        cells = [f"`{name}`", *(_score(shares[one]["scores"]["ocr"]) for one in SHARES)]
        ninth = shares[NINTH]
        cells += [_score(ninth["scores"][task]) for task in ("vqa", "caption")]
        cells += [f"{ninth[key]:.0%}" for key in ("kv", "flops")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sentence(record: Mapping[str, Any]) -> str:
    """How the best before the decoder reads at a ninth, beside FastV at the same share."""
    found = by_name(record["policies"])
    later = ("fastv", "random", "avl", "random:of=avl")
    best = next(name for name in found if name not in later)
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


def picture(record: Mapping[str, Any]) -> str:
    """An SVG of a panel a task: score against the cache's bytes; the line is what none exceeds."""
    parts = [_panel(record, task, number) for number, task in enumerate(TASKS)]
    height = HEIGHT * len(TASKS)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(record: Mapping[str, Any], task: str, number: int) -> str:
    top, wide = number * HEIGHT + 24, WIDTH - LEGEND - MARGIN
    tall = HEIGHT - 24 - MARGIN

    def at(row: Row) -> tuple[float, float]:
        return MARGIN + row["kv"] * wide, top + (1 - row["scores"][task]) * tall

    lines = [f'<text x="{MARGIN}" y="{top - 8}" font-size="13">{task}</text>']
    for step in range(5):
        x, y = MARGIN + step / 4 * wide, top + step / 4 * tall
        lines.append(f'<path d="M{MARGIN} {y:.1f}H{MARGIN + wide}" stroke="#e4e4e4"/>')
        lines.append(
            f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{1 - step / 4:g}</text>'
        )
        lines.append(
            f'<text x="{x:.1f}" y="{top + tall + 14}" text-anchor="middle">{step * 25}%</text>'
        )
    lines.append(
        f'<text x="{MARGIN + wide / 2}" y="{top + tall + 30}" text-anchor="middle">'
        "bytes of the cache, share of dense</text>"
    )
    rows = [_dense(record), *(row for row in record["policies"] if row["policy"] != "dense")]
    best = [at(row) for row in pareto(rows, task)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in best)
    lines.append(f'<path d="M{path}" fill="none" stroke="#30343a" stroke-dasharray="4 3"/>')
    for place, (name, shares) in enumerate(by_name(record["policies"]).items()):
        colour = COLOURS[place % len(COLOURS)]
        shape = _SHAPES[place // len(COLOURS) % len(_SHAPES)]
        lines += [shape.format(*at(row), colour) for row in shares.values()]
        y = top + 6 + place * 14
        lines.append(shape.format(WIDTH - LEGEND + 16, y - 4, colour))
        lines.append(f'<text x="{WIDTH - LEGEND + 28}" y="{y}">{name}</text>')
    return "\n".join(lines)


_SHAPES = (
    '<circle cx="{0:.1f}" cy="{1:.1f}" r="4" fill="{2}"/>',
    '<circle cx="{0:.1f}" cy="{1:.1f}" r="3.4" fill="#ffffff" stroke="{2}" stroke-width="2"/>',
    '<path d="M{0:.1f} {1:.1f}m-4 -4l8 8m0 -8l-8 8" stroke="{2}" stroke-width="2"/>',
)


def pareto(rows: Sequence[Row], task: str) -> list[Row]:
    """Rows that no other beats with as few bytes, from few bytes to many."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda one: (one["kv"], -one["scores"][task])):
        if not found or row["scores"][task] > found[-1]["scores"][task]:
            found.append(row)
    return found


def _dense(record: Mapping[str, Any]) -> Row:
    return next(row for row in record["policies"] if row["policy"] == "dense")


def _score(value: float) -> str:
    return f"{value:.2f}"
