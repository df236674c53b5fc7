"""docs/zoo.svg, of benchmarks/zoo.json: a panel a task, scores against the bytes of the cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from zoo_table import SHARES, STAGES, TASKS, Row, by_name

WIDTH, HEIGHT, MARGIN, LEGEND = 900, 470, 44, 230  # pixels of a panel, its height at least
TOP, BELOW, LINE = 40, 44, 14
LETTER = 6  # pixels of a label's
LEAST = 0.1  # of the bytes, where the logarithmic axis begins
TICKS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
CONTROLS = ("#9aa0a8", "#c9b28f")
COLOURS = (
    "#0070e0", "#e07800", "#3f8f2f", "#c2187c", "#7a5cff", "#009c8e", "#8c564b", "#b8860b",
    "#d62728", "#4b5bb5", "#6b8e23", "#30343a",
)  # fmt: skip
SHAPES = {  # a stage's, at x, y, in a colour
    STAGES[0]: '<circle cx="{0:.1f}" cy="{1:.1f}" r="3.6" fill="{2}"/>',
    STAGES[1]: '<path d="M{0:.1f} {1:.1f}m-4 3.5l4 -7.5l4 7.5z" fill="{2}"/>',
    STAGES[2]: '<path d="M{0:.1f} {1:.1f}m-3.6 -3.6h7.2v7.2h-7.2z" fill="#ffffff" stroke="{2}" '
    'stroke-width="2"/>',
}


def picture(record: Mapping[str, Any]) -> str:
    """An SVG: a mark a row, its shape by stage; the line is what none exceeds with as few bytes."""
    names = len(by_name(record["policies"]))
    each = max(HEIGHT, TOP + LINE * (names + 2 * len(STAGES)))
    panels = [_panel(record, task, number * each, each) for number, task in enumerate(TASKS)]
    height = each * len(TASKS)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )


def pareto(rows: Sequence[Row], task: str) -> list[Row]:
    """Rows that no other beats with as few bytes, from few bytes to many."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda one: (one["kv"], -one["scores"][task])):
        if not found or row["scores"][task] > found[-1]["scores"][task]:
            found.append(row)
    return found


def _panel(record: Mapping[str, Any], task: str, above: int, height: int) -> str:
    top, wide = above + TOP, WIDTH - LEGEND - MARGIN
    tall = height - TOP - BELOW

    def at(row: Row) -> tuple[float, float]:
        along = math.log(max(row["kv"], LEAST) / LEAST) / math.log(1 / LEAST)
        return MARGIN + along * wide, top + (1 - row["scores"][task]) * tall

    lines = [f'<text x="{MARGIN}" y="{top - 10}" font-size="13">{task}</text>']
    lines += _axes(top, wide, tall)
    best = pareto(record["policies"], task)
    path = "L".join("{:.1f} {:.1f}".format(*at(row)) for row in best)
    lines.append(f'<path d="M{path}" fill="none" stroke="#30343a" stroke-dasharray="4 3"/>')
    legend: list[str] = []
    y, stage = top + 4.0, ""
    colours, greys = cycle(COLOURS), cycle(CONTROLS)
    for name, shares in by_name(record["policies"]).items():
        here = next(iter(shares.values()))["stage"]
        if here != stage:
            stage, colours, greys = here, cycle(COLOURS), cycle(CONTROLS)
            y += LINE / 2 if legend else 0
            legend.append(_text(WIDTH - LEGEND + 10, y, stage, ' font-weight="bold"'))
            y += LINE
        colour = next(greys if name.startswith("random") else colours)
        lines += [SHAPES[stage].format(*at(row), colour) for row in shares.values()]
        legend += [SHAPES[stage].format(WIDTH - LEGEND + 16, y - 4, colour)]
        legend.append(_text(WIDTH - LEGEND + 28, y, name))
        y += LINE
    lines += legend
    end, high = 0.0, 0.0  # of the label before: where the next begins, it lies higher
    for row in best:
        (x, y), told = at(row), _label(row)
        high = min(y - 5, high - 11) if x - 5 - LETTER * len(told) < end else y - 5
        end = x
        lines.append(_text(x - 5, high, told, ' text-anchor="end" font-size="10"'))
    return "\n".join(lines)


def _axes(top: float, wide: float, tall: float) -> list[str]:
    lines = []
    for step in range(5):
        y = top + step / 4 * tall
        lines.append(f'<path d="M{MARGIN} {y:.1f}H{MARGIN + wide}" stroke="#e4e4e4"/>')
        lines.append(_text(MARGIN - 6, y + 4, f"{1 - step / 4:g}", ' text-anchor="end"'))
    for tick in TICKS:
        x = MARGIN + math.log(tick / LEAST) / math.log(1 / LEAST) * wide
        lines.append(_text(x, top + tall + 14, f"{tick:.0%}", ' text-anchor="middle"'))
    told = "bytes of the cache, share of dense (logarithmic)"
    lines.append(_text(MARGIN + wide / 2, top + tall + 30, told, ' text-anchor="middle"'))
    return lines


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{text}</text>'


def _label(row: Row) -> str:
    return "dense" if row["policy"] == "dense" else f"{row['name']} {SHARES[row['share']]}"
