"""Text actions of somebody else's: what they see, whichever steps they are due after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from avl_plugins.policies import Action, HeavyHitters, Policy, Ranking, TextBudget, Tokens, View
from avl_plugins.policies.action import When
from avl_plugins.policies.view import Fates
from avl_runtime import LVLM
from avl_runtime.tasks import sample
from device.loop_cases import on_stand_in

SEEN: list[tuple[int | None, np.ndarray]] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    SEEN.clear()
    yield
    SEEN.clear()


@dataclass(frozen=True)
class Unread(Ranking):
    reads_attention: ClassVar[bool] = False

    def scores(self, view: View, count: int) -> np.ndarray:
        return np.zeros(view.positions.shape)


@dataclass(frozen=True)
class Look(Action):
    """See text after every so many steps, and keep it."""

    every: int
    by: Ranking
    when: ClassVar = frozenset({When.STEP})
    tokens: ClassVar = Tokens.TEXT
    decides: ClassVar = "nothing"

    @property
    def ranking(self) -> Ranking:
        return self.by

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def choose(self, view: View) -> Fates:
        SEEN.append((view.step, view.attention.copy()))
        return np.zeros(view.positions.shape, np.int8)


@dataclass(frozen=True)
class Looking(Policy):
    look: Action
    name: ClassVar[str] = "looking"

    def actions(self) -> tuple[Action, ...]:
        return (self.look,)


def seen_at(model: LVLM, action: Action, step: int) -> list[np.ndarray]:
    SEEN.clear()
    one = sample("caption", "held-out", 3)
    model.generate(
        one.prompt,
        [one.image],
        policy=Looking(action),
        max_new_tokens=step + 2,
        min_new_tokens=step + 2,
    )
    return [attention for at, attention in SEEN if at == step]


@pytest.mark.parametrize("on", ["host", "stand-in"])
def test_attention_is_counted_in_steps_that_nothing_is_due_after(
    tiny: LVLM, tiny_package: Path, tmp_path: Path, on: str
) -> None:
    model = tiny if on == "host" else on_stand_in(tiny_package, tmp_path / "made")[0]
    always, rarely = (seen_at(model, Look(every, HeavyHitters(0.5)), 6) for every in (1, 3))
    assert len(always) == len(rarely) > 0
    for one, other in zip(always, rarely, strict=True):
        assert one.any()
        np.testing.assert_array_equal(one, other)


def test_a_ranking_of_text_need_not_read_attention(tiny: LVLM) -> None:
    assert seen_at(tiny, Look(1, Unread()), 3)


@dataclass(frozen=True)
class Keeping(TextBudget):
    """Derived from a class that kernels know, and another decision."""

    def choose(self, view: View) -> Fates:
        SEEN.append((view.step, view.attention.copy()))
        return np.zeros(view.positions.shape, np.int8)


def test_what_is_derived_from_a_text_budget_is_asked_itself(tiny: LVLM) -> None:
    assert seen_at(tiny, Keeping(0.1, 1, 0.5), 4)
