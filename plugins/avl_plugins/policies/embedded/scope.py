"""SCOPE: cover of the picture, weighed by attention (arXiv 2510.24214, NeurIPS 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.policies.checks import check_weight
from avl_plugins.policies.embedded.covering import covering
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import cosines
from avl_plugins.policies.view import BY_CLASS, Indices, Picture


@dataclass(frozen=True, slots=True)
class SCOPE(Selecting):
    """Greedily the token whose gain in cover, times its attention to the power `alpha`, is largest.

    How well a token covers another is their cosine. Attention is the class token's.
    """

    alpha: float = 1.0

    name: ClassVar[str] = "scope"
    looks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Selecting.__post_init__(self)
        check_weight(self.name, "alpha", self.alpha, "0 asks for no attention")

    def pick(self, picture: Picture, count: int) -> Indices:
        weights = picture.attention[:, BY_CLASS].astype("float64") ** self.alpha
        return covering(cosines(self.name, picture.features), count, weights)
