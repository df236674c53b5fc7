"""SnapKV: what the end of a prompt looks at is what its answer will (arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.cached.retain import Retaining
from avl_plugins.policies.checks import check_count
from avl_plugins.policies.view import Scores, View


@dataclass(frozen=True, slots=True)
class SnapKV(Retaining):
    """The rows with most attention of the last `window` ones, each with its neighbours.

    A row counts as much as the best of the `pool` rows around it, among those before the window.
    """

    pool: int = 7

    name: ClassVar[str] = "snapkv"

    def __post_init__(self) -> None:
        Retaining.__post_init__(self)
        check_count(self.name, "pool", self.pool, 1, "1 lets each row stand for itself")

    def scores(self, view: View, count: int) -> Scores:
        return pooled(view, self.pool)


def pooled(view: View, width: int) -> Scores:
    """The most attention of the `width` rows around each, infinite from the first probe on.

    Of an even width one row more lies before than behind.
    """
    found = np.full(view.positions.shape, np.inf)
    first = view.probes[0] if len(view.probes) else np.inf
    for head, (positions, attention) in enumerate(
        zip(view.positions[0], view.attention[0], strict=True)
    ):
        before = int(positions.searchsorted(first))
        if before:
            sides = width // 2, (width - 1) // 2
            padded = np.pad(attention[:before], sides, constant_values=-np.inf)
            rows = np.lib.stride_tricks.sliding_window_view(padded, width)
            found[0, head, :before] = rows.max(1)
    return found
