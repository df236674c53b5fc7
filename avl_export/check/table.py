"""The one table of every comparison: how far two tensors are apart, and how far they may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from avl_plugins.errors import AvlError

Array = npt.NDArray[Any]
HEADER = f"{'':<34} {'difference':>10} {'largest':>10} {'of allowed':>10} {'1 - cosine':>10}"


class CheckError(AvlError):
    """A package, or a backend, computes something else than it should.

    Attributes:
        rows: all that was compared, where something differs.
    """

    def __init__(self, message: str, rows: Sequence[Row] = ()) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was compared.
        difference: the largest, absolute; `largest` the largest value.
        share: how much of what it may differ by it differs by, the worst part of it.
        cosine: the distance 1 - cos between what it is and what it should be; of states the largest
            of a token's.
    """

    name: str
    difference: float
    largest: float
    share: float
    cosine: float

    @property
    def ok(self) -> bool:
        """Whether it is what it should be."""
        return self.share <= 1

    def line(self) -> str:
        """The row for people, below `HEADER`."""
        return (
            f"{self.name:<34} {self.difference:>10.1e} {self.largest:>10.1e} {self.share:>10.1e} "
            f"{self.cosine:>10.1e}" + ("" if self.ok else "  differs")
        )


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """One tensor twice; `scale` is the largest value to judge a difference by, None for its own."""

    name: str
    found: Array
    expected: Array
    scale: float | None = None


def ignore(_: Row) -> None:
    """Hears of a row, and tells nobody."""


@dataclass(slots=True)
class Table:
    """Rows as they are found.

    Attributes:
        tolerance: of what a graph puts out, as a whole: its largest difference relative to its
            largest value, and its direction as one minus the cosine. Of states, token by token: of
            the norm of what was added to them.
        tell: hears of the worst row of each run, and of every row of states.
        rounding: what a state may differ by beside that, of its own norm, as states are rounded
            when they are handed over.
    """

    tolerance: float
    tell: Callable[[Row], None] = ignore
    rounding: float = 0.0
    rows: list[Row] = field(default_factory=list)

    @property
    def first_wrong(self) -> Row | None:
        """The first row that differs."""
        return next((row for row in self.rows if not row.ok), None)

    def add(self, place: str, outputs: Sequence[Output]) -> None:
        """Compare the outputs of one run, in the order in which the graph computes them."""
        rows = [self._output(f"{place} {output.name}", output) for output in outputs]
        self.rows += rows
        self.tell(max(rows, key=lambda row: row.share))

    def add_state(
        self, name: str, found: Array, expected: Array, before: Array | None = None
    ) -> None:
        """Compare states [..., C]; `before` is the state to which something was added.

        Tokens are judged each by its own norm: a few have values hundreds of times larger than the
        others.
        """
        found, expected = flat(found), flat(expected)
        row = _unlike(name, found, expected)
        if row is None:
            added = expected if before is None else expected - flat(before)
            allowed = self.tolerance * _norms(added) + self.rounding * _norms(expected)
            difference = found - expected
            share = _share(_norms(difference), allowed)
            cosine = _distance(found, expected)
            row = Row(name, largest(difference), largest(expected), share, cosine)
        self.rows.append(row)
        self.tell(row)

    def refuse(self, tested: str, reference: str, way_out: str) -> None:
        """Fail if a row differs.

        Raises:
            CheckError: names the first one.
        """
        first = self.first_wrong
        if first is None:
            return
        more = sum(not row.ok for row in self.rows) - 1
        after = f", and {more} more after it" if more else ""
        raise CheckError(
            f"expected {tested} to compute what {reference} does, found {first.name} first to "
            f"differ, by up to {first.difference:.1e} where values reach {first.largest:.1e} "
            f"(cosine {1 - first.cosine:.6f}){after}; {way_out}",
            self.rows,
        )

    def _output(self, name: str, output: Output) -> Row:
        found, expected = (np.asarray(a, np.float32) for a in (output.found, output.expected))
        row = _unlike(name, found, expected)
        if row is not None:
            return row
        difference, most = largest(found - expected), largest(expected)
        if not difference:
            return Row(name, 0.0, most, 0.0, 0.0)
        distance = _distance(found.reshape(1, -1), expected.reshape(1, -1))
        scale = most if output.scale is None else output.scale
        share = difference / (self.tolerance * scale) if scale else float("inf")
        if output.scale is None:
            share = max(share, distance / self.tolerance)
        return Row(name, difference, most, share, distance)


def flat(state: Array) -> Array:
    """[..., C] -> [rows, C] float32."""
    return np.asarray(state, np.float32).reshape(-1, state.shape[-1])


def largest(values: Array) -> float:
    """The largest absolute value, 0 of none."""
    return float(np.abs(values).max(initial=0.0))


def _unlike(name: str, found: Array, expected: Array) -> Row | None:
    """The row of arrays that cannot be compared: another shape, or something not finite."""
    if found.shape == expected.shape and np.isfinite(found).all():
        return None
    return Row(name, float("inf"), largest(expected), float("inf"), float("nan"))


def _norms(state: Array) -> Array:
    norms: Array = np.linalg.norm(state, axis=1)
    return norms


def _share(norms: Array, allowed: Array) -> float:
    """The largest quotient; nothing of nothing is none."""
    none = allowed == 0
    shares = np.where(none, np.where(norms > 0, np.inf, 0), norms / np.where(none, 1, allowed))
    return float(shares.max(initial=0.0))


def _distance(found: Array, expected: Array) -> float:
    """The largest 1 - cos between rows [N, C]; between nothing and something it is 1."""
    norms = _norms(found) * _norms(expected)
    products = (found * expected).sum(1)
    zero = norms == 0
    near = np.where(zero, ~(found.any(1) | expected.any(1)), products / np.where(zero, 1, norms))
    return float((1 - near).max(initial=0.0))
