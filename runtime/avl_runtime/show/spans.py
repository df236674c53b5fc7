"""Where image tokens are over ranges of decode steps: what the heatmap and `--show` draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avl_runtime.generate.results import Placement
from avl_runtime.vision import Cells

A_VL = ("core", "secondary", "minor")  # its names for active, parked and dropped image tokens


@dataclass(frozen=True, slots=True)
class Span:
    """Decode steps `first` to `last`; the first span also covers prefill.

    core, secondary: [rows, columns] float64, the share of layers and steps in which a cell is in
    that place (secondary: parked); the rest is minor.
    """

    first: int
    last: int
    prefill: bool
    core: NDArray[np.float64]
    secondary: NDArray[np.float64]

    @property
    def caption(self) -> str:
        if self.last < self.first:
            return "prefill"
        steps = f"steps {self.first}-{self.last}" if self.last > self.first else f"step {self.last}"
        return f"prefill, {steps}" if self.prefill else steps


def spans(
    placements: Sequence[Placement],
    visuals: Sequence[Cells],
    number: int,
    steps: int,
    most: int = 6,
) -> list[Span]:
    """Spans of one picture, neighbours put together where there are more than `most`.

    Args:
        placements: ascending in step, the first one from prefill.
        visuals: what the tokens of each picture and video of the conversation show.
        number: which of them, from 0.
        steps: decode steps in all.
        most: how many spans at most.
    """
    first = sum(len(cells.index) for cells in visuals[:number])
    cells = visuals[number]
    tokens = slice(first, first + len(cells.index))
    starts = [max(1, placement.step) for placement in placements]
    ends = [*(start - 1 for start in starts[1:]), steps]
    told = [i for i in range(len(placements)) if i == 0 or starts[i] <= ends[i]]
    groups = [list(group) for group in np.array_split(told, min(most, len(told)))] if told else []
    result = []
    for group in groups:
        # A placement of no step (one token in all) still counts as what prefill left.
        weights = [max(1, ends[i] - starts[i] + 1) for i in group]
        core = [placements[i].core[:, tokens].mean(0) for i in group]
        parked = [placements[i].parked[:, tokens].mean(0) for i in group]
        result.append(
            Span(
                starts[group[0]],
                ends[group[-1]],
                group[0] == 0,
                _by_cell(np.average(core, axis=0, weights=weights), cells),
                _by_cell(np.average(parked, axis=0, weights=weights), cells),
            )
        )
    return result


def withheld(
    given: NDArray[np.bool_] | None, visuals: Sequence[Cells], number: int
) -> NDArray[np.bool_]:
    """[rows, columns], the cells of one picture that no token shows which the decoder was given.

    Args:
        given: [image tokens], those of the conversation that it was given; None: all.
        visuals, number: as `spans` takes them.
    """
    cells = visuals[number]
    if given is None:
        return np.zeros(cells.grid, np.bool_)
    first = sum(len(one.index) for one in visuals[:number])
    shares = given[first : first + len(cells.index)].astype(np.float64)
    shown = np.bincount(cells.index[cells.index >= 0], minlength=cells.grid[0] * cells.grid[1])
    found: NDArray[np.bool_] = (_by_cell(shares, cells) == 0) & (shown.reshape(cells.grid) > 0)
    return found


def _by_cell(shares: NDArray[np.float64], cells: Cells) -> NDArray[np.float64]:
    """[tokens] to [rows, columns], the mean of the tokens that show a cell."""
    shows = cells.index >= 0
    index, size = cells.index[shows], cells.grid[0] * cells.grid[1]
    summed = np.bincount(index, shares[shows], size)
    return (summed / np.maximum(np.bincount(index, minlength=size), 1)).reshape(cells.grid)
