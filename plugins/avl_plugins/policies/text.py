"""Which text tokens a KV head keeps: heavy hitters and recent ones (H2O, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avl_plugins.policies.ranking import Scores


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

    def kept(
        self, acc: Scores, positions: npt.NDArray[np.int64], n_text: int
    ) -> npt.NDArray[np.bool_]:
        """Which alive rows stay, bool [Hkv, n], each KV head for itself.

        `acc` [Hkv, n] is the attention accumulated so far, `positions` [Hkv, n] the original
        positions, in any order of slots. Equal attention favours the lower position.
        """
        heads, alive = acc.shape
        budget = self.budget(n_text)
        if alive <= budget:
            return np.ones((heads, alive), np.bool_)
        recent = budget - int(budget * self.heavy)
        value = acc.astype(np.float64)
        newest = np.argsort(positions, axis=1)[:, alive - recent :]
        np.put_along_axis(value, newest, np.inf, axis=1)
        best = np.lexsort((positions, -value), axis=1)[:, :budget]
        keep = np.zeros((heads, alive), np.bool_)
        np.put_along_axis(keep, best, True, axis=1)
        return keep
