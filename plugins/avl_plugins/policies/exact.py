"""Dense attention's tokens at about A-VL's speed: sparse steps draft, a dense pass checks.

A-VL (arXiv 2409.14846) reads all secondary rows at every refresh anyway. Here all image tokens are
secondary, and the pass that ranks the next core also says what dense attention would have said in
the place of each token drafted since the last one, as in speculative decoding (arXiv 2211.17192).
That the model drafts for itself by sparse attention is as in MagicDec (arXiv 2408.11049).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.errors import PolicyError
from avl_plugins.policies.action import Action
from avl_plugins.policies.base import Policy
from avl_plugins.policies.checks import check_count, check_fraction
from avl_plugins.policies.drafting import MOST_ROWS, Drafting
from avl_plugins.policies.split import Divide, Refresh


@dataclass(frozen=True, slots=True)
class Exact(Policy):
    """Draft by `core` of the image tokens, and check up to `n` tokens in one pass over all rows.

    Without `n` a request drafts as many as what was accepted so far makes worth it.
    """

    core: float = 0.2
    n: int | None = None

    name: ClassVar[str] = "avl:exact"

    def __post_init__(self) -> None:
        check_fraction(self.name, "core", self.core)
        if self.n is not None:
            check_count(self.name, "n", self.n, 1, "a pass gives one token at least")
            if self.n > MOST_ROWS:
                raise PolicyError(
                    f"{self.name}: expected n of at most {MOST_ROWS}, found {self.n}; lower it"
                )

    def actions(self) -> tuple[Action, ...]:
        return Divide(1.0, self.core), Refresh(self.core, 1)

    def drafting(self) -> Drafting:
        return Drafting(MOST_ROWS - 1 if self.n is None else self.n - 1, self.n is None)
