"""A policy with a ranking of its own, as somebody else would write one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies import Action, Divide, Policy, Prune, Ranking, Refresh, View
from avl_plugins.policies.view import Scores


@dataclass(frozen=True)
class Leftmost(Ranking):
    """By the column of a token in a picture of 12 x 12, then by its row."""

    reads_attention: ClassVar[bool] = False

    def scores(self, view: View, count: int) -> Scores:
        first = view.positions.min()
        return -((view.positions - first) % 12).astype(np.float64)


@dataclass(frozen=True)
class Left(Policy):
    """Keep the left part of a picture, and read the leftmost of it."""

    keep: float = 0.5
    core: float = 0.25
    every: int = 2
    prune: bool = False
    name: ClassVar[str] = "left"

    def actions(self) -> tuple[Action, ...]:
        if self.prune:
            return (Prune(2, self.keep, Leftmost()),)
        return (
            Divide(self.keep, self.core, Leftmost()),
            Refresh(self.core, self.every, Leftmost()),
        )
