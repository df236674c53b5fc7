"""Full attention: every token is active in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.policies.base import Policy
from avl_plugins.policies.plan import Plan


@dataclass(frozen=True, slots=True)
class Dense(Policy):
    """Keep and read everything."""

    name: ClassVar[str] = "dense"

    def plan(self) -> Plan:
        return Plan()
