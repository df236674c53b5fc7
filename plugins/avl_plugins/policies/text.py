"""Which text tokens a KV head keeps: heavy hitters and recent ones (H2O, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from avl_plugins.policies.action import Action, Tokens, When
from avl_plugins.policies.checks import check_count, check_fraction, check_heavy
from avl_plugins.policies.ranking import HeavyHitters
from avl_plugins.policies.view import Fates, View, fates


@dataclass(frozen=True, slots=True)
class TextBudget(Action):
    """Keep the fraction `ratio` of the evictable text tokens, but at least `minimum` of them.

    `heavy` of the budget goes to tokens with the most accumulated attention, the rest to the most
    recent.
    """

    ratio: float
    minimum: int
    heavy: float
    ranking: HeavyHitters = field(init=False, repr=False, compare=False)

    when: ClassVar[frozenset[When]] = frozenset({When.PROMPT, When.STEP})
    tokens: ClassVar[Tokens] = Tokens.TEXT

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: a value is out of range.
        """
        check_fraction("TextBudget", "ratio", self.ratio)
        check_count("TextBudget", "minimum", self.minimum, 1, "the newest token must stay")
        check_heavy("TextBudget", self.heavy)
        object.__setattr__(self, "ranking", HeavyHitters(self.heavy))

    @property
    def decides(self) -> str:
        return "which text tokens stay"

    def budget(self, total: int) -> int:
        """How many of the `total` evictable text tokens seen so far may stay."""
        return max(round(self.ratio * total), self.minimum)

    def limit(self, total: int) -> int | None:
        return self.budget(total)

    def choose(self, view: View) -> Fates:
        return fates(self.ranking.first(view, self.budget(view.total)))

    def text_rows(self, total: int) -> int:
        return min(total, self.budget(total))
