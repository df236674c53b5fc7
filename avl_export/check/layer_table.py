"""The table of a comparison layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
HEADER = f"{'':<34} {'difference':>10} {'largest':>10} {'of allowed':>10} {'1 - cosine':>10}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was compared.
        difference: the largest, absolute; `largest` the largest value.
        share: of the row of the state that is furthest off, how much of the norm that its
            difference may have it has.
        cosine: the largest distance 1 - cos between a row of the state and what it should be.
    """

    name: str
    difference: float
    largest: float
    share: float
    cosine: float

    @property
    def ok(self) -> bool:
        """Whether the layer computes what transformers' does."""
        return self.share <= 1

    def line(self) -> str:
        """The row for people, below `HEADER`."""
        return (
            f"{self.name:<34} {self.difference:>10.1e} {self.largest:>10.1e} {self.share:>10.1e} "
            f"{self.cosine:>10.1e}" + ("" if self.ok else "  differs")
        )


@dataclass(slots=True)
class Table:
    """Rows as they are found.

    A row of a state, that is a token's, may differ by `tolerance` of what was added to it, and by
    `rounding` of itself, as states are rounded when they are handed over. Tokens are judged each
    by its own norm: a few have values hundreds of times larger than the others.

    Attributes:
        tell: hears of each row.
    """

    tolerance: float
    rounding: float
    tell: Callable[[Row], None]
    rows: list[Row] = field(default_factory=list)

    def add(self, name: str, found: Array, expected: Array, before: Array | None = None) -> None:
        """Compare states [..., C]; `before` is the state to which something was added."""
        found, expected = flat(found), flat(expected)
        most = largest(expected)
        if found.shape != expected.shape or not np.isfinite(found).all():
            row = Row(name, float("inf"), most, float("inf"), float("nan"))
        else:
            added = expected if before is None else expected - flat(before)
            allowed = self.tolerance * _norms(added) + self.rounding * _norms(expected)
            difference = found - expected
            share = _share(_norms(difference), allowed)
            row = Row(name, largest(difference), most, share, _cosine(found, expected))
        self.rows.append(row)
        self.tell(row)


def flat(state: Array) -> Array:
    """[..., C] -> [rows, C] float32."""
    return np.asarray(state, np.float32).reshape(-1, state.shape[-1])


def largest(values: Array) -> float:
    """The largest absolute value, 0 of none."""
    return float(np.abs(values).max(initial=0.0))


def _norms(state: Array) -> Array:
    norms: Array = np.linalg.norm(state, axis=1)
    return norms


def _share(norms: Array, allowed: Array) -> float:
    """The largest quotient; nothing of nothing is none."""
    none = allowed == 0
    shares = np.where(none, np.where(norms > 0, np.inf, 0), norms / np.where(none, 1, allowed))
    return float(shares.max(initial=0.0))


def _cosine(found: Array, expected: Array) -> float:
    norms = _norms(found) * _norms(expected)
    products = (found * expected).sum(1)
    zero = norms == 0
    near = np.where(zero, ~(found.any(1) | expected.any(1)), products / np.where(zero, 1, norms))
    return float((1 - near).max(initial=0.0))
