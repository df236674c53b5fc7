"""Image tokens as a grid of characters for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avl_runtime.generate.results import Placement
from avl_runtime.show.spans import A_VL, Span, spans, withheld
from avl_runtime.vision import Cells

MARKS = ("##", "++", "..", "--")  # active, parked, dropped, not given to the decoder
COLOURS = ("48;5;208", "48;5;32", "48;5;236", "48;5;60")


def grids(
    placements: Sequence[Placement],
    visuals: Sequence[Cells],
    steps: int,
    *,
    colour: bool,
    places: Sequence[str] = A_VL,
    given: NDArray[np.bool_] | None = None,
) -> str:
    """One block an image: its patches after prefill and, if they changed, in the last steps.

    A patch is marked as core, or as secondary, if it is that (or more) in at least half of the
    layers.

    Args:
        places: what the policy calls them (`Policy.places`).
        given: of a `Result`; None: the decoder was given all tokens.
    """
    blocks, early = [], False
    for image in range(len(visuals)):
        parts = spans(placements, visuals, image, steps, most=len(placements))
        shown = parts if len(parts) == 1 else [parts[0], parts[-1]]
        dropped = withheld(given, visuals, image)
        early = early or bool(dropped.any())
        blocks.append("\n".join([f"image {image + 1}", *_side_by_side(shown, dropped, colour)]))
    *kept, gone = places
    used = [*range(len(kept)), 2]
    names = [*kept, gone if gone == "dropped" else f"{gone} (dropped)"]
    if early:
        used, names = [*used, 3], [*names, "dropped before the decoder"]
    legend = "   ".join(
        f"{_cell(MARKS[at], COLOURS[at], colour)} {name}"
        for at, name in zip(used, names, strict=True)
    )
    return "\n\n".join([*blocks, f"{legend}   in at least half of the layers"])


def _side_by_side(parts: Sequence[Span], dropped: NDArray[np.bool_], colour: bool) -> list[str]:
    width = parts[0].core.shape[1] * 2
    head = "   ".join(part.caption[:width].ljust(width) for part in parts).rstrip()
    rows = zip(*(_lines(part, dropped, colour) for part in parts), strict=True)
    return [head, *("   ".join(row) for row in rows)]


def _lines(part: Span, dropped: NDArray[np.bool_], colour: bool) -> list[str]:
    places: NDArray[np.int64] = np.full(part.core.shape, 2)
    places[part.core + part.secondary >= 0.5 - 1e-9] = 1
    places[part.core >= 0.5 - 1e-9] = 0
    places[dropped] = 3
    return ["".join(_cell(MARKS[place], COLOURS[place], colour) for place in row) for row in places]


def _cell(mark: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m  \x1b[0m" if colour else mark
