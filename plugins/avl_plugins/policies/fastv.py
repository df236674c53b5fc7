"""FastV: an image is worth half its tokens after layer 2 (arXiv 2403.06764, ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.policies.action import Action
from avl_plugins.policies.base import Policy
from avl_plugins.policies.checks import check_count, check_fraction
from avl_plugins.policies.prune import Prune


@dataclass(frozen=True, slots=True)
class FastV(Policy):
    """After `layer` full layers keep the fraction `keep` of the image tokens, once, at prefill."""

    layer: int = 2
    keep: float = 0.5

    name: ClassVar[str] = "fastv"

    def __post_init__(self) -> None:
        check_count(self.name, "layer", self.layer, 1, "ranking needs the attention of one layer")
        check_fraction(self.name, "keep", self.keep)

    def actions(self) -> tuple[Action, ...]:
        return (Prune(self.layer, self.keep),)
