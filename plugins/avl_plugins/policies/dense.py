"""Full attention: every token is active in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.policies.action import Action
from avl_plugins.policies.base import Policy


@dataclass(frozen=True, slots=True)
class Dense(Policy):
    """Keep and read everything."""

    name: ClassVar[str] = "dense"

    def actions(self) -> tuple[Action, ...]:
        return ()
