"""Which text tokens a KV head keeps: heavy hitters and recent ones (H2O, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avl_plugins.policies.ranking import Indices, Mask, Scores, highest


@dataclass(frozen=True, slots=True)
class TextBudget:
    """Keep the fraction `ratio` of the evictable text tokens, but at least `minimum` of them.

    `heavy` of the budget goes to tokens with the most accumulated attention, the rest to the most
    recent.
    """

    ratio: float
    minimum: int
    heavy: float

    def budget(self, n_text: int) -> int:
        """How many of the `n_text` evictable text tokens seen so far may stay."""
        return max(round(self.ratio * n_text), self.minimum)

    def kept(self, acc: Scores, positions: Indices, n_text: int) -> Mask:
        """Which alive rows stay, bool [..., n], each KV head of each layer for itself.

        `acc` [..., n] is the attention accumulated so far, `positions` [..., n] the original
        positions, in any order of slots. Equal attention favours the lower position.
        """
        alive = acc.shape[-1]
        budget = self.budget(n_text)
        if alive <= budget:
            return np.ones(acc.shape, np.bool_)
        recent = budget - int(budget * self.heavy)
        value = acc.astype(np.float64)
        if recent:
            oldest = alive - recent
            value[positions >= np.partition(positions, oldest)[..., oldest, None]] = np.inf
        return highest(value, positions, budget)
