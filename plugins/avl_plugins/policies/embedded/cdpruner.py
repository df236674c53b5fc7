"""CDPruner: choice by determinants (arXiv 2506.10967, NeurIPS 2025), by embeddings, not CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.cpu.choosing import Panels
from avl_plugins.policies.checks import check_weight
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import Directions, Doubles, check_tokens, directions
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
        check_tokens(self.name, len(picture.features))
        of = directions(picture.features)
        relevance = _relevance(of, picture)
        chosen = spanning(of, count, relevance, self.weight)
        if len(chosen) < count:  # all others lie in the span of those: by relevance
            left = 1 - self.weight + self.weight * relevance**2
            left[chosen] = -np.inf
            others = (-left).argsort(kind="stable")[: count - len(chosen)]
            chosen = np.concatenate([chosen, others])
        return chosen


def spanning(of: Directions, count: int, relevance: Doubles, weight: float) -> Indices:
    """Up to `count` of n tokens, each next one that which adds most to the determinant.

    Args:
        of: the tokens, whose cosines are S.
        relevance: [n], r of the kernel (1 - weight) S + weight r S r.
    """
    if isinstance(of, Panels):
        return of.functions.span(of, count, relevance, weight, SMALLEST)
    near = of.among()
    # Of each token: what it would add to the determinant, after those that are chosen.
    adds = 1 - weight + weight * relevance**2
    spanned = np.zeros((count, len(near)))
    chosen = np.zeros(count, np.int64)
    for place in range(count):
        token = int(adds.argmax())
        if adds[token] < SMALLEST:
            return chosen[:place]
        chosen[place] = token
        known, scale = spanned[:place], 1 - weight + weight * relevance[token] * relevance
        spanned[place] = (scale * near[token] - known[:, token] @ known) / np.sqrt(adds[token])
        adds -= spanned[place] ** 2
        adds[token] = -np.inf
    return chosen


def _relevance(of: Directions, picture: Picture) -> Doubles:
    """[n] above 0 and up to about 1; 1 everywhere where nothing is asked, or all are as near."""
    if not len(picture.question):
        return np.ones(len(picture.features))
    near = of.to(picture.question.mean(0, dtype=np.float64, keepdims=True))[:, 0]
    near = near.astype(np.float64)
    spread = near.max() - near.min()
    if not spread:
        return np.ones(len(near))
    found: Doubles = (near - near.min() + 1e-6) / spread
    return found
