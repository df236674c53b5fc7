"""Policies from text: `avl:keep=0.5,core=0.3+fastv:layer=2`."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from avl_plugins.errors import PolicyError, quoted, shown
from avl_plugins.policies.avl import AVL
from avl_plugins.policies.base import Policy
from avl_plugins.policies.chain import Chain
from avl_plugins.policies.dense import Dense
from avl_plugins.policies.fastv import FastV
from avl_plugins.policies.random import Random

_KINDS: dict[str, type[Policy]] = {kind.name: kind for kind in (Dense, AVL, FastV, Random)}


def parse(text: str) -> Policy:
    """The policy that `text` names; `parse(str(policy)) == policy`.

    Raises:
        PolicyError: an unknown policy or option, a value that does not fit, or policies that
            cannot be combined.
    """
    parts = text.split("+")
    if len(parts) > 2:
        raise PolicyError(
            f"{quoted(text)}: expected at most two policies joined by +, found {len(parts)}; "
            "a chain is A-VL with FastV, as avl+fastv"
        )
    policies = [_parse_one(part) for part in parts]
    return policies[0] if len(policies) == 1 else Chain(policies[0], policies[1])


def _parse_one(text: str) -> Policy:
    name, colon, options = text.strip().partition(":")
    kind = _KINDS.get(name.strip())
    if kind is None:
        raise PolicyError(
            f"expected a policy, found {quoted(name.strip())}; use {', '.join(_KINDS)} or avl+fastv"
        )
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
        values[key] = _parse_value(kind, key, value)
    return kind(**values)


def _parse_value(kind: type[Policy], key: str, value: str) -> Any:
    options = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if key not in options:
        allowed = f"use {', '.join(options)}" if options else "it has none"
        raise PolicyError(f"{kind.name}: expected a known option, found {quoted(key)}; {allowed}")
    wanted = typing.get_type_hints(kind)[key]
    if wanted not in (int, float):
        return value
    try:
        number = wanted(value)
        if math.isnan(number):
            raise ValueError
        return number
    except ValueError:
        noun = "a whole number" if wanted is int else "a number"
        raise PolicyError(
            f"{kind.name}: expected {noun} for {key}, found {quoted(value)}; write it as {key}="
            f"{3 if wanted is int else 0.5}"
        ) from None
