"""Keeping a part of the rows that a prompt has left, text and image alike, for each KV head."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import Action, Tokens, When, share_of
from avl_plugins.policies.agreement import check_frozen
from avl_plugins.policies.base import Policy
from avl_plugins.policies.checks import check_count, check_fraction
from avl_plugins.policies.ranking import ATTENTION, Ranking, highest
from avl_plugins.policies.view import Fates, Indices, Mask, Scores, View, fates

USUAL_SHARE = 0.25  # of all tokens, unless a policy is told another


class Keeper(abc.ABC):
    """How rows are chosen. A value: subclasses are frozen dataclasses."""

    __slots__ = ()

    @abc.abstractmethod
    def probes(self, positions: Indices, image: Mask) -> Indices:
        """As `Action.probes`; at least one, if there are rows."""

    @abc.abstractmethod
    def counts(self, rows: Sequence[int], total: int) -> list[int]:
        """How many rows of a KV head stay at most of each layer's `rows`; as `Action.rows_left`."""

    def budgets(self, views: Sequence[View]) -> list[int]:
        """How many rows of a KV head stay in each layer."""
        return self.counts([view.positions.shape[-1] for view in views], views[0].total)

    @abc.abstractmethod
    def scores(self, view: View, count: int) -> Scores:
        """A number for each row of a layer, [1, Hkv, n]: `count` stay, infinite ones always."""

    @property
    def merges(self) -> bool:
        """As `Action.merges`."""
        return False

    def merging(self, view: View, chosen: Fates) -> tuple[Indices, Scores]:
        """As `Action.merging`, which is asked where it `merges`."""
        return np.full(chosen.shape, -1), np.ones(chosen.shape)


@dataclass(frozen=True, slots=True)
class Retain(Action):
    """When all layers have read a prompt, each KV head of a layer keeps as many rows as told."""

    keeper: Keeper

    when: ClassVar[frozenset[When]] = frozenset({When.PROMPT})
    tokens: ClassVar[Tokens] = Tokens.ANY

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: that is no keeper.
        """
        if not isinstance(self.keeper, Keeper):
            raise PolicyError(
                f"Retain: expected a keeper, found {quoted(self.keeper)}; derive one from Keeper"
            )
        check_frozen(type(self.keeper))

    @property
    def ranking(self) -> Ranking:
        return ATTENTION  # nobody asks for it: the probes' attention is what keepers are given

    @property
    def decides(self) -> str:
        return "which rows of a prompt stay"

    @property
    def merges(self) -> bool:
        return self.keeper.merges

    def merging(self, view: View, chosen: Fates) -> tuple[Indices, Scores]:
        return self.keeper.merging(view, chosen)

    def probes(self, positions: Indices, image: Mask) -> Indices:
        return self.keeper.probes(positions, image)

    def rows_left(self, rows: Sequence[int], total: int) -> list[int]:
        return self.keeper.counts(rows, total)

    def choose(self, view: View) -> Fates:
        return self.choose_layers([view])[0]

    def choose_layers(self, views: Sequence[View]) -> list[Fates]:
        found = []
        for view, budget in zip(views, self.keeper.budgets(views), strict=True):
            scores = np.asarray(self.keeper.scores(view, budget), np.float64)
            always = int(np.isposinf(scores).sum(-1).max(initial=0))
            found.append(fates(highest(scores, view.positions, max(budget, always))))
        return found


def last_rows(positions: Indices, image: Mask, most: int | None = None) -> Indices:
    """The last `most` of a prompt's rows, or all of them, that lie behind its last image token."""
    behind = len(image) - int(image[::-1].argmax()) if image.any() else 0
    if behind == len(image):  # it ends with a picture: its last row is all that there is
        behind -= 1
    return positions[behind:] if most is None else positions[behind:][-most:]


@dataclass(frozen=True, slots=True)
class Retaining(Policy, Keeper):
    """A policy that keeps rows of a prompt, and decides nothing else.

    Of all tokens, text too, stay `tokens`, or the fraction `keep`: 0.25 without either. Attention
    is that of the prompt's last `window` rows, at most of those behind its last picture; None: of
    all those.
    """

    keep: float | None = None
    tokens: int | None = None
    window: int | None = 32

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: a value is out of range, or both are given.
        """
        if self.keep is not None:
            check_fraction(self.name, "keep", self.keep)
        if self.window is not None:
            check_count(self.name, "window", self.window, 1, "its rows' attention ranks the others")
        if self.tokens is not None:
            check_count(self.name, "tokens", self.tokens, 1, "it counts rows of a layer")
            if self.keep is not None:
                raise PolicyError(
                    f"{self.name}: expected keep or tokens, found both, keep={self.keep} and "
                    f"tokens={self.tokens}; leave one out"
                )

    def actions(self) -> tuple[Action, ...]:
        return (Retain(self),)

    def budget(self, total: int) -> int:
        """How many rows of a layer are asked for, of `total` tokens."""
        keep = USUAL_SHARE if self.keep is None else self.keep
        return self.tokens or (share_of(keep, total) if total else 0)

    def probes(self, positions: Indices, image: Mask) -> Indices:
        return last_rows(positions, image, self.window)

    def counts(self, rows: Sequence[int], total: int) -> list[int]:
        return [min(one, self.budget(total)) for one in rows]
