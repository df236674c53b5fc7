"""HiPrune: anchors of a middle layer with their neighbours, and a late layer's choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.checks import check_weight
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.view import LATE, MIDDLE, Indices, Picture

CROSS = 5  # an anchor and the tokens above, below, left and right of it


@dataclass(frozen=True, slots=True)
class HiPrune(Selecting):
    """Tokens that receive most in a middle layer, with their neighbours, and most in a late one.

    The fraction `anchors` is of the former (arXiv 2508.00553): objects; the others are what the
    encoder keeps about the whole picture. It needs no class token.
    """

    anchors: float = 0.1

    name: ClassVar[str] = "hiprune"
    looks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Selecting.__post_init__(self)
        check_weight(self.name, "anchors", self.anchors, "0 goes by the late layer alone")

    def pick(self, picture: Picture, count: int) -> Indices:
        number = round(self.anchors * count / CROSS)
        anchors = (-picture.attention[:, MIDDLE]).argsort(kind="stable")[:number]
        beside = np.setdiff1d(_beside(picture.places, anchors), anchors)
        chosen = np.concatenate([anchors, beside])[:count]
        rest = (-picture.attention[:, LATE]).argsort(kind="stable")
        rest = rest[~np.isin(rest, chosen)]
        return np.concatenate([chosen, rest[: count - len(chosen)]])


def _beside(places: Indices, tokens: Indices) -> Indices:
    """Those of n tokens at `places` [3, n] that lie above, below, left or right of `tokens`."""
    rasters, rows, columns = places
    height, width = rows.max() + 2, columns.max() + 2  # with a margin, in which no token lies
    keys = (rasters * height + rows) * width + columns
    wanted = [keys[tokens] + step for step in (-width, -1, 1, width)]
    return np.flatnonzero(np.isin(keys, np.concatenate(wanted)))
