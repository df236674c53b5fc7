"""Greedy cover: tokens that together cover a set best (Nemhauser et al. 1978), by exact gains."""

from __future__ import annotations

import heapq
from typing import Final

import numpy as np

from avl_plugins.policies.embedded.similar import Doubles
from avl_plugins.policies.view import Indices

TOGETHER: Final = 8  # tokens whose gains are computed at once; of more, most are in vain


def covering(covers: Doubles, count: int, weights: Doubles | None = None) -> Indices:
    """`count` of n tokens, each next one that which adds most to what is covered.

    Args:
        covers: [n, m], how well each token covers each of m things; below 0 it does not.
        weights: [n], at least 0: what a token's gain counts. None: 1.
    """
    best = np.zeros(covers.shape[1])
    weights = np.ones(len(covers)) if weights is None else weights

    def gains(some: list[int]) -> list[float]:
        found: list[float] = (np.maximum(covers[some] - best, 0).sum(1) * weights[some]).tolist()
        return found

    # Gains only shrink as tokens are chosen, so an old one bounds the new one from above: only
    # tokens whose bound is above the best new gain are looked at again.
    bounds: list[tuple[float, int]] = []
    for begin in range(0, len(covers), TOGETHER):
        some = list(range(begin, min(begin + TOGETHER, len(covers))))
        bounds += [(-gain, token) for gain, token in zip(gains(some), some, strict=True)]
    heapq.heapify(bounds)
    chosen = np.zeros(count, np.int64)
    for place in range(count):
        fresh: list[tuple[float, int]] = []
        while not fresh or (bounds and bounds[0] < min(fresh)):
            some = [heapq.heappop(bounds)[1] for _ in range(min(TOGETHER, len(bounds)))]
            fresh += [(-gain, token) for gain, token in zip(gains(some), some, strict=True)]
        first = min(fresh)
        fresh.remove(first)
        for one in fresh:
            heapq.heappush(bounds, one)
        chosen[place] = first[1]
        np.maximum(best, covers[first[1]], out=best)
    return chosen
