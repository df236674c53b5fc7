"""Core, secondary and minor image tokens of a layer (A-VL, arXiv 2409.14846)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.action import Action, Placed, When, share_of
from avl_plugins.policies.checks import check_count, check_fraction, core_of
from avl_plugins.policies.ranking import ATTENTION, Ranking, check_ranking
from avl_plugins.policies.view import Fates, View, fates


@dataclass(frozen=True, slots=True)
class Divide(Action):
    """Per layer: `keep` of all image tokens are secondary and stay, `core` of them are active.

    The other secondary tokens are parked; the rest is minor and dropped. Both fractions refer to
    all image tokens of the conversation, however many are alive.
    """

    keep: float
    core: float
    ranking: Ranking = ATTENTION

    when: ClassVar[frozenset[When]] = frozenset({When.PROMPT})

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: a value is out of range.
        """
        check_fraction("Divide", "keep", self.keep)
        check_fraction("Divide", "core", self.core)
        core_of("Divide", self.core, self.keep)
        check_ranking("Divide", self.ranking)

    @property
    def decides(self) -> str:
        return "which image tokens are read in every step"

    @property
    def share(self) -> float:
        return self.keep

    def counts(self, total: int, alive: int) -> tuple[int, int]:
        """How many of `alive` tokens are secondary, and how many of those are core."""
        if not total:
            return 0, 0
        secondary = min(share_of(self.keep, total), alive)
        return secondary, min(share_of(self.core, total), secondary)

    def choose(self, view: View) -> Fates:
        secondary, core = self.counts(view.total, view.positions.shape[-1])
        return fates(self.ranking.first(view, core), self.ranking.first(view, secondary))

    def placed(self, rows: Placed, layer: int, total: int) -> Placed:
        secondary, core = self.counts(total, rows.active + rows.parked)
        return Placed(core, secondary - core)


@dataclass(frozen=True, slots=True)
class Refresh(Action):
    """Every `every`-th decode step reads all secondary tokens and draws a new core from them.

    `core` is a fraction of all image tokens of the conversation.
    """

    core: float
    every: int
    ranking: Ranking = ATTENTION

    when: ClassVar[frozenset[When]] = frozenset({When.STEP})
    reads_parked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: a value is out of range.
        """
        check_fraction("Refresh", "core", self.core)
        check_count("Refresh", "every", self.every, 1, "1 refreshes on every step")
        check_ranking("Refresh", self.ranking)

    @property
    def decides(self) -> str:
        return "which image tokens are read in every step"

    @property
    def wants(self) -> float:
        return self.core

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def count(self, total: int, alive: int) -> int:
        """How many of `alive` secondary tokens are core."""
        return min(share_of(self.core, total), alive) if total else 0

    def choose(self, view: View) -> Fates:
        core = self.ranking.first(view, self.count(view.total, view.positions.shape[-1]))
        return fates(core, ~core)


@dataclass(frozen=True, slots=True)
class ReadParked(Action):
    """Every decode step reads parked rows too, and none changes its place."""

    when: ClassVar[frozenset[When]] = frozenset({When.STEP})
    reads_parked: ClassVar[bool] = True
    moves: ClassVar[bool] = False

    @property
    def ranking(self) -> Ranking:
        return ATTENTION  # nobody asks for it

    @property
    def decides(self) -> str:
        return "which image tokens are read in every step"

    def choose(self, view: View) -> Fates:
        every = np.ones(view.positions.shape, np.bool_)
        return fates(every, every)
