"""VisPruner: half by attention, half by what repeats least (arXiv 2412.01818, ICCV 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.checks import check_weight
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import cosines
from avl_plugins.policies.view import BY_CLASS, Indices, Picture

AT_ONCE = 8  # tokens that a round drops at most


@dataclass(frozen=True, slots=True)
class VisPruner(Selecting):
    """The fraction `important` has most attention of the class token, the rest repeats least.

    What is not important, in the order of attention, is divided into every other token and those
    between. In each round up to eight of the former go, those that are most like one of the
    latter, until as many are left as are wanted.
    """

    important: float = 0.5

    name: ClassVar[str] = "vispruner"
    looks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Selecting.__post_init__(self)
        check_weight(self.name, "important", self.important, "1 is by attention alone")

    def pick(self, picture: Picture, count: int) -> Indices:
        order = (-picture.attention[:, BY_CLASS]).argsort(kind="stable")
        first = int(self.important * count)
        chosen, left = order[:first], order[first:]
        if first == count:
            return chosen
        near = cosines(self.name, picture.features)
        while len(left) > count - first:
            even, odd = left[::2], left[1::2]
            drop = min(AT_ONCE, len(left) - (count - first), len(even))
            alike = near[np.ix_(even, odd)].max(1)
            likest = np.lexsort((even, -alike))
            left = np.concatenate([even[likest[drop:]], odd])
        return np.concatenate([chosen, left])
