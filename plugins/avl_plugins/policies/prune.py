"""Dropping image tokens from the hidden states during prefill (FastV, arXiv 2403.06764)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avl_plugins.policies.ranking import Indices, Scores, at_random, by_score


@dataclass(frozen=True, slots=True)
class Prune:
    """After `layer` full layers keep the fraction `keep` of the image tokens, for good.

    `seed` None ranks by attention; a number ranks at random.
    """

    layer: int
    keep: float
    seed: int | None

    def count(self, total: int) -> int:
        """How many of `total` image tokens stay: at least 1, if there are any."""
        return max(1, round(self.keep * total)) if total else 0

    def select(self, scores: Scores, total: int) -> Indices:
        """Indices to keep, ascending, int64 [m].

        `scores` [n] is the head-mean attention the last prompt row gives each image token in layer
        `layer` - 1; `total` is the number of image tokens the fraction refers to.
        """
        n = len(scores)
        order = by_score(scores) if self.seed is None else at_random(n, self.seed, self.layer)
        return np.sort(order[: self.count(total)])
