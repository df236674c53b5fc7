"""The table of a comparison layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
HEADER = f"{'':<34} {'difference':>10} {'allowed':>10} {'1 - cosine':>10}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was compared.
        difference: the largest, absolute.
        cosine: the largest distance 1 - cos between a row of the state and what it should be.
        limit: what `difference` may be.
    """

    name: str
    difference: float
    cosine: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the layer computes what transformers' does."""
        return self.difference <= self.limit

    def line(self) -> str:
        """The row for people, below `HEADER`."""
        mark = "" if self.ok else "  differs"
        return (
            f"{self.name:<34} {self.difference:>10.1e} {self.limit:>10.1e} {self.cosine:>10.1e}"
            + mark
        )


@dataclass(slots=True)
class Table:
    """Rows as they are found.

    Attributes:
        tolerance: bound of a difference, as a share of the most that a layer adds to its input.
        rounding: the same, as a share of the largest value: states are rounded when handed over.
        tell: hears of each row.
    """

    tolerance: float
    rounding: float
    tell: Callable[[Row], None]
    rows: list[Row] = field(default_factory=list)

    def add(self, name: str, found: Array, expected: Array, before: Array | None = None) -> None:
        """Compare states [..., C] row by row; `before` is what the layer was given."""
        found, expected = flat(found), flat(expected)
        scale = largest(expected)
        added = scale if before is None else largest(expected - flat(before))
        limit = self.tolerance * added + self.rounding * scale
        if found.shape != expected.shape or not np.isfinite(found).all():
            row = Row(name, float("inf"), float("nan"), limit)
        else:
            row = Row(name, largest(found - expected), _cosine(found, expected), limit)
        self.rows.append(row)
        self.tell(row)


def flat(state: Array) -> Array:
    """[..., C] -> [rows, C] float32."""
    return np.asarray(state, np.float32).reshape(-1, state.shape[-1])


def largest(values: Array) -> float:
    """The largest absolute value, 0 of none."""
    return float(np.abs(values).max(initial=0.0))


def _cosine(found: Array, expected: Array) -> float:
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    products = (found * expected).sum(1)
    zero = norms == 0
    near = np.where(zero, ~(found.any(1) | expected.any(1)), products / np.where(zero, 1, norms))
    return float((1 - near).max(initial=0.0))
