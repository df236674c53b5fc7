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
    Placed,
    Policy,
    Prune,
    Ranking,
    Refresh,
    TextBudget,
    Tokens,
    View,
    When,
    parse,
)
from avl_runtime.evaluate.cost import Request as CostRequest
from avl_runtime.evaluate.cost import placed_rows, request_flops
from avl_runtime.package.dims import Dims


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


@dataclass(frozen=True)
class Nameless(Policy):
    def actions(self) -> tuple[Action, ...]:
        return ()


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
    with pytest.raises(PolicyError, match="Nameless: expected a policy with a name, found none"):
        Nameless().check([2])
    with pytest.raises(PolicyError, match="Nameless: expected a policy with a name, found none"):
        Chain(AVL(), Nameless())


REFUSED: list[tuple[tuple[Action, ...], str]] = [
    ((Refresh(0.3, 3),), "expected an action that parks rows for Refresh to read"),
    ((Prune(2, 0.5), Refresh(0.3, 3)), "expected an action that parks rows for Refresh"),
    ((Refresh(0.3, 3), TextBudget(0.5, 4, 0.5)), "expected an action that parks rows"),
    ((Prune(2, 0.3), Divide(0.5, 0.2)), "Divide to choose at most the 0.3 of the image tokens"),
    ((Prune(2, 0.3), Prune(4, 0.4)), "Prune to choose at most the 0.3"),
    ((Prune(2, 0.3), Prune(4, 1.0), Divide(0.4, 0.2)), "Divide to choose at most the 0.3"),
    ((Divide(0.5, 0.2), Refresh(0.6, 3)), "Refresh to choose at most the 0.5"),
    ((Divide(0.4, 0.2), Prune(2, 0.5)), "in the order of time, found Prune behind Divide"),
    ((Prune(4, 0.5), Prune(2, 0.6)), "in the order of time, found Prune behind Prune"),
    (
        (Prune(3, 0.5),),
        "a package split after layer 3, found splits after 2, 4; export with --split 2,3,4",
    ),
]


@pytest.mark.parametrize(("actions", "says"), REFUSED)
def test_actions_that_contradict_each_other(actions: tuple[Action, ...], says: str) -> None:
    with pytest.raises(PolicyError, match=says) as caught:
        Answers(actions).check([2, 4])
    assert "; " in str(caught.value)


@pytest.mark.parametrize(
    "actions",
    [
        (),
        (TextBudget(0.5, 4, 0.5), Prune(2, 0.5)),
        (Prune(2, 0.5), Prune(4, 1.0), Divide(1.0, 0.5), Refresh(0.5, 2)),
        (Prune(2, 0.8), Divide(0.5, 0.2), Refresh(0.4, 3)),  # a core may grow
        (Divide(0.5, 0.5), Refresh(1.0, 3)),  # all that is left
        AVL(text=0.5, prefill=0.7).actions(),
    ],
)
def test_actions_that_do_not(actions: tuple[Action, ...]) -> None:
    Answers(actions).check([2, 4])


def test_a_core_is_chosen_among_what_is_kept() -> None:
    with pytest.raises(PolicyError, match=r"Divide: expected core of at most keep = 0\.2, found"):
        Divide(0.2, 0.3)


@dataclass(frozen=True)
class Says(Action):
    """An action that says of itself what it is told to."""

    told: tuple[tuple[str, Any], ...] = ()

    when: ClassVar[frozenset[When]] = frozenset({When.PROMPT})
    ranking = ATTENTION
    decides = "something"

    def __getattribute__(self, name: str) -> Any:
        told = dict(object.__getattribute__(self, "told"))
        return told[name] if name in told else object.__getattribute__(self, name)

    def choose(self, view: View) -> Any:
        return np.zeros(view.positions.shape, np.int8)


def says(**told: Any) -> Answers:
    return Answers((Says(tuple(told.items())),))


BETWEEN = frozenset({When.BETWEEN})
ODD: list[tuple[dict[str, Any], str]] = [
    ({"share": share}, "Says: expected share above 0 and at most 1, found")
    for share in (0, -1, 1.5, float("nan"), None, "half", True)
]
ODD += [
    ({"wants": 2}, "expected wants above 0"),
    ({"ranking": None}, "Says: expected a ranking, found None"),
    ({"when": frozenset()}, "expected Says to say when it decides, found frozenset"),
    ({"when": {"prompt"}}, "expected Says to say when it decides"),
    ({"tokens": "image"}, "expected Says to say which tokens it is about, found 'image'"),
    ({"when": BETWEEN}, "expected Says to say before which layer it decides, found None"),
    ({"when": BETWEEN, "before": 3}, "a package split after layer 3, found splits after 2"),
    ({"when": BETWEEN, "before": 2, "tokens": Tokens.TEXT}, "Says to be about image tokens"),
]


@pytest.mark.parametrize(("told", "words"), ODD)
def test_what_actions_say_of_themselves(told: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words) as caught:
        says(**told).check([2])
    assert "\n" not in str(caught.value)
    says().check([2])


SIZES = Dims(8, 16, 2, 2, 1, 4, 50, 99, 1)


@pytest.mark.parametrize(
    "found", [None, 5, (5, 0), Placed(11), Placed(6, 5)], ids=["none", "5", "pair", "11", "6+5"]
)
def test_rows_that_are_placed_were_there(found: Any) -> None:
    actions = says(placed=lambda *_: found).answer
    with pytest.raises(PolicyError, match="Says: expected Placed with at most 10 rows from placed"):
        placed_rows(SIZES, actions, 10)
    assert placed_rows(SIZES, says(placed=lambda *_: Placed(4, 6)).answer, 10) == ([4, 4], [6, 6])


@pytest.mark.parametrize("count", [-1, 0.5, float("nan"), None, True])
def test_counts_of_placed_rows(count: Any) -> None:
    with pytest.raises(PolicyError, match="Placed: expected active to be a whole number"):
        Placed(count)
    with pytest.raises(PolicyError, match="Placed: expected parked"):
        Placed(1, count)


@pytest.mark.parametrize("rows", [-1, 6, 0.5, float("nan"), None, "5"])
def test_text_rows_that_are_no_count_of_them(rows: Any) -> None:
    request = CostRequest(prompt=15, visual=10, steps=1)
    with pytest.raises(PolicyError, match=r"Says: expected a whole number from 0 to 5 from text_r"):
        request_flops(SIZES, says(text_rows=lambda _: rows).answer, request, [10, 10], [0, 0])
    fewer, all_of_them = (
        request_flops(SIZES, says(text_rows=lambda _, n=n: n).answer, request, [10, 10], [0, 0])
        for n in (np.int64(0), 5)
    )
    assert fewer[1] < all_of_them[1]


@dataclass
class Changeable(Policy):
    name: ClassVar[str] = "changeable"

    def actions(self) -> tuple[Action, ...]:
        return ()


@dataclass
class Turned(Ranking):
    def scores(self, view: View, count: int) -> Any:
        return view.attention


@dataclass
class Later(Action):
    when: ClassVar[frozenset[When]] = frozenset({When.PROMPT})
    ranking = ATTENTION
    decides = "nothing"

    def choose(self, view: View) -> Any:
        return np.zeros(view.positions.shape, np.int8)


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        (Changeable(), "Changeable"),
        (Answers((Prune(2, 0.5, Turned()),)), "Turned"),
        (Answers((Later(),)), "Later"),
    ],
)
def test_what_can_be_changed_is_no_value(policy: Policy, kind: str) -> None:
    with pytest.raises(PolicyError, match=f"{kind}: expected a frozen dataclass"):
        policy.check([2])
    with pytest.raises(PolicyError, match=r"expected a frozen dataclass|decide something"):
        Chain(AVL(), policy).check([2])
