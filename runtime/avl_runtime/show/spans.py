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


@dataclass(frozen=True, slots=True)
class Early:
    """Cells of a picture that a prompt dropped before it was read to its end.

    withheld: [rows, columns], those of which the decoder was given no token. stopped: those of
    whose tokens some layers were the last to read any.
    """

    withheld: NDArray[np.bool_]
    stopped: NDArray[np.bool_]


def early(dropped: NDArray[np.integer] | None, visuals: Sequence[Cells], number: int) -> Early:
    """The cells of one picture that were dropped before the decoder, and between its layers.

    Args:
        dropped: [image tokens] of the conversation, `Result.dropped_before`; None: none was.
        visuals, number: as `spans` takes them.
    """
    cells = visuals[number]
    if dropped is None:
        none = np.zeros(cells.grid, np.bool_)
        return Early(none, none)
    first = sum(len(one.index) for one in visuals[:number])
    own = dropped[first : first + len(cells.index)]
    shown = np.bincount(cells.index[cells.index >= 0], minlength=cells.grid[0] * cells.grid[1])
    there = shown.reshape(cells.grid) > 0
    withheld = there & (_by_cell((own != 0).astype(np.float64), cells) == 0)
    stopped = there & (_by_cell((own < 0).astype(np.float64), cells) == 0) & ~withheld
    return Early(withheld, stopped)


def _by_cell(shares: NDArray[np.float64], cells: Cells) -> NDArray[np.float64]:
    """[tokens] to [rows, columns], the mean of the tokens that show a cell."""
    shows = cells.index >= 0
    index, size = cells.index[shows], cells.grid[0] * cells.grid[1]
    summed = np.bincount(index, shares[shows], size)
    return (summed / np.maximum(np.bincount(index, minlength=size), 1)).reshape(cells.grid)
