"""MMTok: the tokens that cover question and picture best (arXiv 2508.18264, ICLR 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.cpu.sharing import of_rows
from avl_plugins.policies.checks import check_fraction
from avl_plugins.policies.embedded.covering import covering
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import check_tokens, closeness, directions, dtype_of
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
        covers, shares = _covers(self.name, picture, self.alpha)
        return covering(covers, count, shares=shares)


def _covers(name: str, picture: Picture, alpha: float) -> tuple[Scores, Scores]:
    """[n, m + n]: how well each token covers each of the question, and of the picture, but for
    factors [m + n], which are the latter's.
    """
    tokens, things = len(picture.features), len(picture.question)
    check_tokens(name, tokens)
    found = np.empty((tokens, things + tokens), dtype_of(tokens))
    among = found[:, things:]
    of = directions(picture.features)
    closeness(of, PICTURE_TEMPERATURE, among)
    shares = np.ones(things + tokens)
    sums = of_rows(lambda rows: rows.sum(1), among)  # of a column as of a row
    shares[things:] = alpha / (tokens * sums)
    if things:
        asked = of.to(picture.question)
        found[:, :things] = _shares(asked, TEXT_TEMPERATURE) / things
    return found, shares


def _shares(columns: Scores, temperature: float) -> Scores:
    """Softmax of each column, in place."""
    columns -= columns.max(0)
    columns /= temperature
    np.exp(columns, out=columns)
    columns /= columns.sum(0)
    return columns
