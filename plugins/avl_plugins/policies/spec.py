"""Policies from text: `avl:keep=0.5,core=0.3+fastv:layer=2`."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import typing
from types import UnionType
from typing import Any

from avl_plugins.errors import PolicyError, quoted, shown
from avl_plugins.policies.avl import AVL
from avl_plugins.policies.base import Policy
from avl_plugins.policies.chain import Chain
from avl_plugins.policies.dense import Dense
from avl_plugins.policies.fastv import FastV
from avl_plugins.policies.random import Random

_KINDS: dict[str, type[Policy]] = {kind.name: kind for kind in (Dense, AVL, FastV, Random)}


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
    if not kind.__dataclass_params__.frozen:
        raise PolicyError(
            f"{name}: expected a frozen dataclass, as policies are values, found one that can be "
            "changed; write @dataclass(frozen=True) over the class"
        )
    if inspect.isabstract(kind):
        raise PolicyError(
            f"{name}: expected a policy with actions(), found none; write def actions(self)"
        )
    if any(field.default is dataclasses.MISSING for field in dataclasses.fields(kind)):
        raise PolicyError(
            f"{name}: expected a default for every option, found one without; give it one"
        )
    for option, (hint, _) in _options(kind).items():
        if _without_none(hint) not in (int, float, bool, str):
            raise PolicyError(
                f"{name}: expected options of the types int, float, bool or str, or one of these "
                f"or None, found {option}: {shown(hint)}; give it one of them"
            )
    if _KINDS.setdefault(name, kind) is not kind:
        raise PolicyError(f"expected a policy with a new name, found {name} again; choose another")
    return kind


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
    name, colon, options = text.strip().partition(":")
    kind = _KINDS.get(name.strip())
    if kind is None:
        raise PolicyError(
            f"expected a policy, found {quoted(name.strip())}; use {', '.join(_KINDS)}, or several "
            "joined by + as avl+fastv"
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
    hint, default = _options(kind)[key]
    wanted = _without_none(hint)
    if value == "None" and wanted is not hint and default is not None:
        return None  # where None is the default, leaving the option out says so
    if wanted is bool:
        if value not in ("True", "False"):
            raise PolicyError(
                f"{kind.name}: expected True or False for {key}, found {quoted(value)}; write "
                f"{key}=True"
            )
        return value == "True"
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


def _options(kind: type[Policy]) -> dict[str, tuple[Any, Any]]:
    """The types and defaults of a policy's options, by name."""
    hints = typing.get_type_hints(kind)
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind)  # type: ignore[arg-type]
    return {field.name: (hints[field.name], field.default) for field in fields}


def _without_none(hint: Any) -> Any:
    """`X` of `X | None`."""
    if typing.get_origin(hint) in (UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint
