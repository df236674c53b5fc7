"""PyramidKV: SnapKV's choice, more rows in early layers than in late ones (arXiv 2406.02069)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.policies.cached.snapkv import SnapKV
from avl_plugins.policies.checks import check_count
from avl_plugins.policies.view import View


@dataclass(frozen=True, slots=True)
class PyramidKV(SnapKV):
    """As SnapKV, with budgets that fall from layer to layer by as many rows.

    The last layer has 1/`beta` of the mean beside the window, the first as much more.
    """

    window: int | None = 8
    beta: int = 20

    name: ClassVar[str] = "pyramidkv"

    def __post_init__(self) -> None:
        SnapKV.__post_init__(self)
        check_count(self.name, "beta", self.beta, 1, "1 gives all layers as many rows")

    def counts(self, rows: Sequence[int], total: int) -> list[int]:
        return self._falling(rows, total, [min(self.window or 0, one) for one in rows])

    def budgets(self, views: Sequence[View]) -> list[int]:
        rows = [view.positions.shape[-1] for view in views]
        return self._falling(rows, views[0].total, [len(view.probes) for view in views])

    def _falling(self, rows: Sequence[int], total: int, windows: Sequence[int]) -> list[int]:
        """As the authors' code has it; the step is rounded down, so that fewer may stay."""
        found, budget, deepest = [], self.budget(total), max(1, len(rows) - 1)
        for layer, (held, window) in enumerate(zip(rows, windows, strict=True)):
            mean = max(0, budget - window)
            least = mean // self.beta
            most = 2 * mean - least
            if most >= held - window:
                most, least = held - window, 2 * mean - (held - window)
            if held <= budget:
                found.append(held)
            elif held < 2 * mean or len(rows) == 1:
                found.append(budget)
            else:
                found.append(window + most - layer * ((most - least) // deepest))
        return found
