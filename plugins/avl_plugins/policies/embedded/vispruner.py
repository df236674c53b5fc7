"""VisPruner: half by attention, half by what repeats least (arXiv 2412.01818, ICCV 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.checks import check_weight
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import cosines, many
from avl_plugins.policies.view import BY_CLASS, Indices, Picture, Scores

AT_ONCE = 8  # tokens that a round drops at most
NEAREST = 48  # neighbours of a token that are looked up before all are compared
FEW = 1 << 14  # cosines that are compared as fast as looked up
ROWS = 256  # tokens whose neighbours are put in order at once


@dataclass(frozen=True, slots=True)
class VisPruner(Selecting):
    """The fraction `important` has most attention of the class token, the rest repeats least.

    What is not important, in the order of attention, is divided into every other token and those
    between. In each round up to eight of the former go, those that are most like one of the
    latter, until as many are left as are wanted.
    """

    important: float = 0.5

    name: ClassVar[str] = "vispruner"
    looks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Selecting.__post_init__(self)
        check_weight(self.name, "important", self.important, "1 is by attention alone")

    def pick(self, picture: Picture, count: int) -> Indices:
        order = (-picture.attention[:, BY_CLASS]).argsort(kind="stable")
        first = int(self.important * count)
        chosen, left = order[:first], order[first:]
        if first == count:
            return chosen
        rows = np.sort(left)
        near = cosines(self.name, picture.features[rows])
        found = without_repeats(near, np.searchsorted(rows, left), count - first)
        return np.concatenate([chosen, rows[found]])


def without_repeats(near: Scores, left: Indices, most: int) -> Indices:
    """`most` of n tokens `left`, which are in order, whose cosines are `near` [n, n]."""
    if kernels := many(len(near)):
        return kernels.without_repeats(near, left, most, AT_ONCE)
    nearest = _nearest(near)
    while len(left) > most:
        even, odd = left[::2], left[1::2]
        drop = min(AT_ONCE, len(left) - most, len(even))
        likest = np.lexsort((even, -_alike(near, nearest, even, odd)))
        left = np.concatenate([even[likest[drop:]], odd])
    return left


def _nearest(near: Scores) -> Indices:
    """[n, k]: the tokens that are most like each, the likest first."""
    tokens = len(near)
    count = min(NEAREST, tokens)
    found = np.empty((tokens, count), np.int64)
    for begin in range(0, tokens, ROWS):
        rows = near[begin : begin + ROWS]
        some = rows.argpartition(tokens - count, axis=1)[:, tokens - count :]
        order = np.take_along_axis(rows, some, 1).argsort(axis=1)[:, ::-1]
        found[begin : begin + ROWS] = np.take_along_axis(some, order, 1)
    return found


def _alike(near: Scores, nearest: Indices, even: Indices, odd: Indices) -> Scores:
    """Of each of `even` the greatest cosine to one of `odd`: the first of these that is near it."""
    among = np.zeros(len(near), np.bool_)
    among[odd] = True
    found, left = np.empty(len(even), near.dtype), np.arange(len(even))
    for column in nearest.T:
        if len(left) * len(odd) <= FEW:
            break
        tokens = even[left]
        hit = among[column[tokens]]
        found[left[hit]] = near[tokens[hit], column[tokens[hit]]]
        left = left[~hit]
    if len(left):
        found[left] = near[np.ix_(even[left], odd)].max(1)
    return found
