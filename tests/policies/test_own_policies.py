"""What somebody else's rankings, actions and policies may give, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from avl_plugins.errors import PolicyError
from avl_plugins.policies import (
    ATTENTION,
    AVL,
    Action,
    AtRandom,
    Chain,
    Divide,
    FastV,
    HeavyHitters,
    Policy,
    Prune,
    Ranking,
    Refresh,
    TextBudget,
    View,
    parse,
)


@dataclass(frozen=True)
class Given(Ranking):
    """Whatever a function gives."""

    give: Callable[[View], Any]

    reads_attention: ClassVar[bool] = False

    def scores(self, view: View, count: int) -> Any:
        return self.give(view)


def seen(attention: float = 0.0) -> View:
    positions = np.arange(10, dtype=np.int64).reshape(2, 5)
    return View(positions, np.full((2, 5), attention, np.float32), 0, 0, 5)


@pytest.mark.parametrize(
    ("give", "found"),
    [
        (lambda view: np.zeros(5), r"found float64 of \[5\]"),
        (lambda view: np.zeros((2, 6)), r"found float64 of \[2, 6\]"),
        (lambda view: None, r"found object of \[\]"),
        (lambda view: 3.0, r"found float64 of \[\]"),
        (lambda view: view.positions.astype(str), r"found <U21 of \[2, 5\]"),
        (lambda view: view.positions.astype(complex), r"found complex128 of \[2, 5\]"),
        (lambda view: np.where(view.positions == 3, np.nan, 1), "found NaN"),
    ],
)
def test_scores_that_are_not_a_number_for_each_row(give: Any, found: str) -> None:
    for action in (Divide(0.5, 0.3, Given(give)), Refresh(0.5, 3, Given(give))):
        with pytest.raises(PolicyError, match=f"Given: expected a number for each row.*{found}"):
            action.choose(seen())


def test_scores_of_any_type_of_number() -> None:
    for kind in (list, lambda rows: np.array(rows, np.float16), np.array):
        ranking = Given(lambda view, kind=kind: kind([[0, 4, 3, 2, 1]] * 2))
        np.testing.assert_array_equal(
            ranking.first(seen(), 2), [[False, True, True, False, False]] * 2
        )
    assert ATTENTION.first(seen(np.nan), 2).sum() == 4  # NaN that the ranking has not made


def test_a_ranking_cannot_change_the_rows_that_it_sees() -> None:
    positions = np.arange(5, dtype=np.int64)
    view = View(positions, np.zeros(5, np.float32), 0, 0, 5)
    for array in (view.positions, view.attention):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7
    positions[0] = 7  # whoever owns them can


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Prune(2, 0.0), "Prune: expected keep above 0 and at most 1, found 0.0"),
        (lambda: Prune(2, float("nan")), "expected keep"),
        (lambda: Prune(2, None), "expected keep"),  # type: ignore[arg-type]
        (lambda: Prune(-1, 0.5), "expected layer to be a whole number of at least 1"),
        (lambda: Prune(2.5, 0.5), "expected layer"),  # type: ignore[arg-type]
        (lambda: Prune(2, 0.5, "mine"), "expected a ranking, found 'mine'"),  # type: ignore[arg-type]
        (lambda: Divide(0.5, 0.3, Ranking), "expected a ranking"),  # type: ignore[arg-type]
        (lambda: Divide(2, 0.3), "Divide: expected keep"),
        (lambda: Divide(0.5, -1), "Divide: expected core"),
        (lambda: Refresh(0, 3), "Refresh: expected core"),
        (lambda: Refresh(0.3, 0), "Refresh: expected every to be a whole number"),
        (lambda: Refresh(0.3, 3, None), "expected a ranking"),  # type: ignore[arg-type]
        (lambda: TextBudget(0, 4, 0.5), "TextBudget: expected ratio"),
        (lambda: TextBudget(0.5, 0, 0.5), "TextBudget: expected minimum"),
        (lambda: TextBudget(0.5, 4, 2), "TextBudget: expected heavy"),
        (lambda: Prune(2, 0.5, AtRandom(-1)), "AtRandom: expected seed"),
        (lambda: Prune(2, 0.5, AtRandom("x")), "AtRandom: expected seed"),  # type: ignore[arg-type]
        (lambda: Prune(2, 0.5, HeavyHitters(5)), "HeavyHitters: expected heavy"),
    ],
)
def test_actions_out_of_range(make: Callable[[], Action], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        make()


@dataclass(frozen=True)
class Answers(Policy):
    """A policy whose actions() give what it is told to."""

    answer: Any = ()
    name: ClassVar[str] = "answers"

    def actions(self) -> tuple[Action, ...]:
        return self.answer  # type: ignore[no-any-return]


class Loose(Policy):
    name: ClassVar[str] = "loose"

    def actions(self) -> tuple[Action, ...]:
        return ()


class Nowhere(Prune):
    """Between two layers, and does not say which."""

    before = None  # type: ignore[assignment]


def test_chains_and_texts_that_are_none() -> None:
    for wrong in ((5,), ("avl", "fastv"), ([AVL(), FastV()],)):
        with pytest.raises(PolicyError, match="chain: expected policies, found"):
            Chain(*wrong)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="chain: expected policies, found none"):
        Chain()
    for text in (None, 5, AVL()):
        with pytest.raises(PolicyError, match="expected a policy as text"):
            parse(text)  # type: ignore[arg-type]


def test_policies_that_cannot_be_asked() -> None:
    for wrong in (None, 5, [Prune(2, 0.5)], (Prune,), ("fastv",)):
        with pytest.raises(PolicyError, match=r"expected a tuple of actions from actions\(\)"):
            Answers(wrong).check([2])
    Answers((Prune(2, 0.5),)).check([2])
    for twice in (Prune(2, 0.3), Prune(2, 0.5)):
        with pytest.raises(PolicyError, match="expected each decision once"):
            Answers((Prune(2, 0.5), twice)).check([2])
    with pytest.raises(PolicyError, match="Nowhere to say before which layer"):
        Answers((Nowhere(2, 0.5),)).check([2])
    with pytest.raises(PolicyError, match="Loose: expected a dataclass"):
        Loose().check([2])
