"""What a runtime does under a policy."""

from __future__ import annotations

from dataclasses import dataclass

from avl_plugins.policies.prune import Prune
from avl_plugins.policies.split import Split
from avl_plugins.policies.text import TextBudget


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of a policy; None leaves that part dense."""

    prune: Prune | None = None
    split: Split | None = None
    text: TextBudget | None = None
