"""Numbers about the rows of each layer, where layers may have different numbers of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from avl_runtime.machine.pages import ROWS

Floats = NDArray[np.float32]
Layers = tuple[int, int]  # the first, and one past the last

# Of the R masses of a key: what the last query row gave it, and what all text query rows gave.
LAST, TEXT = 0, 1


def alike(counts: Sequence[object]) -> Iterator[Layers]:
    """Runs of layers whose `counts` are equal."""
    first, count = 0, len(counts)
    for last in range(1, count + 1):
        if last == count or counts[last] != counts[first]:
            yield first, last
            first = last


class ByLayer:
    """An array [B, Hkv, R, rows] float32 for each layer.

    Neighbours with room for as many rows lie in one array, so that they are added or ranked in one
    operation.
    """

    __slots__ = ("_layers", "_runs")

    def __init__(self, runs: Iterable[Floats]) -> None:
        """
        Args:
            runs: arrays [l, B, Hkv, R, rows], of the next l layers each.
        """
        self._layers: list[Floats] = []
        self._runs: list[tuple[int, int, Floats]] = []
        for run in runs:
            begin = len(self._layers)
            self._layers.extend(run)
            self._runs.append((begin, len(self._layers), run))

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Floats]:
        return iter(self._layers)

    def __getitem__(self, layer: int) -> Floats:
        return self._layers[layer]

    def of(self, layers: Layers, seq: int, kind: int, count: int) -> Floats:
        """The first `count` rows of a sequence in some layers, [l, Hkv, count].

        Args:
            kind: which of the R.
        """
        first, last = layers
        for begin, end, run in self._runs:
            if begin <= first and last <= end:
                return run[first - begin : last - begin, seq, :, kind, :count]
        return np.stack([rows[seq, :, kind, :count] for rows in self._layers[first:last]])


def unfilled(shapes: Sequence[tuple[int, ...]]) -> ByLayer:
    """Arrays of these shapes [B, Hkv, R, rows], one a layer, that are still to be written."""
    return ByLayer(
        ROWS.empty((last - first, *shapes[first]), np.float32) for first, last in alike(shapes)
    )
