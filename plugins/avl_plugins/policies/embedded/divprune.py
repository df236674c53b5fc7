"""DivPrune: the tokens that are most unlike each other (arXiv 2503.02175, CVPR 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import check_tokens, directions
from avl_plugins.policies.view import Indices, Picture


@dataclass(frozen=True, slots=True)
class DivPrune(Selecting):
    """Maximizes the least cosine distance between two tokens, greedily.

    First comes the token whose nearest neighbour is farthest, then again and again the one that is
    farthest from all chosen ones.
    """

    name: ClassVar[str] = "divprune"

    def pick(self, picture: Picture, count: int) -> Indices:
        check_tokens(self.name, len(picture.features))
        near, nearest = directions(picture.features).among_with_nearest()
        chosen = np.zeros(count, np.int64)
        chosen[0] = nearest.argmin()
        closest = near[chosen[0]].copy()  # to any chosen one
        for place in range(1, count):
            closest[chosen[place - 1]] = np.inf
            chosen[place] = closest.argmin()
            np.maximum(closest, near[chosen[place]], out=closest)
        return chosen
