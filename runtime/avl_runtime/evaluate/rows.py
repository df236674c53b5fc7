"""Cached rows in fewer bits beside rows as computed, on the same questions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from avl_plugins.policies import parse
from avl_runtime.evaluate.cases import Case
from avl_runtime.evaluate.measure import MAX_NEW_TOKENS, divergences, forced_logits
from avl_runtime.model import LVLM
from avl_runtime.package.manifest import CheckedRows

# What is harmless: bounds of a metric's mean score, and of the divergence in nats a token.
SCORE, DIVERGENCE = 0.002, 1e-3


@dataclass(slots=True)
class Compared:
    """Greedy replies with rows of both kinds; of two, the first are rows as computed.

    Attributes:
        scores: by task, of each case, a pair.
        divergence: KL(as computed || other) in nats of each token of the replies that rows as
            computed give.
        same: of each case, whether the replies are the same, token for token.
        size: bytes of the caches.
    """

    policy: str
    scores: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    divergence: list[float] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)

    def means(self) -> dict[str, tuple[float, float]]:
        """Mean scores of both by task."""
        found = {task: np.mean(pairs, axis=0) for task, pairs in self.scores.items()}
        return {task: (float(one), float(other)) for task, (one, other) in found.items()}

    def checked(self) -> CheckedRows:
        """What a package keeps of this."""
        return CheckedRows(
            rows="int8",
            policy=self.policy,
            questions=len(self.same),
            tokens=len(self.divergence),
            apart=round(max(abs(one - other) for one, other in self.means().values()), 5),
            divergence=float(f"{np.mean(self.divergence):.3g}"),
        )


def harmless(found: CheckedRows) -> bool:
    """Whether scores and probabilities are the same but for noise."""
    return found.apart <= SCORE and found.divergence <= DIVERGENCE


def compare_rows(exact: LVLM, other: LVLM, policy: str, cases: Iterable[Case]) -> Compared:
    """Ask both models the same, greedily, with the package's penalties and bans.

    Args:
        exact, other: of one package, with rows as computed and in fewer bits.

    Raises:
        AvlError: the policy or a picture cannot be used.
    """
    found = Compared(str(parse(policy)))
    for case in cases:
        one, two = (
            model.generate(
                case.prompt,
                case.images,
                policy=policy,
                max_new_tokens=MAX_NEW_TOKENS,
                temperature=0,
            )
            for model in (exact, other)
        )
        pair = case.score(one.text), case.score(two.text)
        found.scores.setdefault(case.task, []).append(pair)
        found.same.append(one.token_ids == two.token_ids)
        found.size = (found.size[0] + one.stats.kv_bytes, found.size[1] + two.stats.kv_bytes)
        prompt = exact.processor.encode(case.prompt, case.images)
        logits = [
            forced_logits(model.loaded, prompt, parse(policy), one.token_ids)
            for model in (exact, other)
        ]
        found.divergence += divergences(*logits).tolist()
    return found
