"""Text budgets of one's own, asked while a request runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from avl_plugins.errors import PolicyError
from avl_plugins.policies import Action, Policy, TextBudget
from avl_runtime import LVLM
from avl_runtime.tasks import sample

ONE = sample("ocr", "held-out", 40)


@dataclass(frozen=True)
class Told(TextBudget):
    """A budget that says what it is told to."""

    says: Any = None

    def limit(self, total: int) -> Any:
        return self.says


@dataclass(frozen=True)
class Lean(Policy):
    says: Any = None
    name: ClassVar[str] = "lean"

    def actions(self) -> tuple[Action, ...]:
        return (Told(0.5, 4, 0.5, self.says),)


@pytest.mark.parametrize("limit", [-1, 2.0, float("nan"), True, "5", np.int64(-3), (4,)])
def test_a_limit_that_is_no_count(tiny: LVLM, limit: Any) -> None:
    with pytest.raises(PolicyError, match=r"Told: expected a whole number of at least 0 from lim"):
        tiny.generate(ONE.prompt, [ONE.image], policy=Lean(limit), max_new_tokens=2)


def test_limits_that_are(tiny: LVLM) -> None:
    def tokens(limit: Any) -> tuple[int, ...]:
        return tiny.generate(
            ONE.prompt, [ONE.image], policy=Lean(limit), max_new_tokens=6
        ).token_ids

    assert tokens(np.int64(5)) == tokens(5) == tokens(None)
    # Nothing to evict below its limit.
    dense = tiny.generate(ONE.prompt, [ONE.image], policy="dense", max_new_tokens=6)
    assert tokens(10**9) == dense.token_ids
