"""Dropping image tokens from the hidden states during prefill (FastV, arXiv 2403.06764)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.policies.action import Action, Placed, When
from avl_plugins.policies.checks import check_count, check_fraction
from avl_plugins.policies.ranking import ATTENTION, Ranking, check_ranking
from avl_plugins.policies.view import Fates, View, fates


@dataclass(frozen=True, slots=True)
class Prune(Action):
    """After `layer` full layers keep the fraction `keep` of the image tokens, for good.

    Of a prompt's image tokens at least one stays. Attention is what the last prompt row gives each
    in layer `layer` - 1.
    """

    layer: int
    keep: float
    ranking: Ranking = ATTENTION

    when: ClassVar[frozenset[When]] = frozenset({When.BETWEEN})

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: a value is out of range.
        """
        check_count("Prune", "layer", self.layer, 1, "ranking needs the attention of one layer")
        check_fraction("Prune", "keep", self.keep)
        check_ranking("Prune", self.ranking)

    @property
    def decides(self) -> str:
        return f"which image tokens go on after layer {self.layer}"

    @property
    def before(self) -> int | None:
        return self.layer

    @property
    def share(self) -> float:
        return self.keep

    def count(self, total: int) -> int:
        """How many of `total` image tokens stay: at least 1, if there are any."""
        return max(1, round(self.keep * total)) if total else 0

    def choose(self, view: View) -> Fates:
        return fates(self.ranking.first(view, self.count(view.total)))

    def placed(self, rows: Placed, layer: int, total: int) -> Placed:
        return Placed(self.count(total)) if total and layer >= self.layer else rows
