"""Choosing the best of scored tokens, the same way everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def by_score(scores: Scores) -> Indices:
    """Indices along the last axis, highest score first; of equal scores the lowest index first."""
    return np.argsort(-scores, axis=-1, kind="stable").astype(np.int64, copy=False)


def highest(scores: Scores, positions: Indices, count: int) -> Mask:
    """Which `count` along the last axis score highest; of equal scores the lowest positions do.

    `scores` and `positions` are [..., n], in any order of positions.
    """
    surplus = scores.shape[-1] - count
    keep = np.ones(scores.shape, np.bool_)
    if surplus <= 0:
        return keep
    # NumPy orders complex numbers by their real parts, and by their imaginary parts where those are
    # equal. One selection is far cheaper than sorting by two keys.
    rank = np.empty(scores.shape, np.complex128)
    rank.real, rank.imag = scores, -positions
    lowest = np.argpartition(rank, surplus - 1)[..., :surplus].reshape(-1, surplus)
    keep.reshape(-1, scores.shape[-1])[np.arange(len(lowest))[:, None], lowest] = False
    return keep


def at_random(count: int, *seeds: int) -> Indices:
    """A permutation of `count` indices that only `seeds` decide."""
    return np.random.default_rng(seeds).permutation(count).astype(np.int64)
