"""A policy of avl_plugins in the oracle's words: its parameters, none of its code.

Only random rankings are taken from the policy itself, as they cannot be derived.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from avl_plugins.policies import (
    ACTIVE,
    AVL,
    PARKED,
    Action,
    Chain,
    Dense,
    Divide,
    Exact,
    FastV,
    Policy,
    Prune,
    Random,
    Refresh,
    Selecting,
    View,
)
from oracle.hf_oracle import ByAttention, PruneRule, Rules, SplitRule, TextRule


def rules_of(policy: Policy, checked: frozenset[int] = frozenset()) -> Rules:
    """The rules of a policy.

    Args:
        checked: steps after which a policy that drafts has checked, all of whose drafts are right.
    """
    if isinstance(policy, Dense | Selecting):
        return Rules()  # of what a policy leaves that chooses before the decoder
    if isinstance(policy, Exact):
        return Rules(split=SplitRule(1.0, policy.core, 1, checked))
    if isinstance(policy, AVL):
        return Rules(
            prune=PruneRule(policy.prefill_layer, policy.prefill) if policy.prefill < 1 else None,
            split=SplitRule(policy.keep, _core(policy), policy.refresh),
            text=TextRule(policy.text, policy.text_min, policy.heavy) if policy.text < 1 else None,
        )
    if isinstance(policy, FastV) or (isinstance(policy, Random) and policy.of == "fastv"):
        return Rules(prune=PruneRule(policy.layer, policy.keep))
    if isinstance(policy, Random):
        return Rules(split=SplitRule(policy.keep, _core(policy), policy.refresh))
    if isinstance(policy, Chain):
        first, second = map(rules_of, policy.policies)
        return Rules(
            prune=first.prune or second.prune,
            split=first.split or second.split,
            text=first.text or second.text,
        )
    raise TypeError(f"no rules for {policy!r}")


def ranking_of(policy: Policy) -> ByAttention:
    parts = policy.policies if isinstance(policy, Chain) else (policy,)
    if any(isinstance(part, Random) for part in parts):
        return FromActions(policy.actions())
    return ByAttention()


def _core(policy: AVL | Random) -> float:
    """The core that is meant: 0.3 unless given, or all that is kept where that is less."""
    return min(0.3, policy.keep) if policy.core is None else policy.core


class FromActions(ByAttention):
    """Asks the actions' own rankings, so that a random one is drawn the same way."""

    def __init__(self, actions: tuple[Action, ...]) -> None:
        super().__init__()
        self.actions = {type(action): action for action in actions}

    def prune(self, scores: Tensor, total: int, count: int) -> list[int]:
        action = self.actions[Prune]
        seen = View(np.arange(len(scores)), scores.numpy(), action.before, None, total)
        chosen = np.flatnonzero(action.choose(seen) == ACTIVE).tolist()
        assert len(chosen) == count
        return chosen

    def partition(
        self, scores: Tensor, total: int, secondary: int, core: int, layer: int
    ) -> tuple[list[int], list[int]]:
        seen = View(np.arange(len(scores))[None], scores.numpy()[None], layer, 0, total)
        (fates,) = self.actions[Divide].choose(seen)
        first, parked = (np.flatnonzero(fates == kind).tolist() for kind in (ACTIVE, PARKED))
        assert (len(first), len(parked)) == (core, secondary - core)
        return first, parked

    def refresh(self, scores: Tensor, total: int, count: int, layer: int, step: int) -> list[int]:
        seen = View(np.arange(len(scores))[None], scores.numpy()[None], layer, step, total)
        (fates,) = self.actions[Refresh].choose(seen)
        chosen = np.flatnonzero(fates == ACTIVE).tolist()
        assert len(chosen) == count
        return chosen
