"""What changes logits before a token is chosen: penalties, biases and bans, each in place.

Scores are [V] float64, tokens are int64 ids. Ids beyond the scores, as those of visual tokens may
be, are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
LARGEST = float(np.finfo(np.float64).max) / 4


def as_ids(tokens: Sequence[int]) -> Ids:
    """Token ids as an array."""
    return np.asarray(tokens, np.int64)


def add_bias(scores: Floats, bias: Mapping[int, float]) -> None:
    """Add a number to the score of some tokens."""
    for token, number in bias.items():
        if token < scores.size:
            scores[token] = np.clip(scores[token] + number, -LARGEST, LARGEST)


def penalize_seen(scores: Floats, seen: Ids, factor: float) -> None:
    """Divide the scores of tokens that were seen by `factor`, multiply negative ones by it."""
    seen = seen[seen < scores.size]
    rated = scores[seen]
    with np.errstate(over="ignore"):
        changed = np.where(rated < 0, rated * factor, rated / factor)
    # Scores stay finite: infinity stands for a token that is banned, or for damaged logits.
    scores[seen] = np.clip(changed, -LARGEST, LARGEST)


def penalize_said(scores: Floats, said: Ids, presence: float, frequency: float) -> None:
    """Subtract `presence` from the scores of tokens that were said, and `frequency` each time."""
    tokens, times = np.unique(said[said < scores.size], return_counts=True)
    scores[tokens] -= presence + frequency * times


def ban(scores: Floats, tokens: Ids) -> None:
    """Make tokens impossible."""
    scores[tokens[tokens < scores.size]] = -np.inf


def ban_others(scores: Floats, allowed: NDArray[np.bool_]) -> None:
    """Make all tokens impossible but those `allowed`, [at least V]."""
    scores[~allowed[: scores.size]] = -np.inf


def ban_ngrams(scores: Floats, seen: Ids, size: int) -> None:
    """Make tokens impossible that would end `size` tokens in a row which were there before."""
    starts = len(seen) - size + 1
    if starts < 1:
        return
    last, same = seen[len(seen) - size + 1 :], np.ones(starts, np.bool_)
    for place in range(size - 1):
        same &= seen[place : place + starts] == last[place]
    ban(scores, seen[size - 1 :][same])


def ban_words(scores: Floats, seen: Ids, words: Sequence[Ids]) -> None:
    """Make tokens impossible that would complete a sequence of `words`."""
    for word in words:
        before = len(word) - 1
        if before <= len(seen) and np.array_equal(seen[len(seen) - before :], word[:-1]):
            ban(scores, word[-1:])
