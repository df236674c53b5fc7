"""Greedy cover: tokens that together cover a set best (Nemhauser et al. 1978), by exact gains."""

from __future__ import annotations

from typing import Final

import numpy as np

from avl_plugins.policies.embedded.similar import many
from avl_plugins.policies.view import Indices, Scores

FIRST: Final = 64  # tokens whose gains are computed at once where all are
TOGETHER: Final = 8  # and where some are; of more, most are in vain


def covering(
    covers: Scores, count: int, weights: Scores | None = None, shares: Scores | None = None
) -> Indices:
    """`count` of n tokens, each next one that which adds most to what is covered.

    Args:
        covers: [n, m], how well each token covers each of m things; below 0 it does not.
        weights: [n], at least 0: what a token's gain counts. None: 1.
        shares: [m], at least 0: what a thing counts; `covers` may be changed by it. None: 1.
    """
    tokens = len(covers)
    weights = np.ones(tokens) if weights is None else weights
    if kernels := many(tokens):
        shares = np.ones(covers.shape[1]) if shares is None else shares
        return kernels.cover(covers, count, weights, shares)
    if shares is not None:
        covers *= shares.astype(covers.dtype)
    best = np.zeros(covers.shape[1], covers.dtype)

    def gains(some: slice | Indices) -> Scores:
        found: Scores = np.maximum(covers[some] - best, 0).sum(1) * weights[some]
        return found

    # Gains only shrink as tokens are chosen, so an old one bounds the new one from above: only
    # tokens whose bound is above the best new gain are looked at again.
    parts = [slice(begin, begin + FIRST) for begin in range(0, tokens, FIRST)]
    bounds = np.concatenate([gains(some) for some in parts])
    chosen = np.zeros(count, np.int64)
    together = min(TOGETHER, tokens)
    for place in range(count):
        new = np.zeros(tokens, np.bool_)
        while not new[first := bounds.argmax()]:
            some = bounds.argpartition(tokens - together)[-together:]
            some[0] = first  # which is not among them where more are as large
            some = some[bounds[some] > -np.inf]
            bounds[some] = gains(some)
            new[some] = True
        chosen[place] = first
        bounds[first] = -np.inf
        np.maximum(best, covers[first], out=best)
    return chosen
