"""Outputs of graphs compared one by one, in the order in which they are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_export.check.layer_table import Row, largest

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """One tensor twice; `scale` is the largest value to judge a difference by, None for its own."""

    name: str
    found: Array
    expected: Array
    scale: float | None = None


@dataclass(slots=True)
class Outputs:
    """All outputs that were compared.

    An output may differ by `tolerance` of its largest value, and its direction by as much (as one
    minus the cosine).

    Attributes:
        tell: hears of the worst output of each pass.
    """

    tolerance: float
    tell: Callable[[Row], None]
    rows: list[Row] = field(default_factory=list)

    def add(self, place: str, outputs: Sequence[Output]) -> None:
        """Compare the outputs of one pass, in the order in which the graph computes them."""
        rows = [self._row(place, output) for output in outputs]
        self.rows += rows
        self.tell(max(rows, key=lambda row: row.share))

    @property
    def first_wrong(self) -> Row | None:
        """The first output that differs."""
        return next((row for row in self.rows if not row.ok), None)

    def _row(self, place: str, output: Output) -> Row:
        name = f"{place} {output.name}"
        found, expected = (np.asarray(a, np.float32) for a in (output.found, output.expected))
        most = largest(expected)
        if found.shape != expected.shape or not np.isfinite(found).all():
            return Row(name, float("inf"), most, float("inf"), float("nan"))
        difference = largest(found - expected)
        norms = float(np.linalg.norm(found) * np.linalg.norm(expected))
        distance = 1 - float(np.vdot(found, expected)) / norms if norms else float(difference > 0)
        scale = most if output.scale is None else output.scale
        share = difference / (self.tolerance * scale) if scale else float("inf") * difference
        if output.scale is None:
            share = max(share, distance / self.tolerance)
        return Row(name, difference, most, share if difference else 0.0, distance)
