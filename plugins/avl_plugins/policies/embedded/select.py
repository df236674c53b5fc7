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
from avl_plugins.policies.ranking import ATTENTION, Ranking
from avl_plugins.policies.view import DROPPED, Fates, Indices, Picture, View, fates

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

    def budget(self, places: Indices, moving: bool, count: int) -> int:
        """How many tokens stay of those at `places` [3, n], where `count` may."""
        return count


@dataclass(frozen=True, slots=True)
class Select(Action):
    """Of every picture and video the decoder is given `most` tokens, or else the fraction `keep`.

    Line breaks of a tiled layout always stay, and count. Beside them at least one token stays.
    Whatever decides later takes what is left as all image tokens that there are. With `renumber`
    RoPE positions are closed up where tokens are gone; with `restore` they stay, and attention is
    biased as RESTORE does (arXiv 2606.01711, ICML 2026).
    """

    picker: Picker
    keep: float = USUAL_SHARE
    most: int | None = None
    renumber: bool = False
    restore: bool = False

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
        picture = _picture(view)
        stays = picture.places[0] < 0
        shown = np.flatnonzero(~stays)
        fixed = len(stays) - len(shown)
        count = self.given(picture.places, picture.moving) - fixed
        if count < len(shown):
            of = picture.at(shown) if fixed else picture
            shown = shown[self._picked(of, count)]
        stays[shown] = True
        return fates(stays)

    def groups(self, view: View, chosen: Fates) -> Indices | None:
        picture = _picture(view)
        shown = np.flatnonzero(picture.places[0] >= 0)
        picked = np.flatnonzero(chosen[shown] != DROPPED)
        if len(picked) == len(shown):
            return None
        found = self.picker.groups(picture.at(shown), picked)
        if found is None:
            return None
        groups = np.arange(len(chosen))
        groups[shown] = np.where(found < 0, -1, shown[found])
        return groups

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
    or they close up: `positions="renumber"`.
    """

    keep: float | None = None
    tokens: int | None = None
    positions: str = "keep"

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

    def actions(self) -> tuple[Action, ...]:
        share = USUAL_SHARE if self.keep is None else self.keep
        closes_up, restores = self.positions == "renumber", self.positions == "restore"
        return (Select(self, share, self.tokens, closes_up, restores),)
