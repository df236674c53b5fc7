"""A-VL (arXiv 2409.14846) on the tokens that FastV (arXiv 2403.06764) leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.errors import PolicyError
from avl_plugins.policies.base import Policy
from avl_plugins.policies.plan import Plan


@dataclass(frozen=True, slots=True)
class Chain(Policy):
    """One policy that splits (AVL, or Random of A-VL) and one that prunes (FastV, or Random of it).

    Their order means nothing: the pruning always comes first in time, and `first` is always the
    splitting one, so that equal chains are equal.
    """

    first: Policy
    second: Policy

    name: ClassVar[str] = "chain"

    def __post_init__(self) -> None:
        if self.first.plan().split is None and self.second.plan().split is not None:
            first, second = self.first, self.second
            object.__setattr__(self, "first", second)
            object.__setattr__(self, "second", first)
        split, prune = self.first.plan(), self.second.plan()
        if split.split is None or prune.prune is None or prune.split is not None:
            raise PolicyError(
                f"{self}: expected one of avl and random:of=avl with one of fastv and random, "
                "found another combination; a chain is A-VL with FastV"
            )
        if split.prune is not None:
            raise PolicyError(
                f"{self}: expected prefill = 1 in a chain, found {split.prune.keep}; "
                "the prefill filter and FastV would both prune, use one of them"
            )
        if prune.prune.keep < split.split.keep:
            raise PolicyError(
                f"{self}: expected FastV to keep at least A-VL's keep = {split.split.keep}, found "
                f"{prune.prune.keep}; A-VL cannot keep more tokens than FastV leaves"
            )

    def __str__(self) -> str:
        return f"{self.first}+{self.second}"

    def plan(self) -> Plan:
        splitting = self.first.plan()
        return Plan(self.second.plan().prune, splitting.split, splitting.text)
