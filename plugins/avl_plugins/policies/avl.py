"""A-VL: adaptive attention by modality (arXiv 2409.14846, AAAI 2025).

Image tokens are split per layer into core, secondary and minor; text after the image is kept local
as in H2O (arXiv 2306.14048); an optional filter during prefill works as in FastV
(arXiv 2403.06764).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.errors import PolicyError
from avl_plugins.policies.action import Action
from avl_plugins.policies.base import Policy
from avl_plugins.policies.checks import check_count, check_fraction, check_heavy, core_of
from avl_plugins.policies.prune import Prune
from avl_plugins.policies.split import Divide, Refresh
from avl_plugins.policies.text import TextBudget


@dataclass(frozen=True, slots=True)
class AVL(Policy):
    """Keep `keep` of the image tokens, read `core` of them, re-rank every `refresh` steps.

    `core` is 0.3 unless given, or `keep` where that is less.

    `text` is the fraction of evictable text kept, at least `text_min` tokens, `heavy` of them by
    accumulated attention; 1 evicts none. `prefill` below 1 drops image tokens for all layers from
    `prefill_layer` on, during prefill.
    """

    keep: float = 0.5
    core: float | None = None
    refresh: int = 3
    text: float = 1.0
    text_min: int = 20
    heavy: float = 0.7
    prefill: float = 1.0
    prefill_layer: int = 2

    name: ClassVar[str] = "avl"

    def __post_init__(self) -> None:
        for option in ("keep", "text", "prefill"):
            check_fraction(self.name, option, getattr(self, option))
        core_of(self.name, self.core, self.keep)
        check_count(self.name, "refresh", self.refresh, 1, "1 refreshes on every step")
        check_count(self.name, "text_min", self.text_min, 1, "the newest token must stay")
        check_count(
            self.name, "prefill_layer", self.prefill_layer, 1, "ranking needs one layer's attention"
        )
        check_heavy(self.name, self.heavy)
        if self.prefill < self.keep:
            raise PolicyError(
                f"avl: expected prefill of at least keep = {self.keep}, found {self.prefill}; "
                "A-VL cannot keep more tokens than prefill leaves"
            )

    def actions(self) -> tuple[Action, ...]:
        core = core_of(self.name, self.core, self.keep)
        found: list[Action] = [Divide(self.keep, core), Refresh(core, self.refresh)]
        if self.prefill < 1:
            found.insert(0, Prune(self.prefill_layer, self.prefill))
        if self.text < 1:
            found.append(TextBudget(self.text, self.text_min, self.heavy))
        return tuple(found)
