"""LOOK-M: text before image tokens, and what goes is merged into what stays (arXiv 2406.18139).

Keys are merged as they are cached, after RoPE, as in the paper's code: a sum of keys of different
positions points to none of them, and counts as the row that stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.cached.retain import Retaining, last_rows
from avl_plugins.policies.checks import check_weight
from avl_plugins.policies.embedded.similar import directions
from avl_plugins.policies.view import ACTIVE, DROPPED, Fates, Indices, Mask, Scores, View

AVERAGED: Final = "averaged"
PIVOTAL: Final = "pivotal"
WEIGHTED: Final = "weighted"
NONE: Final = "none"
ROWS: Final = 1 << 9  # that go and are compared together with all that stay


@dataclass(frozen=True, slots=True)
class LookM(Retaining):
    """The newest rows, then text, then image tokens, each by what the prompt gives them.

    The newest are the fraction `recent` of what stays. Attention is that of all the prompt's rows,
    or of the last `window` ones behind the last picture. A row that goes is merged into the one
    that stays, of its KV head, whose key has the largest cosine with its own; of m rows that go
    into one the key k becomes `merge`: pivotal, the mean of k and of the m means of k and a row;
    averaged, of k and the rows; weighted, of k and the rows times their cosines; none. Values
    likewise.
    """

    window: int | None = None
    recent: float = 0.5
    merge: str = PIVOTAL

    name: ClassVar[str] = "lookm"

    def __post_init__(self) -> None:
        Retaining.__post_init__(self)
        check_weight(self.name, "recent", self.recent, "0 keeps the newest row alone for its age")
        if self.merge not in (PIVOTAL, AVERAGED, WEIGHTED, NONE):
            raise PolicyError(
                f"{self.name}: expected merge = pivotal, averaged, weighted or none, found "
                f"{quoted(self.merge)}; choose one"
            )

    @property
    def merges(self) -> bool:
        return self.merge != NONE

    def probes(self, positions: Indices, image: Mask) -> Indices:
        return positions if self.window is None else last_rows(positions, image, self.window)

    def scores(self, view: View, count: int) -> Scores:
        found = view.attention.astype(np.float64)
        found += np.where(view.image, 0, found.max(-1, keepdims=True) + 1)
        newest = max(1, math.ceil(self.recent * count - 1e-9))
        found[..., -newest:] = np.inf
        return found

    def merging(self, view: View, chosen: Fates) -> tuple[Indices, Scores]:
        into, times = np.full(chosen.shape, -1), np.ones(chosen.shape)
        for head, keys in enumerate(view.keys):
            stays = np.flatnonzero(chosen[0, head] == ACTIVE)
            goes = np.flatnonzero(chosen[0, head] == DROPPED)
            nearest, cosines = _nearest(keys[stays], keys[goes])
            into[0, head, goes] = stays[nearest]
            joining = np.bincount(into[0, head, goes], minlength=len(keys))
            ends = np.flatnonzero(joining)
            into[0, head, ends] = ends
            each = 1 / (1 + joining)  # of the mean's parts
            times[0, head, goes] = each[stays[nearest]]
            times[0, head, ends] = each[ends]
            if self.merge == PIVOTAL:
                times[0, head, goes] /= 2
                times[0, head, ends] *= 1 + joining[ends] / 2
            elif self.merge == WEIGHTED:
                times[0, head, goes] *= cosines
        return into, times


def _nearest(stays: Scores, goes: Scores) -> tuple[Indices, Scores]:
    """For each row that goes [m, D] the number of the row most like it of [n, D], and the cosine.

    Of rows that are as like it the first.
    """
    found, cosines = np.empty(len(goes), np.int64), np.empty(len(goes))
    for first in range(0, len(goes), ROWS):
        some = slice(first, first + ROWS)
        near = directions(goes[some], len(stays) + len(goes)).to(stays)
        found[some] = near.argmax(1)
        cosines[some] = near.max(1)
    return found, cosines
