"""Image tokens as a grid of characters for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avl_runtime.generate.results import Placement
from avl_runtime.show.spans import A_VL, Early, Span, early, spans
from avl_runtime.vision import Cells

# Active, parked, dropped, not given to the decoder, dropped between its layers.
MARKS = ("##", "++", "..", "--", "//")
COLOURS = ("48;5;208", "48;5;32", "48;5;236", "48;5;60", "48;5;30")


def grids(
    placements: Sequence[Placement],
    visuals: Sequence[Cells],
    steps: int,
    *,
    colour: bool,
    places: Sequence[str] = A_VL,
    dropped: NDArray[np.integer] | None = None,
) -> str:
    """One block an image: its patches after prefill and, if they changed, in the last steps.

    A patch is marked as core, or as secondary, if it is that (or more) in at least half of the
    layers.

    Args:
        places: what the policy calls them (`Policy.places`).
        dropped: `dropped_before` of a `Result`; None: nothing was, until the prompt was read.
    """
    blocks, withheld, stopped = [], False, False
    for image in range(len(visuals)):
        parts = spans(placements, visuals, image, steps, most=len(placements))
        shown = parts if len(parts) == 1 else [parts[0], parts[-1]]
        gone = early(dropped, visuals, image)
        withheld = withheld or bool(gone.withheld.any())
        stopped = stopped or bool(gone.stopped.any())
        blocks.append("\n".join([f"image {image + 1}", *_side_by_side(shown, gone, colour)]))
    *kept, last = places
    used = [*range(len(kept)), 2]
    names = [*kept, last if last == "dropped" else f"{last} (dropped)"]
    if withheld:
        used, names = [*used, 3], [*names, "dropped before the decoder"]
    if stopped:
        used, names = [*used, 4], [*names, "dropped between layers"]
    legend = "   ".join(
        f"{_cell(MARKS[at], COLOURS[at], colour)} {name}"
        for at, name in zip(used, names, strict=True)
    )
    return "\n\n".join([*blocks, f"{legend}   in at least half of the layers"])


def _side_by_side(parts: Sequence[Span], gone: Early, colour: bool) -> list[str]:
    width = parts[0].core.shape[1] * 2
    head = "   ".join(part.caption[:width].ljust(width) for part in parts).rstrip()
    rows = zip(*(_lines(part, gone, colour) for part in parts), strict=True)
    return [head, *("   ".join(row) for row in rows)]


def _lines(part: Span, gone: Early, colour: bool) -> list[str]:
    places: NDArray[np.int64] = np.where(gone.stopped, 4, 2)
    places[part.core + part.secondary >= 0.5 - 1e-9] = 1
    places[part.core >= 0.5 - 1e-9] = 0
    places[gone.withheld] = 3
    return ["".join(_cell(MARKS[place], COLOURS[place], colour) for place in row) for row in places]


def _cell(mark: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m  \x1b[0m" if colour else mark
