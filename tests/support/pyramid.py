"""A policy under which no two layers hold as many rows, as somebody else would write one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies import Action, Divide, Policy, Refresh, TextBudget, View
from avl_plugins.policies.view import Fates, fates


def kept(layer: int) -> float:
    """The share of image tokens that a layer keeps."""
    return 0.9 - 0.1 * layer


def texts(layer: int) -> int:
    """How many of the newest text tokens behind an image a layer keeps."""
    return 9 - layer


def by_layer(view: View) -> Iterator[tuple[int, View]]:
    for index in range(len(view.positions)):
        rows, attention = view.positions[index : index + 1], view.attention[index : index + 1]
        layer = view.layer + index
        yield layer, View(rows, attention, layer, view.step, view.total)


@dataclass(frozen=True, slots=True)
class DivideByDepth(Divide):
    """`keep` goes by the layer; `core` too, as a share of that, unless it is `fixed`."""

    keep: float = 0.9
    core: float = 0.5
    fixed: bool = False

    def choose(self, view: View) -> Fates:
        found = []
        for layer, one in by_layer(view):
            core = self.core if self.fixed else self.core * kept(layer)
            found.append(Divide(kept(layer), core).choose(one)[0])
        return np.stack(found)


@dataclass(frozen=True, slots=True)
class RefreshByDepth(Refresh):
    core: float = 0.45
    every: int = 2

    def choose(self, view: View) -> Fates:
        found = [Refresh(kept(layer) / 2, 2).choose(one)[0] for layer, one in by_layer(view)]
        return np.stack(found)


@dataclass(frozen=True, slots=True)
class TextByDepth(TextBudget):
    ratio: float = 0.5
    minimum: int = 1
    heavy: float = 0

    def limit(self, total: int) -> int | None:
        return None

    def choose(self, view: View) -> Fates:
        ranks = view.positions.argsort(-1).argsort(-1)
        most = np.array([texts(view.layer + index) for index in range(len(ranks))])
        return fates(ranks >= ranks.shape[-1] - most[:, None, None])


@dataclass(frozen=True)
class Pyramid(Policy):
    """Fewer rows the deeper the layer.

    `fixed` cores are of one size in all layers, as a kernel's refresh takes for granted.
    """

    fixed: bool = False
    text: bool = False
    name: ClassVar[str] = "pyramid"

    def actions(self) -> tuple[Action, ...]:
        refresh = Refresh(0.2, 2) if self.fixed else RefreshByDepth()
        divide = DivideByDepth(core=0.2, fixed=True) if self.fixed else DivideByDepth()
        return (divide, refresh, TextByDepth()) if self.text else (divide, refresh)


@dataclass(frozen=True)
class Stairs(Policy):
    """Fewer image rows the deeper the layer, all of them core, and text as under A-VL."""

    name: ClassVar[str] = "stairs"

    def actions(self) -> tuple[Action, ...]:
        return (DivideByDepth(keep=1, core=1), TextBudget(0.5, 4, 0.5))
