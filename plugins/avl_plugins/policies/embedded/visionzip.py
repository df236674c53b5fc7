"""VisionZip: what the class token looks at, and a few that stand for the rest (CVPR 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.checks import check_weight
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import directions
from avl_plugins.policies.view import BY_CLASS, Indices, Picture


@dataclass(frozen=True, slots=True)
class VisionZip(Selecting):
    """Tokens with most attention of the class token, and contextual ones, evenly apart in the rest.

    The fraction `contextual` is of the latter kind. With `merge` each becomes the mean of itself
    and of those of the rest that are most like it (arXiv 2412.04467).
    """

    contextual: float = 0.15625  # the paper's 10 of 64
    merge: bool = True

    name: ClassVar[str] = "visionzip"
    looks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Selecting.__post_init__(self)
        check_weight(self.name, "contextual", self.contextual, "0 leaves the attended ones alone")

    @property
    def merges(self) -> bool:
        return self.merge

    def pick(self, picture: Picture, count: int) -> Indices:
        dominant, rest = self._parts(picture, count)
        many = count - len(dominant)
        targets = rest[:: len(rest) // many][:many] if many else rest[:0]
        return np.concatenate([dominant, targets])

    def groups(self, picture: Picture, picked: Indices) -> Indices | None:
        dominant, rest = self._parts(picture, len(picked))
        targets = np.setdiff1d(picked, dominant)
        if not self.merge or not len(targets):
            return None
        joining = np.setdiff1d(rest, targets)
        found = np.full(picture.places.shape[1], -1)
        found[picked] = picked
        near = directions(picture.features[joining]).to(picture.features[targets])
        found[joining] = targets[near.argmax(1)]
        return found

    def _parts(self, picture: Picture, count: int) -> tuple[Indices, Indices]:
        """Tokens with most attention, and all others in their order."""
        many = min(count - 1, round(self.contextual * count))
        order = (-picture.attention[:, BY_CLASS]).argsort(kind="stable")
        return order[: count - many], np.sort(order[count - many :])
