"""ZipVL: as many rows of a layer as hold a share of its attention (arXiv 2410.08584, ICCV 2025).

What it does to the cache. In the paper rows that are dropped give and receive no attention in the
prompt either, which needs graphs that drop rows within a layer; and rows of the reply are
compressed too, by a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.action import Action
from avl_plugins.policies.base import Policy
from avl_plugins.policies.cached.retain import Keeper, Retain
from avl_plugins.policies.checks import check_count, check_fraction
from avl_plugins.policies.view import Indices, Mask, Scores, View


@dataclass(frozen=True, slots=True)
class ZipVL(Policy, Keeper):
    """Each layer keeps as many rows as together are given `tau` of the probes' attention.

    Probes are the last `recent` rows and `drawn` others, drawn by `seed`. Which rows stay is by
    the mean over the probes that see them, so that early ones have no advantage; the first row and
    the last one always do. All KV heads of a layer keep the same.
    """

    tau: float = 0.975
    recent: int = 64
    drawn: int = 64
    seed: int = 0

    name: ClassVar[str] = "zipvl"

    def __post_init__(self) -> None:
        check_fraction(self.name, "tau", self.tau)
        check_count(self.name, "recent", self.recent, 1, "the last row sees all others")
        check_count(self.name, "drawn", self.drawn, 0, "0 draws none")
        check_count(self.name, "seed", self.seed, 0, "it seeds a random generator")

    def actions(self) -> tuple[Action, ...]:
        return (Retain(self),)

    def probes(self, positions: Indices, image: Mask) -> Indices:
        older = max(0, len(positions) - self.recent)
        generator = np.random.default_rng([self.seed, len(positions)])
        some = generator.permutation(older)[: self.drawn]
        return np.concatenate([positions[np.sort(some)], positions[older:]])

    def counts(self, rows: Sequence[int], total: int) -> list[int]:
        return list(rows)  # attention decides

    def budgets(self, views: Sequence[View]) -> list[int]:
        found = []
        for view in views:
            given = np.sort(_given(view))[::-1].cumsum()
            found.append(int(np.count_nonzero(given < self.tau * given[-1])) + 1)
        return found

    def scores(self, view: View, count: int) -> Scores:
        positions = view.positions[0, 0]
        seeing = len(view.probes) - view.probes.searchsorted(positions)
        found = _given(view) / np.maximum(1, seeing)
        found[[0, -1]] = np.inf
        return np.broadcast_to(found, view.positions.shape)


def _given(view: View) -> Scores:
    """What the probes have given each row of a layer, mean over KV heads, [n] float64."""
    found: Scores = view.attention[0].mean(0, dtype=np.float64)
    return found
