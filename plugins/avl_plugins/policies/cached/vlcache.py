"""VL-Cache: more rows for layers whose attention is spread more (arXiv 2410.23317, ICLR 2025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.cached.retain import Retaining
from avl_plugins.policies.checks import check_weight
from avl_plugins.policies.view import Scores, View

FLOOR = 0.01  # of the largest attention: what is less counts as none; and of rows, the fewest kept


@dataclass(frozen=True, slots=True)
class VLCache(Retaining):
    """The rows with most attention of the text behind the last picture, as many as a layer needs.

    A layer's share goes by how many rows are given at least 1 % of the most, the mean over KV
    heads. `recent` of it is for the newest rows.
    """

    window: int | None = None
    recent: float = 0.1

    name: ClassVar[str] = "vlcache"

    def __post_init__(self) -> None:
        Retaining.__post_init__(self)
        check_weight(self.name, "recent", self.recent, "0 keeps the newest row alone for its age")

    def budgets(self, views: Sequence[View]) -> list[int]:
        rows = [view.positions.shape[-1] for view in views]
        wanted = sum(self.counts(rows, views[0].total))
        return apportion([density(view) for view in views], rows, wanted)

    def scores(self, view: View, count: int) -> Scores:
        found = view.attention.astype(np.float64)
        newest = max(1, math.ceil(self.recent * count - 1e-9))
        found[..., -newest:] = np.inf
        return found


def density(view: View) -> float:
    """The share of a layer's rows that are given a hundredth of the most, mean over KV heads."""
    attention = view.attention[0]
    return float((attention >= FLOOR * attention.max(1, keepdims=True)).mean())


def apportion(densities: Sequence[float], rows: Sequence[int], wanted: int) -> list[int]:
    """Rows of each layer in proportion to densities, `wanted` in all; at least 1 % of each.

    What is left by rounding down goes to the largest fractions, of equal ones to the first layer.
    """
    held = np.asarray(rows, np.float64)
    least, shares = np.ceil(FLOOR * held), np.asarray(densities) * held
    low, high = 0.0, float((held / np.maximum(shares, 1e-30)).max())
    for _ in range(100):  # the factor at which they are as many
        middle = (low + high) / 2
        if np.clip(middle * shares, least, held).sum() < wanted:
            low = middle
        else:
            high = middle
    exact = np.clip(high * shares, least, held)
    found = np.floor(exact + 1e-6)
    left = np.round(exact - found, 6)
    for layer in (-left).argsort(kind="stable")[: max(0, round(wanted - found.sum()))]:
        found[layer] += found[layer] < held[layer]
    return [int(one) for one in found]
