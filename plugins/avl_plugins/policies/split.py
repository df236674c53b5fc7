"""Core, secondary and minor image tokens of a layer (A-VL, arXiv 2409.14846)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from avl_plugins.policies.ranking import (
    Indices,
    Mask,
    Scores,
    at_random,
    by_score,
    highest,
)

# 0.3 * 10 is 3 and 0.29 * 100 is 28.999...: a fraction that means a whole number must give it.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Split:
    """Per layer: `keep` of all image tokens are secondary and stay, `core` of them are read.

    Every `refresh`-th decode step reads all secondary tokens and draws a new core from them. Both
    fractions refer to all image tokens of the conversation, however many are alive. `seed` None
    ranks by attention; a number ranks at random, anew per layer and refresh.

    Scores are [n] of one layer, or [L, n] of the L layers from `layer` on; indices are those of the
    last axis.
    """

    keep: float
    core: float
    refresh: int
    seed: int | None

    def counts(self, total: int, alive: int) -> tuple[int, int]:
        """How many of `alive` tokens are secondary, and how many of those are core."""
        if not total:
            return 0, 0
        secondary = min(_share(self.keep, total), alive)
        return secondary, min(_share(self.core, total), secondary)

    def partition(self, scores: Scores, total: int, layer: int) -> tuple[Indices, Indices]:
        """Indices of core and of parked tokens (secondary minus core), each ascending.

        The rest is minor, to be dropped. `scores` [L, alive] is the head-mean attention the last
        prompt row gives each alive image token in each layer.
        """
        secondary, core = self.counts(total, scores.shape[-1])
        order = self._rank(scores, layer, 0)
        return np.sort(order[..., :core]), np.sort(order[..., core:secondary])

    def is_refresh(self, step: int) -> bool:
        """Whether decode step `step`, counted from 1, reads parked tokens too."""
        return step % self.refresh == 0

    def new_core(
        self, scores: Scores, positions: Indices, total: int, layer: int, step: int
    ) -> Mask:
        """Which secondary tokens are the new core; equal scores favour the lower position.

        `scores` [L, secondary] is the head-mean attention of decode step `step` in each layer,
        `positions` [L, secondary] the tokens' positions, in any order.
        """
        _, core = self.counts(total, scores.shape[-1])
        if self.seed is None:
            return highest(scores, positions, core)
        drawn = self._rank(scores, layer, step)
        # What is drawn are places in the order of positions: every order of slots draws the same.
        return np.take_along_axis(drawn.argsort() < core, positions.argsort().argsort(), -1)

    def _rank(self, scores: Scores, layer: int, step: int) -> Indices:
        if self.seed is None:
            return by_score(scores)
        *layers, count = scores.shape
        drawn = [at_random(count, self.seed, layer + i, step) for i in range(math.prod(layers))]
        return np.stack(drawn).reshape(scores.shape)


def _share(fraction: float, total: int) -> int:
    return max(1, math.floor(fraction * total + _ROUNDING))
