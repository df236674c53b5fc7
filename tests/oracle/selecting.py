"""Which tokens of a picture each method chooses before the decoder: float64 and brute force.

Written from the papers and what is known of their code, with none of avl's. This file must not
import avl_runtime or avl_plugins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


@dataclass(slots=True)
class Draws:
    """Takes the best, and remembers how close the closest decision was.

    gap: the smallest difference between what was taken and the next best, over all decisions.
    """

    gap: float = math.inf
    taken: list[int] = field(default_factory=list)

    def best(self, values: Sequence[float], among: Sequence[int]) -> int:
        """The highest of `values`, one for each token of `among`; of equal ones the first token."""
        order = sorted(zip(values, among, strict=True), key=lambda pair: (-pair[0], pair[1]))
        if len(order) > 1 and order[0][0] != order[1][0]:  # where equal, the order decides
            self.gap = min(self.gap, order[0][0] - order[1][0])
        return order[0][1]

    def take(self, values: Sequence[float], among: Sequence[int], count: int) -> list[int]:
        """The `count` best, one after the other; only the last decision is close or not."""
        order = sorted(zip(values, among, strict=True), key=lambda pair: (-pair[0], pair[1]))
        if 0 < count < len(order):
            self.gap = min(self.gap, order[count - 1][0] - order[count][0])
        return [token for _, token in order[:count]]


def cosine(one: Rows, other: Rows) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def cosines(some: Rows, others: Rows) -> Rows:
    lengths = np.linalg.norm(some, axis=1)[:, None] * np.linalg.norm(others, axis=1)
    return some @ others.T / lengths


def divprune(features: Rows, _: Rows, count: int, draws: Draws) -> list[int]:
    away = 1 - cosines(features, features)
    tokens = range(len(features))
    nearest = [min(away[i, j] for j in tokens if j != i) for i in tokens]
    chosen = [draws.best(nearest, tokens)]
    while len(chosen) < count:
        left = [i for i in tokens if i not in chosen]
        chosen.append(draws.best([min(away[i, chosen]) for i in left], left))
    return chosen


def coverage(features: Rows, question: Rows, alpha: float = 0.5) -> Rows:
    """MMTok's [m + n, n]: how well each token covers each row of the question and the picture."""
    text = np.exp(cosines(question, features) / 0.02)
    picture = np.exp(cosines(features, features) / 0.2)
    text /= text.sum(1, keepdims=True) * max(1, len(question))
    picture *= alpha / (picture.sum(1, keepdims=True) * len(features))
    return np.concatenate([text, picture])


def mmtok(features: Rows, question: Rows, count: int, draws: Draws) -> list[int]:
    covers = coverage(features, question)
    chosen: list[int] = []
    while len(chosen) < count:
        left = [i for i in range(len(features)) if i not in chosen]
        covered = covers[:, chosen].max(1, initial=0, keepdims=True)
        gains = np.maximum(covers[:, left] - covered, 0).sum(0)
        # As logarithms: what rounding changes of a gain is a share of it.
        chosen.append(draws.best(np.log(np.maximum(gains, 1e-300)).tolist(), left))
    return chosen


def kernel(features: Rows, question: Rows, weight: float = 0.5) -> Rows:
    """CDPruner's kernel, with the mean embedding of the question in the place of CLIP's."""
    relevance = np.ones(len(features))
    if len(question):
        near = cosines(features, question.mean(0, keepdims=True))[:, 0]
        relevance = (near - near.min() + 1e-6) / (near.max() - near.min())
    found = cosines(features, features)
    np.fill_diagonal(found, 1)
    return (1 - weight) * found + weight * relevance[:, None] * found * relevance


def cdpruner(features: Rows, question: Rows, count: int, draws: Draws) -> list[int]:
    table = kernel(features, question)
    chosen: list[int] = []
    while len(chosen) < count:
        left = [i for i in range(len(features)) if i not in chosen]
        volume = np.linalg.det(table[np.ix_(chosen, chosen)])
        volumes = [np.linalg.det(table[np.ix_([*chosen, i], [*chosen, i])]) for i in left]
        chosen.append(draws.best([one / volume for one in volumes], left))
    return chosen


def dart(features: Rows, _: Rows, count: int, draws: Draws, pivots: int = 8) -> list[int]:
    tokens = range(len(features))
    norms = [float(np.abs(one).sum()) for one in features]
    first = sorted(draws.take(norms, tokens, min(pivots, count)))
    chosen = list(first)
    shares = [len(part) for part in np.array_split(np.arange(count - len(first)), len(first))]
    for pivot, share in zip(first, shares, strict=True):
        left = [i for i in tokens if i not in chosen]
        away = [-cosine(features[i], features[pivot]) for i in left]
        chosen += draws.take(away, left, share)
    return chosen


METHODS: dict[str, Callable[[Rows, Rows, int, Draws], list[int]]] = {
    "divprune": divprune,
    "mmtok": mmtok,
    "cdpruner": cdpruner,
    "dart": dart,
}


def evs(frames: NDArray[np.float64], count: int, draws: Draws) -> list[int]:
    """Of `frames` [T, tokens, C]: all tokens of the first, and those that change most."""
    times, each, _ = frames.shape
    count = max(count, each)
    left = [(t, p) for t in range(1, times) for p in range(each)]
    changes = [1 - cosine(frames[t, p], frames[t - 1, p]) for t, p in left]
    return [*range(each), *draws.take(changes, [t * each + p for t, p in left], count - each)]
