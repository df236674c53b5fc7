"""Policies: which image and text tokens are kept, and which of them attention reads.

A policy is a frozen dataclass that consists of actions. One of your own is a class with `actions()`
and one call of `register`.
"""

from avl_plugins.policies.action import Action, Placed, Tokens, When
from avl_plugins.policies.akvq import AKVQ
from avl_plugins.policies.avl import AVL
from avl_plugins.policies.base import Policy
from avl_plugins.policies.caac import CAAC, Rescale
from avl_plugins.policies.cached.lookm import LookM
from avl_plugins.policies.cached.pyramidkv import PyramidKV
from avl_plugins.policies.cached.retain import Keeper, Retain, Retaining
from avl_plugins.policies.cached.snapkv import SnapKV
from avl_plugins.policies.cached.vlcache import VLCache
from avl_plugins.policies.cached.zipvl import ZipVL
from avl_plugins.policies.calibrate import Calibrate
from avl_plugins.policies.chain import Chain
from avl_plugins.policies.dense import Dense
from avl_plugins.policies.drafting import Drafting
from avl_plugins.policies.embedded.cdpruner import CDPruner
from avl_plugins.policies.embedded.dart import DART
from avl_plugins.policies.embedded.divprune import DivPrune
from avl_plugins.policies.embedded.evs import EVS
from avl_plugins.policies.embedded.hiprune import HiPrune
from avl_plugins.policies.embedded.holov import HoloV
from avl_plugins.policies.embedded.mmtok import MMTok
from avl_plugins.policies.embedded.pool import Pool
from avl_plugins.policies.embedded.scope import SCOPE
from avl_plugins.policies.embedded.select import Picker, Select, Selecting
from avl_plugins.policies.embedded.uniform import Uniform
from avl_plugins.policies.embedded.visionzip import VisionZip
from avl_plugins.policies.embedded.vispruner import VisPruner
from avl_plugins.policies.exact import Exact
from avl_plugins.policies.fastv import FastV
from avl_plugins.policies.prune import Prune
from avl_plugins.policies.pyramiddrop import PyramidDrop
from avl_plugins.policies.random import Random
from avl_plugins.policies.ranking import ATTENTION, AtRandom, Attention, HeavyHitters, Ranking
from avl_plugins.policies.sparsevlm import SparseVLM
from avl_plugins.policies.spec import USUAL, parse, register, registered
from avl_plugins.policies.split import Divide, ReadParked, Refresh
from avl_plugins.policies.text import TextBudget
from avl_plugins.policies.view import ACTIVE, BY_CLASS, DROPPED, LATE, MIDDLE, PARKED, Picture, View

__all__ = [
    "ACTIVE",
    "AKVQ",
    "ATTENTION",
    "AVL",
    "BY_CLASS",
    "CAAC",
    "DART",
    "DROPPED",
    "EVS",
    "LATE",
    "MIDDLE",
    "PARKED",
    "SCOPE",
    "USUAL",
    "Action",
    "AtRandom",
    "Attention",
    "CDPruner",
    "Calibrate",
    "Chain",
    "Dense",
    "DivPrune",
    "Divide",
    "Drafting",
    "Exact",
    "FastV",
    "HeavyHitters",
    "HiPrune",
    "HoloV",
    "Keeper",
    "LookM",
    "MMTok",
    "Picker",
    "Picture",
    "Placed",
    "Policy",
    "Pool",
    "Prune",
    "PyramidDrop",
    "PyramidKV",
    "Random",
    "Ranking",
    "ReadParked",
    "Refresh",
    "Rescale",
    "Retain",
    "Retaining",
    "Select",
    "Selecting",
    "SnapKV",
    "SparseVLM",
    "TextBudget",
    "Tokens",
    "Uniform",
    "VLCache",
    "View",
    "VisPruner",
    "VisionZip",
    "When",
    "ZipVL",
    "parse",
    "register",
    "registered",
]
