"""A policy of avl_plugins in the oracle's words: its parameters, none of its code.

Only random rankings are taken from the policy itself, as they cannot be derived.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from avl_plugins.policies import AVL, Chain, Dense, FastV, Plan, Policy, Random
from oracle.hf_oracle import ByAttention, PruneRule, Rules, SplitRule, TextRule


def rules_of(policy: Policy) -> Rules:
    if isinstance(policy, Dense):
        return Rules()
    if isinstance(policy, FastV):
        return Rules(prune=PruneRule(policy.layer, policy.keep))
    if isinstance(policy, AVL):
        return Rules(
            prune=PruneRule(policy.prefill_layer, policy.prefill) if policy.prefill < 1 else None,
            split=SplitRule(policy.keep, policy.core, policy.refresh),
            text=TextRule(policy.text, policy.text_min, policy.heavy) if policy.text < 1 else None,
        )
    if isinstance(policy, Random):
        if policy.of == "fastv":
            return Rules(prune=PruneRule(policy.layer, policy.keep))
        return Rules(split=SplitRule(policy.keep, policy.core, policy.refresh))
    if isinstance(policy, Chain):
        first, second = rules_of(policy.first), rules_of(policy.second)
        return Rules(
            prune=first.prune or second.prune,
            split=first.split or second.split,
            text=first.text or second.text,
        )
    raise TypeError(f"no rules for {policy!r}")


def ranking_of(policy: Policy) -> ByAttention:
    parts = (policy.first, policy.second) if isinstance(policy, Chain) else (policy,)
    if any(isinstance(part, Random) for part in parts):
        return FromPlan(policy.plan())
    return ByAttention()


class FromPlan(ByAttention):
    """Asks the plan's own rankings, so that a random one is drawn the same way."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def prune(self, scores: Tensor, total: int, count: int) -> list[int]:
        assert self.plan.prune is not None
        chosen = self.plan.prune.select(scores.numpy(), total).tolist()
        assert len(chosen) == count
        return chosen

    def partition(
        self, scores: Tensor, total: int, secondary: int, core: int, layer: int
    ) -> tuple[list[int], list[int]]:
        assert self.plan.split is not None
        first, parked = self.plan.split.partition(scores.numpy(), total, layer)
        assert (len(first), len(parked)) == (core, secondary - core)
        return first.tolist(), parked.tolist()

    def refresh(self, scores: Tensor, total: int, count: int, layer: int, step: int) -> list[int]:
        assert self.plan.split is not None
        places = np.arange(len(scores))[None]
        (core,) = self.plan.split.new_core(scores.numpy()[None], places, total, layer, step)
        chosen = np.flatnonzero(core).tolist()
        assert len(chosen) == count
        return chosen
