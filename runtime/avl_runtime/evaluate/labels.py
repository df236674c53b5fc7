"""Words beside the points of a plot, so placed that they lie on nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

DISTANCES = (11, 19, 30, 44, 60, 80, 104, 132)  # pixels at 100 a inch, from a point to its words
TURNS = 24  # directions tried at each distance
MARKER = 6.0  # pixels at 100 an inch, half of a point's side
CROSSED = 400.0  # what it costs to lie on words or a point, in pixels of distance
STRUCK = 9.0  # the same for every STRIDE pixels of a line that words lie on
STRIDE = 4.0
NEAR = 16.0  # words further away than this get a line to their point

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True, slots=True)
class Label:
    """Words for the point (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


def write_labels(
    figure: Any, panel: Any, labels: Sequence[Label], lines: Sequence[Sequence[Point]]
) -> None:
    """Write `labels` into `panel`; matplotlib has laid the figure out, and shall not do it again.

    Args:
        lines: what is drawn between points, in data coordinates; words lie on it if they must.
    """
    renderer, unit = figure.canvas.get_renderer(), figure.dpi / 100
    room = panel.get_window_extent(renderer)
    points = [tuple(panel.transData.transform((one.x, one.y))) for one in labels]
    reach = MARKER * unit
    taken: list[Box] = [(x - reach, y - reach, x + reach, y + reach) for x, y in points]
    struck = [
        one
        for line in lines
        for one in _dotted([tuple(panel.transData.transform(end)) for end in line], unit)
    ]
    # Points with the most neighbours choose first: others have more places to go.
    crowd = [sum(math.dist(one, other) < 60 * unit for other in points) for one in points]
    for index in sorted(range(len(labels)), key=lambda number: -crowd[number]):
        label, (x, y) = labels[index], points[index]
        words = panel.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset pixels",
            color=label.colour,
            fontsize=10,
            ha="center",
            va="center",
        )
        words.set_in_layout(False)
        size = words.get_window_extent(renderer)
        half = (size.width / 2 + 2 * unit, size.height / 2)
        places = _places(x, y, half, unit)
        edges = (room.x0, room.y0, room.x1, room.y1)
        costs = ((_cost(box, taken, struck, edges, (x, y), unit), d, box) for d, box in places)
        _, (dx, dy), box = min(costs)
        taken.append(box)
        words.set_position((dx, dy))
        if math.hypot(*_gap((x, y), box)) > NEAR * unit:
            end = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
            ends = panel.transData.inverted().transform([(x, y), end])
            panel.plot(*zip(*ends, strict=True), color=label.colour, lw=0.6, alpha=0.6, zorder=1)


def _dotted(line: Sequence[Point], unit: float) -> Iterator[Point]:
    """Points of a line, STRIDE apart."""
    for one, other in pairwise(line):
        steps = max(1, round(math.dist(one, other) / STRIDE / unit))
        for step in range(steps):
            share = step / steps
            yield (
                one[0] + share * (other[0] - one[0]),
                one[1] + share * (other[1] - one[1]),
            )


def _places(x: float, y: float, half: Point, unit: float) -> Iterator[tuple[Point, Box]]:
    """Offsets of a label's middle from its point, nearest first, and its box there."""
    for distance in DISTANCES:
        for turn in range(TURNS):
            angle = 2 * math.pi * turn / TURNS
            dx = math.cos(angle) * (distance * unit + half[0])
            dy = math.sin(angle) * (distance * unit + half[1])
            yield (
                (dx, dy),
                (x + dx - half[0], y + dy - half[1], x + dx + half[0], y + dy + half[1]),
            )


def _cost(
    box: Box,
    taken: Sequence[Box],
    struck: Sequence[Point],
    edges: Box,
    point: Point,
    unit: float,
) -> float:
    crossed = sum(_overlap(box, other) for other in taken)
    through = sum(box[0] < x < box[2] and box[1] < y < box[3] for x, y in struck)
    outside = box[0] < edges[0] or box[1] < edges[1] or box[2] > edges[2] or box[3] > edges[3]
    return (
        math.hypot(*_gap(point, box)) / unit
        + CROSSED * crossed
        + STRUCK * through
        + 4 * CROSSED * outside
    )


def _gap(point: Point, box: Box) -> Point:
    """From a point to the nearest edge of a box, along both axes."""
    x, y = point
    return max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3])


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
