"""What layers with a state keep: an array a sequence, ordered in time, as a whole or not at all.

A state cannot be divided: no row of it can be moved, dropped or taken back. Its arrays are never
written while another cache may have them, so that copies and forks share them, and what a run makes
takes the place of what was there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.graph_io import BATCH, Segment

Array = NDArray[Any]


class LayerStates:
    """States of a segment's layers for B sequences, in the order of `graph_io.Segment.states`.

    Attributes:
        arrays: [B, ...] each.
    """

    __slots__ = ("_shared", "arrays")

    def __init__(self, arrays: Iterable[Array] = ()) -> None:
        self.arrays: list[Array] = list(arrays)
        self._shared = False

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(array.nbytes for array in self.arrays)

    def copy(self) -> LayerStates:
        """The same arrays for another cache; neither of the two writes them from now on."""
        other = LayerStates(self.arrays)
        self._shared = other._shared = True
        return other

    def window(self, seq: int) -> LayerStates:
        """One sequence's, to be read."""
        return LayerStates(array[seq : seq + 1] for array in self.arrays)

    def taken(self, seq: int) -> LayerStates:
        """One sequence's, in arrays of its own."""
        return LayerStates(array[seq : seq + 1].copy() for array in self.arrays)

    def replace(self, seq: int, made: Sequence[Array]) -> None:
        """Have what a run of one sequence has made, arrays [1, ...] that nobody writes."""
        if not made:
            return
        if len(self.arrays[0]) == 1:
            self.arrays, self._shared = list(made), True
            return
        if self._shared:
            self.arrays, self._shared = [array.copy() for array in self.arrays], False
        for array, new in zip(self.arrays, made, strict=True):
            array[seq] = new[0]

    def exchange(self, made: Sequence[Array]) -> list[Array]:
        """Have what a step has made, arrays that its next run does not write.

        Returns:
            Arrays of the same shapes that the next run may write: those that were here, unless
            another cache has them.
        """
        free = [np.empty_like(a) for a in self.arrays] if self._shared else self.arrays
        self.arrays, self._shared = list(made), False
        return free


def no_states(graph: Segment, dtype: np.dtype[Any]) -> list[Array]:
    """States of a segment before the first token of one sequence.

    Args:
        dtype: that the graph computes in.
    """
    types = {"T": dtype}
    held = (value for value, _ in graph.states())
    return [
        np.zeros(value.sized({BATCH: 1}), types.get(value.dtype) or np.dtype(value.dtype))
        for value in held
    ]


def gathered_states(parts: Sequence[tuple[LayerStates, int]]) -> LayerStates:
    """Those of sequences of several caches as one, in their order."""
    count = len(parts[0][0])
    return LayerStates(
        np.concatenate([states.arrays[number][seq : seq + 1] for states, seq in parts])
        for number in range(count)
    )
