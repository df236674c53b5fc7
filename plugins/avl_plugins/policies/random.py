"""The control: the budget of another policy, spent blindly.

That is FastV's (arXiv 2403.06764), A-VL's (arXiv 2409.14846) or what chooses before the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import Action
from avl_plugins.policies.base import Policy
from avl_plugins.policies.checks import check_count, check_fraction, core_of
from avl_plugins.policies.embedded.select import Picker, Select
from avl_plugins.policies.prune import Prune
from avl_plugins.policies.ranking import AtRandom
from avl_plugins.policies.split import Divide, Refresh
from avl_plugins.policies.view import Indices, Picture


@dataclass(frozen=True, slots=True)
class Blindly(Picker):
    """Tokens that only the seed and the picture's number in the conversation decide."""

    seed: int

    def pick(self, picture: Picture, count: int) -> Indices:
        drawn = np.random.default_rng([self.seed, picture.number])
        return drawn.permutation(len(picture.features))[:count]


@dataclass(frozen=True, slots=True)
class Random(Policy):
    """FastV (`of="fastv"`) or A-VL's split (`of="avl"`) with random ranking.

    `of="embedded"` chooses before the decoder. `layer` is used by the first only, `core` and
    `refresh` by the second only; `tokens` stands in the place of `keep`, by the last only.
    """

    keep: float = 0.5
    layer: int = 2
    core: float | None = None
    refresh: int = 3
    seed: int = 0
    of: Literal["fastv", "avl", "embedded"] = "fastv"
    tokens: int | None = None

    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        if self.of not in ("fastv", "avl", "embedded"):
            raise PolicyError(
                f"random: expected of = fastv, avl or embedded, found {quoted(self.of)}; "
                "name what it shall be the control of"
            )
        check_fraction(self.name, "keep", self.keep)
        if self.core is not None:
            check_fraction(self.name, "core", self.core)
        check_count(self.name, "layer", self.layer, 1, "FastV drops after full layers")
        check_count(self.name, "refresh", self.refresh, 1, "1 refreshes on every step")
        check_count(self.name, "seed", self.seed, 0, "it seeds a random generator")
        if self.tokens is not None:
            check_count(self.name, "tokens", self.tokens, 1, "it counts a picture's tokens")
            if self.of != "embedded" or self.keep != 0.5:
                raise PolicyError(
                    "random: expected tokens with of=embedded and without keep, found "
                    f"of={self.of} and keep={self.keep}; leave one out"
                )
        if self.of == "avl":
            core_of(self.name, self.core, self.keep)

    def actions(self) -> tuple[Action, ...]:
        if self.of == "embedded":
            return (Select(Blindly(self.seed), self.keep, self.tokens),)
        ranking = AtRandom(self.seed)
        if self.of == "fastv":
            return (Prune(self.layer, self.keep, ranking),)
        core = core_of(self.name, self.core, self.keep)
        return (Divide(self.keep, core, ranking), Refresh(core, self.refresh, ranking))
