"""Orders in which rows are kept, and choosing the first of them, the same way everywhere."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.checks import check_count, check_heavy
from avl_plugins.policies.view import Indices, Mask, Scores, View


class Ranking(abc.ABC):
    """An order of rows. A value: two that are equal rank alike.

    A kernel that ranks by itself declares the very rankings that it can do; any other is asked
    here. Subclasses are frozen dataclasses.

    Attributes:
        reads_attention: whether `View.attention` is read; what nobody reads is not computed, and
            is zeros.
    """

    __slots__ = ()

    reads_attention: ClassVar[bool] = True

    @abc.abstractmethod
    def scores(self, view: View, count: int) -> Scores:
        """A number for each row, shaped like `view.positions`; `count` rows will be kept.

        The highest are kept; of equal ones those of lower positions.
        """

    def first(self, view: View, count: int) -> Mask:
        """Which `count` rows along the last axis come first, or all where there are fewer.

        Raises:
            PolicyError: the scores are not a number for each row.
        """
        given = self.scores(view, count)
        try:
            scores = np.asarray(given)
        except ValueError as error:  # lists of different lengths
            raise PolicyError(
                f"{type(self).__name__}: expected a number for each row, found: {error}; return an "
                "array shaped like view.positions"
            ) from None
        if scores.shape != view.positions.shape or scores.dtype.kind not in "biuf":
            raise PolicyError(
                f"{type(self).__name__}: expected a number for each row, an array of "
                f"{[*view.positions.shape]}, found {scores.dtype} of {[*scores.shape]}; return an "
                "array shaped like view.positions"
            )
        # The lowest of numbers with NaN among them is NaN.
        if scores.size and np.isnan(scores.min()) and not np.isnan(view.attention).any():
            raise PolicyError(
                f"{type(self).__name__}: expected a number for each row, found NaN among them; "
                "give such rows -inf"
            )
        return highest(scores, view.positions, count)


@dataclass(frozen=True, slots=True)
class Attention(Ranking):
    """The most attention first."""

    def scores(self, view: View, count: int) -> Scores:
        return view.attention


@dataclass(frozen=True, slots=True)
class AtRandom(Ranking):
    """A permutation that only the seed, the layer and the step decide."""

    seed: int

    reads_attention: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: the seed is no whole number of at least 0.
        """
        check_count("AtRandom", "seed", self.seed, 0, "it names a permutation")

    def scores(self, view: View, count: int) -> Scores:
        *layers, alive = view.positions.shape
        rows = view.positions.reshape(math.prod(layers), alive)
        ranks = np.empty(rows.shape, np.float64)
        for index, positions in enumerate(rows):
            seeds = [self.seed, view.layer + index]
            if view.step is not None:
                seeds.append(view.step)
            drawn = np.random.default_rng(seeds).permutation(len(positions))
            # What is drawn are places in the order of positions, whatever the order of rows.
            ranks[index, positions.argsort()[drawn]] = -np.arange(len(positions))
        return ranks.reshape(view.positions.shape)


@dataclass(frozen=True, slots=True)
class HeavyHitters(Ranking):
    """The most recent rows first, then those with the most attention (H2O, arXiv 2306.14048).

    Of the rows that are kept, the fraction `heavy` (rounded down) is for the latter.
    """

    heavy: float

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: it is no number in [0, 1].
        """
        check_heavy("HeavyHitters", self.heavy)

    def recent(self, count: int) -> int:
        """How many of the `count` rows that are kept are so for being recent."""
        return count - int(count * self.heavy)

    def scores(self, view: View, count: int) -> Scores:
        recent = self.recent(count)
        value = view.attention.astype(np.float64)
        oldest = view.positions.shape[-1] - recent
        if recent and oldest > 0:
            bounds = np.partition(view.positions, oldest)[..., oldest, None]
            value[view.positions >= bounds] = np.inf
        return value


ATTENTION = Attention()


def check_ranking(action: str, ranking: object) -> None:
    """Refuse anything but a ranking."""
    if not isinstance(ranking, Ranking):
        raise PolicyError(
            f"{action}: expected a ranking, found {quoted(ranking)}; pass ATTENTION, AtRandom(0) "
            "or one of your own, made"
        )


def highest(scores: Scores, positions: Indices, count: int) -> Mask:
    """Which `count` along the last axis score highest; of equal scores the lowest positions do.

    `scores` and `positions` are [..., n], in any order of positions.
    """
    rows = scores.shape[-1]
    surplus = rows - count
    if surplus <= 0:
        return np.ones(scores.shape, np.bool_)
    if scores.size and np.isnan(scores.min()):
        scores = np.where(np.isnan(scores), np.inf, scores)
    # One selection of plain numbers is far cheaper than any by two keys; only equal ones need that.
    bound = np.partition(scores, surplus - 1)[..., surplus - 1, None]
    keep: Mask = scores > bound
    missing = (count - keep.sum(-1)).reshape(-1)
    for line in missing.nonzero()[0].tolist():
        equal = (scores == bound).reshape(-1, rows)[line].nonzero()[0]
        order = positions.reshape(-1, rows)[line, equal].argsort()
        keep.reshape(-1, rows)[line, equal[order[: missing[line]]]] = True
    return keep
