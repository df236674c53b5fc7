"""Choosing the best of scored tokens, the same way everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]


def by_score(scores: Scores) -> Indices:
    """Indices from the highest score down; equal scores from the lowest index up."""
    return np.argsort(-scores, kind="stable").astype(np.int64)


def at_random(count: int, *seeds: int) -> Indices:
    """A permutation of `count` indices that only `seeds` decide."""
    return np.random.default_rng(seeds).permutation(count).astype(np.int64)
