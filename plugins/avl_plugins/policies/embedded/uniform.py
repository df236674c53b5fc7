"""The control of policies that choose before the decoder: tokens evenly apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.policies.embedded.areas import areas, centres
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.view import Indices, Picture


@dataclass(frozen=True, slots=True)
class Uniform(Selecting):
    """The middle tokens of areas as nearly squares as their number allows."""

    name: ClassVar[str] = "uniform"

    def pick(self, picture: Picture, count: int) -> Indices:
        return centres(picture.places, areas(picture.places, count))
