"""Policies from text: `avl:keep=0.5,core=0.3+fastv:layer=2`."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from typing import Any

from avl_plugins.errors import PolicyError, quoted, shown
from avl_plugins.policies.agreement import check_class
from avl_plugins.policies.akvq import AKVQ
from avl_plugins.policies.avl import AVL
from avl_plugins.policies.base import Policy
from avl_plugins.policies.caac import CAAC
from avl_plugins.policies.cached.lookm import LookM
from avl_plugins.policies.cached.pyramidkv import PyramidKV
from avl_plugins.policies.cached.snapkv import SnapKV
from avl_plugins.policies.cached.vlcache import VLCache
from avl_plugins.policies.cached.zipvl import ZipVL
from avl_plugins.policies.chain import Chain
from avl_plugins.policies.dense import Dense
from avl_plugins.policies.embedded.cdpruner import CDPruner
from avl_plugins.policies.embedded.dart import DART
from avl_plugins.policies.embedded.divprune import DivPrune
from avl_plugins.policies.embedded.evs import EVS
from avl_plugins.policies.embedded.hiprune import HiPrune
from avl_plugins.policies.embedded.holov import HoloV
from avl_plugins.policies.embedded.mmtok import MMTok
from avl_plugins.policies.embedded.pool import Pool
from avl_plugins.policies.embedded.scope import SCOPE
from avl_plugins.policies.embedded.uniform import Uniform
from avl_plugins.policies.embedded.visionzip import VisionZip
from avl_plugins.policies.embedded.vispruner import VisPruner
from avl_plugins.policies.exact import Exact
from avl_plugins.policies.fastv import FastV
from avl_plugins.policies.options import SIMPLE, read_value, types_of, without_none
from avl_plugins.policies.pyramiddrop import PyramidDrop
from avl_plugins.policies.random import Random
from avl_plugins.policies.sparsevlm import SparseVLM

# What commands offer, each with the options that it has unless others are given.
USUAL = ("dense", "avl", "avl:exact", "akvq", "fastv", "avl+fastv", "random")

_EMBEDDED = (DivPrune, MMTok, CDPruner, DART, EVS, Pool, Uniform)
_LOOKING = (VisionZip, VisPruner, HiPrune, SCOPE, HoloV)  # they read `Picture.attention`
_CACHED = (SnapKV, PyramidKV, VLCache, ZipVL, LookM)
_KINDS: dict[str, type[Policy]] = {
    kind.name: kind
    for kind in (
        Dense,
        AVL,
        Exact,
        AKVQ,
        FastV,
        PyramidDrop,
        SparseVLM,
        *_EMBEDDED,
        *_LOOKING,
        *_CACHED,
        CAAC,
        Random,
    )
}


def register(kind: type[Policy]) -> type[Policy]:
    """Have `parse`, and so every command and every model, know a policy by its name.

    Can stand over the class as a decorator.

    Args:
        kind: a frozen dataclass with a name of its own; its fields, each with a default, are the
            options: int, float, bool, str, or one of these or None.

    Raises:
        PolicyError: it is none, or the name is another's.
    """
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise PolicyError(
            f"expected a policy with a name of small letters and digits, found {quoted(name)}; "
            "set name: ClassVar[str]"
        )
    if not (isinstance(kind, type) and issubclass(kind, Policy) and dataclasses.is_dataclass(kind)):
        raise PolicyError(
            f"{name}: expected a dataclass derived from Policy, found {quoted(kind)}; write "
            "@dataclass(frozen=True) over the class"
        )
    check_class(kind)
    if inspect.isabstract(kind):
        raise PolicyError(
            f"{name}: expected a policy with actions(), found none; write def actions(self)"
        )
    if any(field.default is dataclasses.MISSING for field in dataclasses.fields(kind)):
        raise PolicyError(
            f"{name}: expected a default for every option, found one without; give it one"
        )
    for option, (hint, _) in types_of(kind).items():
        if without_none(hint) not in SIMPLE:
            raise PolicyError(
                f"{name}: expected options of the types int, float, bool or str, or one of these "
                f"or None, found {option}: {shown(hint)}; give it one of them"
            )
    if _KINDS.setdefault(name, kind) is not kind:
        raise PolicyError(f"expected a policy with a new name, found {name} again; choose another")
    return kind


def registered() -> dict[str, type[Policy]]:
    """The classes of all policies that `parse` knows, by their names."""
    return dict(_KINDS)


def parse(text: str) -> Policy:
    """The policy that `text` names; `parse(str(policy)) == policy`.

    Raises:
        PolicyError: an unknown policy or option, a value that does not fit, or policies that
            cannot be combined.
    """
    if not isinstance(text, str):
        raise PolicyError(
            f'expected a policy as text, found {quoted(text)}; write it as "avl:keep=0.5"'
        )
    policies = [_parse_one(part) for part in text.split("+")]
    return policies[0] if len(policies) == 1 else Chain(*policies)


def _parse_one(text: str) -> Policy:
    name, colon, options = (part.strip() for part in text.partition(":"))
    if f"{name}:{options.partition(',')[0].strip()}" in _KINDS:  # as avl:exact,core=0.2
        variant, colon, options = options.partition(",")
        name = f"{name}:{variant.strip()}"
    variant = f"{name}:{options.partition(':')[0].strip()}"
    if ":" in options and variant in _KINDS:
        rest = options.partition(":")[2].strip()
        raise PolicyError(
            f"{variant}: expected options behind a comma, found {quoted(text)}; write "
            f"{shown(f'{variant},{rest}')}"
        )
    kind = _KINDS.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, _KINDS, 1)
        way_out = (
            f"did you mean {near[0]}?"
            if near
            else f"use {', '.join(_KINDS)}, or several joined by +"
        )
        raise PolicyError(f"expected a policy, found {quoted(name)}; {way_out}")
    values: dict[str, Any] = {}
    for option in options.split(",") if colon else []:
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or not key or not value:
            raise PolicyError(
                f"{name}: expected options as key=value, found {quoted(option)}; "
                f"write them as in avl:keep=0.5,core=0.3"
            )
        if key in values:
            raise PolicyError(
                f"{name}: expected each option once, found {shown(key)} twice; keep one"
            )
        values[key] = read_value(kind, key, value)
    return kind(**values)
