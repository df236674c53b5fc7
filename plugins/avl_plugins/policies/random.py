"""The control: the budget of FastV (arXiv 2403.06764) or A-VL (arXiv 2409.14846), spent blindly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import Action
from avl_plugins.policies.base import Policy
from avl_plugins.policies.checks import check_count, check_fraction, core_of
from avl_plugins.policies.prune import Prune
from avl_plugins.policies.ranking import AtRandom
from avl_plugins.policies.split import Divide, Refresh


@dataclass(frozen=True, slots=True)
class Random(Policy):
    """FastV (`of="fastv"`) or A-VL's split (`of="avl"`) with random ranking.

    `layer` is used by the former only, `core` and `refresh` by the latter only.
    """

    keep: float = 0.5
    layer: int = 2
    core: float | None = None
    refresh: int = 3
    seed: int = 0
    of: Literal["fastv", "avl"] = "fastv"

    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        if self.of not in ("fastv", "avl"):
            raise PolicyError(
                f"random: expected of = fastv or avl, found {quoted(self.of)}; "
                "name the policy to be the control of"
            )
        check_fraction(self.name, "keep", self.keep)
        if self.core is not None:
            check_fraction(self.name, "core", self.core)
        check_count(self.name, "layer", self.layer, 1, "FastV drops after full layers")
        check_count(self.name, "refresh", self.refresh, 1, "1 refreshes on every step")
        check_count(self.name, "seed", self.seed, 0, "it seeds a random generator")
        if self.of == "avl":
            core_of(self.name, self.core, self.keep)

    def actions(self) -> tuple[Action, ...]:
        ranking = AtRandom(self.seed)
        if self.of == "fastv":
            return (Prune(self.layer, self.keep, ranking),)
        core = core_of(self.name, self.core, self.keep)
        return (Divide(self.keep, core, ranking), Refresh(core, self.refresh, ranking))
