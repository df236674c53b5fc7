"""What kernels that rank and move rows by themselves can do; anything else is the host's."""

from __future__ import annotations

from collections.abc import Iterable

from avl_plugins.policies.action import Action
from avl_plugins.policies.ranking import ATTENTION
from avl_plugins.policies.split import Refresh
from avl_plugins.policies.text import TextBudget


def is_refresh_by_attention(action: Action) -> bool:
    """Whether a kernel that exchanges core rows by attention does what `action` decides.

    Exactly these classes: one that is derived from them may decide otherwise.
    """
    return type(action) is Refresh and action.ranking == ATTENTION


def is_text_budget(action: Action) -> bool:
    """Whether a kernel that evicts text as H2O does what `action` decides."""
    return type(action) is TextBudget


def refresh_fits(action: Action, total: int, rows: Iterable[tuple[int, int]]) -> bool:
    """Whether a refresh leaves cores as large as they are, which kernels take for granted.

    Args:
        total: image tokens in all.
        rows: core and parked rows of each layer.
    """
    return isinstance(action, Refresh) and all(
        action.count(total, core + parked) == core for core, parked in set(rows)
    )
