"""Means of adjacent tokens, as PLLaVA's adaptive pooling (arXiv 2404.16994), without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.embedded.areas import areas, centres
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.view import Indices, Picture


@dataclass(frozen=True, slots=True)
class Pool(Selecting):
    """Each area becomes the mean of its tokens, in the place of the middle one."""

    name: ClassVar[str] = "pool"

    def pick(self, picture: Picture, count: int) -> Indices:
        return centres(picture.places, areas(picture.places, count))

    def groups(self, picture: Picture, picked: Indices) -> Indices:
        area = areas(picture.places, len(picked))
        middle = centres(picture.places, area)
        return np.where(area < 0, -1, middle[area])
