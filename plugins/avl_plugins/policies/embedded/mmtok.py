"""MMTok: the tokens that cover question and picture best (arXiv 2508.18264, ICLR 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.checks import check_fraction
from avl_plugins.policies.embedded.covering import covering
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import Doubles, closeness, dtype_of, unit
from avl_plugins.policies.view import Indices, Picture, Scores

TEXT_TEMPERATURE, PICTURE_TEMPERATURE = 0.02, 0.2  # the paper's


@dataclass(frozen=True, slots=True)
class MMTok(Selecting):
    """Maximizes how well tokens cover those of the question and, times `alpha`, all of the picture.

    How well a token covers another is a softmax over cosines. Greedy, by exact gains.
    """

    alpha: float = 0.5

    name: ClassVar[str] = "mmtok"
    asks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Selecting.__post_init__(self)
        check_fraction(self.name, "alpha", self.alpha)

    def pick(self, picture: Picture, count: int) -> Indices:
        return covering(_covers(self.name, picture, self.alpha), count)


def _covers(name: str, picture: Picture, alpha: float) -> Scores:
    """[n, m + n]: how well each token covers each of the question, and of the picture."""
    tokens, things = len(picture.features), len(picture.question)
    found = np.empty((tokens, things + tokens), dtype_of(tokens))
    among = found[:, things:]
    closeness(name, picture.features, PICTURE_TEMPERATURE, among)
    among *= (alpha / (tokens * among.sum(0))).astype(found.dtype)
    if things:
        asked = unit(picture.question) @ unit(picture.features).T
        found[:, :things] = _shares(asked, TEXT_TEMPERATURE).T / things
    return found


def _shares(rows: Doubles, temperature: float) -> Doubles:
    """Softmax of each row, in place."""
    rows -= rows.max(1, keepdims=True)
    rows /= temperature
    np.exp(rows, out=rows)
    rows /= rows.sum(1, keepdims=True)
    return rows
