"""PyramidDrop: image tokens leave in stages, as deeper layers need fewer (arXiv 2410.17247)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.policies.action import Action, share_of
from avl_plugins.policies.base import Policy
from avl_plugins.policies.checks import check_count, check_fraction
from avl_plugins.policies.prune import Prune


@dataclass(frozen=True, slots=True)
class Stage(Prune):
    """As Prune, with a share that is rounded down."""

    def count(self, total: int) -> int:
        return share_of(self.keep, total) if total else 0


@dataclass(frozen=True, slots=True)
class PyramidDrop(Policy):
    """Before `layer`, and `every` so many layers after it, keep `keep` of the tokens that are left.

    Of `stages` stages. Tokens are ranked by the last prompt row's attention in the layer before.
    """

    layer: int = 8
    every: int = 8
    stages: int = 3
    keep: float = 0.5

    name: ClassVar[str] = "pyramiddrop"

    def __post_init__(self) -> None:
        check_count(self.name, "layer", self.layer, 1, "ranking needs the attention of one layer")
        check_count(self.name, "every", self.every, 1, "stages are that many layers apart")
        check_count(self.name, "stages", self.stages, 1, "1 drops tokens once, as FastV does")
        check_fraction(self.name, "keep", self.keep)

    def actions(self) -> tuple[Action, ...]:
        return tuple(
            Stage(self.layer + stage * self.every, self.keep ** (stage + 1))
            for stage in range(self.stages)
        )
