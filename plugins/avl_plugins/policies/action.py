"""Actions: what a policy consists of. Each decides one thing, at one kind of moment."""

from __future__ import annotations

import abc
import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.checks import check_count
from avl_plugins.policies.ranking import Ranking
from avl_plugins.policies.view import Fates, Indices, Mask, Scores, View

# 0.3 * 10 is 3 and 0.29 * 100 is 28.999...: a fraction that means a whole number must give it.
_ROUNDING = 1e-9
MOST_WEIGHT = 1000.0  # tokens that an image token counts as at most, and so the share at least


class When(enum.IntEnum):
    """When an action decides, in the order of time."""

    EMBEDDED = 0  # before the first layer, about each picture: what is dropped no layer sees
    BETWEEN = 1  # two layers of a prompt, about hidden states: what is dropped no later layer sees
    PROMPT = 2  # when a layer has read a prompt, about its cached rows
    STEP = 3  # when a layer has done a decode step, about its cached rows


class Tokens(enum.Enum):
    """Which rows an action chooses among."""

    IMAGE = "image"  # of the whole conversation
    TEXT = "text"  # behind the first image token, for each KV head
    ANY = "any"  # of the whole conversation, text too, for each KV head


@dataclass(frozen=True, slots=True)
class Placed:
    """How many image rows of a layer are active, and how many parked."""

    active: int
    parked: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: one is no whole number of at least 0.
        """
        for name in ("active", "parked"):
            check_count("Placed", name, getattr(self, name), 0, "it counts rows")


class Action(abc.ABC):
    """A decision about rows, of one conversation and of all layers it is about.

    Subclasses are frozen dataclasses.

    Attributes:
        when: the moments at which it decides.
        tokens: the rows it chooses among.
        reads_parked: whether a decode step in which it is due reads parked rows too.
        moves: whether rows may change places where it is due; else it is not asked.
        rates: whether it is `raters` whose attention it ranks by, where it decides BETWEEN.
        weighs: whether a decode step in which it is due may be computed again, image tokens
            counting for more or less: by `weight`.
        evens: whether image tokens always count for more or less in rows behind them: by `evened`.
    """

    __slots__ = ()

    when: ClassVar[frozenset[When]]
    tokens: ClassVar[Tokens] = Tokens.IMAGE
    reads_parked: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    rates: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    evens: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def ranking(self) -> Ranking:
        """The order in which rows are kept; what a kernel that acts by itself must declare."""

    @property
    @abc.abstractmethod
    def decides(self) -> str:
        """What it decides, in words: of two policies in a chain only one may decide it."""

    @abc.abstractmethod
    def choose(self, view: View) -> Fates:
        """What becomes of the rows of `view`: int8, shaped like its positions."""

    @property
    def reads_question(self) -> bool:
        """Whether it depends on the text that the user said last (`Picture.question`)."""
        return False

    @property
    def reads_vision(self) -> bool:
        """Whether it depends on attention in the vision encoder (`Picture.attention`)."""
        return False

    @property
    def merges(self) -> bool:
        """Whether ANY rows that it drops go into rows that stay: by `merging`."""
        return False

    @property
    def closes_up(self) -> bool:
        """Whether RoPE positions close up where it drops tokens EMBEDDED; else they stay."""
        return False

    @property
    def restores(self) -> bool:
        """Whether attention is biased for tokens that it drops EMBEDDED (RESTORE)."""
        return False

    def choose_layers(self, views: Sequence[View]) -> list[Fates]:
        """What becomes of ANY rows, when all layers have read a prompt: one view for each of them.

        The KV heads of a layer keep as many rows as one another; none is parked.
        """
        return [self.choose(view) for view in views]

    def probes(self, positions: Indices, image: Mask) -> Indices:
        """Of which rows of a prompt the attention is wanted, where it chooses among ANY.

        Args:
            positions: [n] of the prompt's rows, ascending.
            image: [n], which of them are image tokens.

        Returns:
            Some of the positions, ascending.
        """
        return positions[:0]

    def raters(self, positions: Indices, image: Mask, embeddings: Scores) -> Indices:
        """Of which rows of a prompt the mean attention ranks, where it `rates`.

        Args:
            positions: [n] of the prompt's rows, ascending.
            image: [n], which of them are image tokens.
            embeddings: [n, C], what the first layer reads of them.

        Returns:
            Some of the positions, ascending, at least one. Those of them count that have gone on so
            far; the last row, where none has.
        """
        return positions[-1:]

    def weight(self, confidence: float) -> float:
        """How many tokens each image token counts as in attention, where it `weighs`.

        Args:
            confidence: the probability of the likeliest token, after the step as it is.

        Returns:
            From 1 / MOST_WEIGHT to MOST_WEIGHT; 1: the step is as it should be, and is not
            computed again.
        """
        return 1.0

    def evened(self, attention: Scores, layer: int) -> Scores | None:
        """How many tokens each of a picture's n tokens counts as in a layer, where it `evens`.

        Args:
            attention: [r, Hkv, n], above 0, what the last r rows of a prompt with a white picture
                of that size give its tokens, the last row's first; of a KV head the mean of its
                query heads.

        Returns:
            [Hkv, n], from 1 / MOST_WEIGHT to MOST_WEIGHT; None: as one each.
        """
        return None

    def merged(self, view: View) -> tuple[Fates, Indices | None]:
        """What `choose` says, and which rows that stay become means, where it decides EMBEDDED.

        Returns:
            Fates, and [n], for each token the one that stays into whose row it is averaged, -1:
            none; None: all rows are as they were.
        """
        return self.choose(view), None

    def merging(self, view: View, chosen: Fates) -> tuple[Indices, Scores]:
        """Which ANY rows become sums of rows before others are dropped, where it `merges`.

        Args:
            view: a layer's rows, with `keys`.
            chosen: what `choose_layers` has said of them.

        Returns:
            [1, Hkv, n] int64, for each row the row of its KV head into which it goes, by its place
            along the last axis of `view`: a row that is dropped into one that stays, one that stays
            into itself; -1: into none, and a row that stays as it was. And [1, Hkv, n], how many
            times: keys and values of a row into which rows go become the sums of so many times
            theirs.
        """
        return np.full(chosen.shape, -1), np.ones(chosen.shape)

    @property
    def at_medians(self) -> bool:
        """Whether a row that becomes a mean moves to its tokens' median RoPE position.

        On each axis of positions; of two in the middle it is the lower one.
        """
        return False

    def given(self, places: Indices, moving: bool) -> int:
        """How many tokens of a picture or a video go on, where it decides EMBEDDED.

        Args:
            places, moving: as in `Picture`.
        """
        return len(places[0])

    def due(self, step: int) -> bool:
        """Whether it decides after decode step `step`, counted from 1."""
        return When.STEP in self.when

    def limit(self, total: int) -> int | None:
        """How many rows stay of `total` tokens, if no more than that are alive; None: ask."""
        return None

    @property
    def share(self) -> float:
        """The fraction of all image tokens that it leaves; 1 if it is not about them."""
        return 1.0

    @property
    def wants(self) -> float:
        """The fraction of all image tokens that it chooses; 1 takes whatever is left."""
        return self.share

    @property
    def before(self) -> int | None:
        """The layer before which it decides, if that is BETWEEN two layers."""
        return None

    def check(self, splits: Sequence[int], where: str) -> None:
        """Refuse a package that it cannot work with.

        Args:
            splits: layers after which the package's decoder is split.
            where: the policy, for the message.

        Raises:
            PolicyError: it cannot.
        """
        return

    def placed(self, rows: Placed, layer: int, total: int) -> Placed:
        """What a prompt leaves of `rows` image rows of `layer`; `total` as in `View`."""
        return rows

    def text_rows(self, total: int) -> int:
        """How many of `total` text tokens behind the first image token have a row."""
        return total

    def rows_left(self, rows: Sequence[int], total: int) -> list[int]:
        """How many rows a prompt leaves of each layer's `rows`, where it chooses among ANY.

        At most: some can be known by attention alone.

        Args:
            total: tokens that the decoder was given.
        """
        return list(rows)


def share_of(fraction: float, total: int) -> int:
    """A fraction of `total` tokens, rounded down, and at least one."""
    return max(1, math.floor(fraction * total + _ROUNDING))
