"""CAAC's visual token calibration (arXiv 2505.21472, WACV 2026).

What a layer looks at in a white picture it looks at whatever is there, so image tokens count for
less the more they get there. Graphs take one bias for the query heads of a KV head: the means of
these heads' attention are evened out, which is the paper's where each has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.action import MOST_WEIGHT, Action, When
from avl_plugins.policies.checks import check_count, check_weight
from avl_plugins.policies.ranking import ATTENTION, Ranking
from avl_plugins.policies.view import Fates, Scores, View, fates


@dataclass(frozen=True, slots=True)
class Calibrate(Action):
    """In the first `layers` layers image tokens count for less the more a white picture gets there.

    With a the attention of one of its last rows on each of its tokens, one counts as
    ((1 - beta) a + beta mean a) / a tokens, the mean of these rows.
    """

    beta: float
    layers: int

    when: ClassVar[frozenset[When]] = frozenset({When.STEP})
    moves: ClassVar[bool] = False
    evens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: a value is out of range.
        """
        check_calibration("Calibrate", self.beta, self.layers)

    @property
    def ranking(self) -> Ranking:
        return ATTENTION  # nobody asks for it

    @property
    def decides(self) -> str:
        return "how much each image token counts in a layer"

    def choose(self, view: View) -> Fates:
        return fates(np.ones(view.positions.shape, np.bool_))

    def evened(self, attention: Scores, layer: int) -> Scores | None:
        if layer >= self.layers:
            return None
        wide = attention.astype(np.float64)
        mean = wide.mean(-1, keepdims=True)
        counts: Scores = (1 - self.beta + self.beta * mean / wide).mean(0)
        return counts.clip(1 / MOST_WEIGHT, MOST_WEIGHT)


def check_calibration(policy: str, beta: object, layers: object) -> None:
    """Refuse what no share, and what no number of layers is.

    Raises:
        PolicyError: one is such.
    """
    check_weight(policy, "beta", beta, "1 evens attention out, 0 leaves it as it is")
    check_count(policy, "layers", layers, 1, "it counts layers whose attention is calibrated")
