"""EVS, efficient video sampling: what changes between frames (arXiv 2510.14624)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import unit
from avl_plugins.policies.view import Indices, Picture


@dataclass(frozen=True, slots=True)
class EVS(Selecting):
    """The first frame of a video, and the tokens that are least like those a frame before.

    Pictures stay as they are.
    """

    name: ClassVar[str] = "evs"

    def budget(self, places: Indices, moving: bool, count: int) -> int:
        if not moving:
            return len(places[0])
        return max(count, int((places[0] == places[0].min()).sum()))

    def pick(self, picture: Picture, count: int) -> Indices:
        frames, rows, columns = picture.places
        order = np.lexsort((frames, columns, rows))  # each place's frames, one behind the other
        before, behind = order[:-1], order[1:]
        same = (rows[before] == rows[behind]) & (columns[before] == columns[behind])
        before, behind = before[same], behind[same]
        whole = unit(picture.features)
        changes = np.full(len(frames), np.inf)  # of the first frame, and of what has none before it
        changes[behind] = 1 - np.einsum("nc,nc->n", whole[before], whole[behind])
        return (-changes).argsort(kind="stable")[:count]
