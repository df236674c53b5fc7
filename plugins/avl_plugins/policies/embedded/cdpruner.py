"""CDPruner: choice by determinants (arXiv 2506.10967, NeurIPS 2025), by embeddings, not CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.checks import check_weight
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import Doubles, cosines, cosines_to
from avl_plugins.policies.view import Indices, Picture

SMALLEST = 1e-6  # what a further token adds to a determinant at least, to be chosen for that


@dataclass(frozen=True, slots=True)
class CDPruner(Selecting):
    """Maximizes the determinant of the chosen tokens' kernel, greedily.

    The kernel is (1 - weight) S + weight r S r: S are cosines, and r is how relevant a token is,
    by its cosine to the mean embedding of the question. The paper has CLIP's own text tower say
    that, and weight 1; embeddings and 0.5 are those of OpenVINO GenAI.
    """

    weight: float = 0.5

    name: ClassVar[str] = "cdpruner"
    asks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Selecting.__post_init__(self)
        check_weight(self.name, "weight", self.weight, "0 asks for no relevance")

    def pick(self, picture: Picture, count: int) -> Indices:
        near = cosines(self.name, picture.features)
        relevance = _relevance(picture)

        def kernel(token: int) -> Doubles:
            scale: Doubles = 1 - self.weight + self.weight * relevance[token] * relevance
            row: Doubles = scale * near[token]
            return row

        # Of each token: what it would add to the determinant, after those that are chosen.
        adds = 1 - self.weight + self.weight * relevance**2
        alone = adds.copy()
        spanned = np.zeros((count, len(near)))
        chosen = np.zeros(count, np.int64)
        for place in range(count):
            token = int(adds.argmax())
            if adds[token] < SMALLEST:  # all others lie in the span of those: by relevance
                left = np.where(np.isneginf(adds), -np.inf, alone)
                chosen[place:] = (-left).argsort(kind="stable")[: count - place]
                break
            chosen[place] = token
            known = spanned[:place]
            row = (kernel(token) - known[:, token] @ known) / np.sqrt(adds[token])
            spanned[place] = row
            adds -= row**2
            adds[token] = -np.inf
        return chosen


def _relevance(picture: Picture) -> Doubles:
    """[n] above 0 and up to about 1; 1 everywhere where nothing is asked, or all are as near."""
    if not len(picture.question):
        return np.ones(len(picture.features))
    asked = picture.question.mean(0, dtype=np.float64, keepdims=True)
    near = cosines_to(asked, picture.features)[0].astype(np.float64)
    spread = near.max() - near.min()
    if not spread:
        return np.ones(len(near))
    found: Doubles = (near - near.min() + 1e-6) / spread
    return found
