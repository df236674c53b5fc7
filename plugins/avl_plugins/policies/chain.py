"""Policies one after the other, as A-VL (arXiv 2409.14846) on what FastV (2403.06764) leaves."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import ClassVar

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import Action
from avl_plugins.policies.agreement import check_alone, check_class, check_raters, moment
from avl_plugins.policies.base import Policy
from avl_plugins.policies.drafting import Drafting
from avl_plugins.policies.options import check_options


@dataclass(frozen=True, slots=True, init=False)
class Chain(Policy):
    """The actions of several policies, in the order of time, which alone counts.

    `policies` are put in one order, what decides last in front, so that equal chains are equal.
    """

    policies: tuple[Policy, ...]

    name: ClassVar[str] = "chain"

    def __init__(self, *policies: Policy) -> None:
        """
        Raises:
            PolicyError: two decide the same, one decides nothing, or one keeps more than an
                earlier one leaves.
        """
        for one in policies:
            if not isinstance(one, Policy):
                raise PolicyError(
                    f"chain: expected policies, found {quoted(one)}; write Chain(FastV(), AVL())"
                )
            check_class(type(one))
            check_options(one)
        parts = [each for one in policies for each in _parts(one)]
        if not parts:
            raise PolicyError("chain: expected policies, found none; write Chain(FastV(), AVL())")
        text = "+".join(map(str, parts))
        for one in parts:
            if not one.actions():
                raise PolicyError(
                    f"{text}: expected policies that decide something, found {one} among them; "
                    "leave it out"
                )
        for one, other in combinations(parts, 2):
            both = {a.decides for a in one.actions()} & {a.decides for a in other.actions()}
            if both:
                raise PolicyError(
                    f"{text}: expected each decision once, found {one} and {other} both to say "
                    f"{min(both)}; use one of them"
                )
        parts.sort(key=lambda one: (-max(map(moment, one.actions()))[0], str(one)))
        object.__setattr__(self, "policies", tuple(parts))
        check_alone(self.actions(), str(self))
        check_raters(self.actions(), str(self))
        self._check_shares()

    def __str__(self) -> str:
        return "+".join(map(str, self.policies))

    def actions(self) -> tuple[Action, ...]:
        found = [action for policy in self.policies for action in policy.actions()]
        return tuple(sorted(found, key=moment))

    def drafting(self) -> Drafting | None:
        found = [policy.drafting() for policy in self.policies]
        return next((one for one in found if one is not None), None)

    def _check_shares(self) -> None:
        choosing = [
            (action, policy)
            for policy in self.policies
            for action in policy.actions()
            if action.share < 1
        ]
        choosing.sort(key=lambda pair: moment(pair[0]))
        for (earlier, first), (later, second) in pairwise(choosing):
            if later.share > earlier.share:
                raise PolicyError(
                    f"{self}: expected {first} to leave at least the {later.share} of the image "
                    f"tokens that {second} keeps, found {earlier.share}; the later of two "
                    "policies cannot keep more than the earlier leaves"
                )


def _parts(policy: Policy) -> tuple[Policy, ...]:
    return policy.policies if isinstance(policy, Chain) else (policy,)
