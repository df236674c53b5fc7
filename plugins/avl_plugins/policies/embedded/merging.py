"""What is not chosen is averaged into anchors: RESTORE's merging (arXiv 2606.01711, ICML 2026)."""

from __future__ import annotations

import numpy as np

from avl_plugins.policies.embedded.similar import cosines
from avl_plugins.policies.view import Indices, Scores

ROWS = 256  # tokens of which cosines with all others are looked at together


def joined(features: Scores, picked: Indices, count: int) -> tuple[Indices, Indices]:
    """So many anchors beside the `picked` tokens of n that `count` stay, and what joins each.

    An anchor is like many tokens, and like none that is so more than it. With C the cosines of the
    tokens that are not picked, R_i = sum_j C_ij tells the first, and anchors are those with the
    highest R_i (1 - max C_ij), the maximum over tokens j with a higher R; of equal ones the first
    is higher. Over no tokens it is -1, so that the token with the highest R is one.

    Args:
        features: [n, C].
        picked: ascending, fewer than `count`, which is less than n.

    Returns:
        [count], all that stay, ascending, and [n], the one of them into which each is averaged: the
        anchor most like it, or itself.

    Raises:
        PolicyError: there are more tokens than can be compared with each other.
    """
    groups = np.arange(len(features))
    rest = np.delete(groups, picked)
    near = cosines("gamma", features[rest])
    alike = near.sum(1, dtype=np.float64)
    rank = np.empty(len(rest), np.int64)
    rank[(-alike).argsort(kind="stable")] = np.arange(len(rest))
    above = np.empty(len(rest))
    for first in range(0, len(rest), ROWS):
        some = slice(first, first + ROWS)
        higher = rank < rank[some, None]
        above[some] = np.where(higher, near[some], -1).max(1)
    scores = alike * (1 - above)
    anchors = np.sort((-scores).argsort(kind="stable")[: count - len(picked)])
    groups[rest] = rest[anchors[near[:, anchors].argmax(1)]]
    groups[rest[anchors]] = rest[anchors]  # of two that are alike, each is its own
    return np.union1d(picked, rest[anchors]), groups
