"""Choosing image tokens before the decoder: what is not chosen, no layer ever sees."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import Action, When
from avl_plugins.policies.agreement import check_frozen
from avl_plugins.policies.base import Policy
from avl_plugins.policies.checks import check_count, check_fraction
from avl_plugins.policies.embedded.merging import joined
from avl_plugins.policies.ranking import ATTENTION, Ranking
from avl_plugins.policies.view import Fates, Indices, Picture, View, fates

USUAL_SHARE = 0.25  # of a picture's tokens, unless a policy is told another


class Picker(abc.ABC):
    """How tokens of one picture are chosen. A value: subclasses are frozen dataclasses.

    Attributes:
        asks: whether the choice depends on what is asked. A conversation is then read anew in every
            turn.
        looks: whether it reads `Picture.attention`, and so takes packages that tell it.
    """

    __slots__ = ()

    asks: ClassVar[bool] = False
    looks: ClassVar[bool] = False

    @abc.abstractmethod
    def pick(self, picture: Picture, count: int) -> Indices:
        """The numbers of `count` of a picture's n tokens, 0 < `count` < n, each once.

        All of the tokens show a place: line breaks are not among them.
        """

    def groups(self, picture: Picture, picked: Indices) -> Indices | None:
        """[n]: the picked token into whose row each is averaged, -1: none; None: rows stay."""
        return None

    @property
    def merges(self) -> bool:
        """Whether `groups` says that rows become means."""
        return type(self).groups is not Picker.groups

    def budget(self, places: Indices, moving: bool, count: int) -> int:
        """How many tokens stay of those at `places` [3, n], where `count` may."""
        return count


@dataclass(frozen=True, slots=True)
class Select(Action):
    """Of every picture and video the decoder is given `most` tokens, or else the fraction `keep`.

    Line breaks of a tiled layout always stay, and count. Beside them at least one token stays.
    Whatever decides later takes what is left as all image tokens that there are. With `renumber`
    RoPE positions are closed up where tokens are gone; with `restore` they stay, and attention is
    biased as RESTORE does (arXiv 2606.01711, ICML 2026). The picker picks the fraction `gamma` of
    what stays; into the others all that it leaves is averaged, as in RESTORE's merging.
    """

    picker: Picker
    keep: float = USUAL_SHARE
    most: int | None = None
    renumber: bool = False
    restore: bool = False
    gamma: float = 1.0

    when: ClassVar[frozenset[When]] = frozenset({When.EMBEDDED})

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: a value is out of range, or that is no picker.
        """
        check_fraction("Select", "keep", self.keep)
        if self.most is not None:
            check_count("Select", "most", self.most, 1, "it counts a picture's tokens")
        if not isinstance(self.picker, Picker):
            raise PolicyError(
                f"Select: expected a picker, found {quoted(self.picker)}; derive one from Picker"
            )
        check_frozen(type(self.picker))
        _check_gamma("Select", self.gamma, self.picker)
        if self.renumber and self.restore:
            raise PolicyError(
                "Select: expected renumber or restore, found both, and RESTORE's bias goes by the "
                "positions that tokens had; leave one out"
            )

    @property
    def ranking(self) -> Ranking:
        return ATTENTION  # nobody asks for it: there is no attention yet

    @property
    def decides(self) -> str:
        return "which image tokens the decoder is given"

    @property
    def reads_question(self) -> bool:
        return self.picker.asks

    @property
    def reads_vision(self) -> bool:
        return self.picker.looks

    @property
    def closes_up(self) -> bool:
        return self.renumber

    @property
    def restores(self) -> bool:
        return self.restore

    @property
    def at_medians(self) -> bool:
        return self.gamma < 1 and not self.renumber  # else positions go by the order alone

    def given(self, places: Indices, moving: bool) -> int:
        shown = places[:, places[0] >= 0]
        tokens, most = len(places[0]), len(shown[0])
        if not most:
            return tokens
        fixed = tokens - most
        wanted = self.most or round(self.keep * tokens)
        count = min(most, max(1, wanted - fixed))
        return fixed + self.picker.budget(shown, moving, count)

    def choose(self, view: View) -> Fates:
        return self.merged(view)[0]

    def merged(self, view: View) -> tuple[Fates, Indices | None]:
        picture = _picture(view)
        stays = picture.places[0] < 0
        shown = np.flatnonzero(~stays)
        fixed = len(stays) - len(shown)
        count = self.given(picture.places, picture.moving) - fixed
        if count >= len(shown):
            return fates(np.ones_like(stays)), None
        of = picture.at(shown) if fixed else picture
        picked = self._picked(of, self._by_picker(of, count))
        into = None
        if len(picked) < count:
            picked, into = joined(of.features, picked, count)
        elif self.picker.merges:
            into = self.picker.groups(of, picked)
        stays[shown[picked]] = True
        if into is None:
            return fates(stays), None
        groups = np.arange(len(stays))
        groups[shown] = np.where(into < 0, -1, shown[into])
        return fates(stays), groups

    def _by_picker(self, picture: Picture, count: int) -> int:
        """How many of the `count` tokens that stay are the picker's to choose."""
        if self.gamma == 1:
            return count
        wanted = max(1, round(self.gamma * count))
        return min(count, self.picker.budget(picture.places, picture.moving, wanted))

    def _picked(self, picture: Picture, count: int) -> Indices:
        """What the picker, which somebody else may have written, picks.

        Raises:
            PolicyError: that are not `count` of the picture's tokens.
        """
        given, tokens = self.picker.pick(picture, count), picture.places.shape[1]
        picked = np.unique(given) if isinstance(given, np.ndarray) and given.ndim == 1 else None
        if (
            picked is None
            or picked.dtype.kind != "i"
            or not len(picked) == len(given) == count
            or not 0 <= picked[0] <= picked[-1] < tokens
        ):
            raise PolicyError(
                f"{type(self.picker).__name__}: expected the numbers of {count} of {tokens} tokens "
                f"from pick(), an array, each once, found {quoted(given)}; mend it"
            )
        return picked.astype(np.int64)


def _picture(view: View) -> Picture:
    if view.picture is None:
        raise RuntimeError("expected a view of a picture, as there is before the first layer")
    return view.picture


@dataclass(frozen=True, slots=True)
class Selecting(Policy, Picker):
    """A policy that chooses image tokens before the decoder, and nothing else.

    Of every picture and video stay `tokens`, or the fraction `keep`: 0.25 without either. They keep
    their RoPE positions, and with `positions="restore"` attention is biased where tokens are gone;
    or they close up: `positions="renumber"`. With `gamma` below 1 so many of them are chosen, and
    into the others all the rest is averaged.
    """

    keep: float | None = None
    tokens: int | None = None
    positions: str = "keep"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: a value is out of range, or both are given.
        """
        if self.keep is not None:
            check_fraction(self.name, "keep", self.keep)
        if self.tokens is not None:
            check_count(self.name, "tokens", self.tokens, 1, "it counts a picture's tokens")
            if self.keep is not None:
                raise PolicyError(
                    f"{self.name}: expected keep or tokens, found both, keep={self.keep} and "
                    f"tokens={self.tokens}; leave one out"
                )
        if self.positions not in ("keep", "renumber", "restore"):
            raise PolicyError(
                f"{self.name}: expected positions = keep, renumber or restore, found "
                f"{quoted(self.positions)}; choose one"
            )
        _check_gamma(self.name, self.gamma, self)

    def actions(self) -> tuple[Action, ...]:
        share = USUAL_SHARE if self.keep is None else self.keep
        closes_up, restores = self.positions == "renumber", self.positions == "restore"
        return (Select(self, share, self.tokens, closes_up, restores, self.gamma),)


def _check_gamma(where: str, gamma: object, picker: Picker) -> None:
    """Refuse what is no fraction, and merging what a picker has already merged.

    Raises:
        PolicyError: it is such.
    """
    check_fraction(where, "gamma", gamma)
    if gamma != 1 and picker.merges:
        raise PolicyError(
            f"{where}: expected gamma=1, as it averages what it leaves by itself, found "
            f"gamma={gamma}; leave gamma out, or take a method that averages nothing"
        )
