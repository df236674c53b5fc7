"""The control: the budget of another policy, spent blindly.

That is FastV's (arXiv 2403.06764), A-VL's (arXiv 2409.14846), or that of what chooses before the
decoder or in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import Action, share_of
from avl_plugins.policies.base import Policy
from avl_plugins.policies.cached.retain import Keeper, Retain, last_rows
from avl_plugins.policies.checks import check_count, check_fraction, core_of
from avl_plugins.policies.embedded.select import Picker, Select
from avl_plugins.policies.prune import Prune
from avl_plugins.policies.ranking import AtRandom
from avl_plugins.policies.split import Divide, Refresh
from avl_plugins.policies.view import Indices, Mask, Picture, Scores, View

WINDOW = 32  # last rows of a prompt that stay, as SnapKV has them


@dataclass(frozen=True, slots=True)
class Blindly(Picker):
    """Tokens that only the seed and the picture's number in the conversation decide."""

    seed: int

    def pick(self, picture: Picture, count: int) -> Indices:
        drawn = np.random.default_rng([self.seed, picture.number])
        return drawn.permutation(len(picture.features))[:count]


@dataclass(frozen=True, slots=True)
class BlindRows(Keeper):
    """The last rows of a prompt, and others that the seed and the layer alone decide."""

    keep: float
    seed: int

    def probes(self, positions: Indices, image: Mask) -> Indices:
        return last_rows(positions, image, WINDOW)

    def counts(self, rows: Sequence[int], total: int) -> list[int]:
        return [min(one, share_of(self.keep, total)) for one in rows]

    def scores(self, view: View, count: int) -> Scores:
        generator = np.random.default_rng([self.seed, view.layer])
        drawn = generator.permutation(view.positions.shape[-1]).astype(np.float64)
        first = view.probes[0] if len(view.probes) else np.inf  # all were dropped before the layer
        return np.where(view.positions >= first, np.inf, drawn)


@dataclass(frozen=True, slots=True)
class Random(Policy):
    """FastV (`of="fastv"`) or A-VL's split (`of="avl"`) with random ranking.

    `of="embedded"` chooses before the decoder, `of="cached"` among all rows that a prompt has left,
    the same for all KV heads. `layer` is used by the first only, `core` and
    `refresh` by the second only; `tokens` stands in the place of `keep`, by the last only.
    """

    keep: float = 0.5
    layer: int = 2
    core: float | None = None
    refresh: int = 3
    seed: int = 0
    of: str = "fastv"
    tokens: int | None = None

    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        if self.of not in ("fastv", "avl", "embedded", "cached"):
            raise PolicyError(
                f"random: expected of = fastv, avl, embedded or cached, found {quoted(self.of)}; "
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
        if self.of == "cached":
            return (Retain(BlindRows(self.keep, self.seed)),)
        ranking = AtRandom(self.seed)
        if self.of == "fastv":
            return (Prune(self.layer, self.keep, ranking),)
        core = core_of(self.name, self.core, self.keep)
        return (Divide(self.keep, core, ranking), Refresh(core, self.refresh, ranking))
