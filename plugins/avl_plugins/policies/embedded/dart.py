"""DART: tokens that repeat none of a few pivots (arXiv 2502.11494, EMNLP 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.checks import check_count
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import directions
from avl_plugins.policies.view import Indices, Picture


@dataclass(frozen=True, slots=True)
class DART(Selecting):
    """The `pivots` tokens with the largest features, and for each those that are least like it.

    As TensorRT-Edge-LLM has it: on the features, by their 1-norm, in front of the first layer.
    """

    pivots: int = 8

    name: ClassVar[str] = "dart"

    def __post_init__(self) -> None:
        Selecting.__post_init__(self)
        check_count(self.name, "pivots", self.pivots, 1, "tokens are compared with them")

    def pick(self, picture: Picture, count: int) -> Indices:
        norms = np.abs(picture.features).sum(1)
        pivots = np.sort((-norms).argsort(kind="stable")[: min(self.pivots, count)])
        rows = directions(picture.features)
        near = np.ascontiguousarray(rows.to(picture.features[pivots]).T)
        near[:, pivots] = np.inf
        chosen = [pivots]
        each, more = divmod(count - len(pivots), len(pivots))
        for number in range(len(pivots)):
            some = near[number].argsort(kind="stable")[: each + (number < more)]
            near[:, some] = np.inf
            chosen.append(some)
        return np.concatenate(chosen)
