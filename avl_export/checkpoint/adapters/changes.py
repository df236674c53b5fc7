"""What an adapter makes of a stored tensor, a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from avl_export.checkpoint.source import PIECE, Floats, Source


@dataclass(frozen=True, slots=True)
class Replaced:
    """A tensor that the adapter holds whole, as modules_to_save and biases are."""

    source: Source

    def rows(self, _weights: Floats, first: int, last: int, _base: Source) -> Floats:
        return self.source.read_floats(first, last)


@dataclass(frozen=True, slots=True)
class Added:
    """A bias that the adapter adds scale * b to."""

    source: Source
    scale: float

    def rows(self, weights: Floats, first: int, last: int, _base: Source) -> Floats:
        return weights + np.float32(self.scale) * self.source.read_floats(first, last)


@dataclass(frozen=True, slots=True)
class LowRank:
    """W + scale B A, and for DoRA each row's (an embedding's column's) norm set to a magnitude.

    Attributes:
        a: [rank, inputs], of an embedding [rank, rows]; of a convolution [rank, inputs, ...].
        b: [outputs, rank], of an embedding [columns, rank]; of a convolution [outputs, rank, 1..].
        magnitude: of DoRA, a value for each row, of an embedding for each column.
    """

    a: Source
    b: Source
    scale: float
    magnitude: Source | None
    embedding: bool
    reader: Reader

    def rows(self, weights: Floats, first: int, last: int, base: Source) -> Floats:
        merged = self.added(weights, first, last)
        if self.magnitude is None:
            return merged
        magnitude = self.reader.matrix(self.magnitude).reshape(-1)
        if self.embedding:
            return np.asarray(
                merged * (magnitude / self.reader.column_norms(self, base)), np.float32
            )
        flat = merged.reshape(last - first, -1)
        norms = np.linalg.norm(flat.astype(np.float64), axis=1)
        factors: Floats = (magnitude[first:last] / norms).astype(np.float32)
        scaled: Floats = flat * factors[:, None]
        return scaled.reshape(weights.shape)

    def added(self, weights: Floats, first: int, last: int) -> Floats:
        """W + scale B A of some rows."""
        a, b = self.reader.matrix(self.a), self.reader.matrix(self.b)
        delta = a[:, first:last].T @ b.T if self.embedding else b[first:last] @ a
        return weights + np.float32(self.scale) * delta.reshape(weights.shape)


class Reader:
    """Reads factors whole, and keeps those of the tensor at hand."""

    def __init__(self) -> None:
        self.matrix = lru_cache(maxsize=4)(_matrix)
        self.column_norms = lru_cache(maxsize=1)(_column_norms)


def _matrix(source: Source) -> Floats:
    """All of a factor, its last axes flattened."""
    rows = source.record.shape[0]
    return source.read_floats(0, rows).reshape(rows, -1)


def _column_norms(change: LowRank, base: Source) -> Floats:
    rows, columns = base.record.shape
    squares = np.zeros(columns)
    step = max(1, PIECE // (4 * columns))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        merged = change.added(base.read_floats(first, last), first, last)
        squares += np.square(merged.astype(np.float64)).sum(0)
    return np.sqrt(squares).astype(np.float32)
