"""Policies: which image and text tokens are kept, and which of them attention reads.

A policy is a frozen dataclass. What a runtime follows is its `plan()`.
"""

from avl_plugins.policies.avl import AVL
from avl_plugins.policies.base import Policy
from avl_plugins.policies.chain import Chain
from avl_plugins.policies.dense import Dense
from avl_plugins.policies.fastv import FastV
from avl_plugins.policies.plan import Plan
from avl_plugins.policies.prune import Prune
from avl_plugins.policies.random import Random
from avl_plugins.policies.spec import parse
from avl_plugins.policies.split import Split
from avl_plugins.policies.text import TextBudget

__all__ = [
    "AVL",
    "Chain",
    "Dense",
    "FastV",
    "Plan",
    "Policy",
    "Prune",
    "Random",
    "Split",
    "TextBudget",
    "parse",
]
