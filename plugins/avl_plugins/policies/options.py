"""Options of policies: their types, and how text spells their values."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from numbers import Number
from types import UnionType
from typing import Any

from avl_plugins.errors import PolicyError, quoted

SIMPLE = (int, float, bool, str)
# What int() and float() take besides (1_000, other scripts' digits, "Infinity") no policy writes.
_NUMBERS = {
    int: re.compile(r"-?[0-9]+"),
    float: re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE]-?[0-9]+)?|-?inf"),
}
_MARKS = re.compile(r"[+,:]")  # of the text that a policy's options stand in


@functools.cache
def types_of(kind: Any) -> dict[str, tuple[Any, Any]]:
    """The types and defaults of the options of a policy's class, by name.

    Raises:
        PolicyError: its module does not know a type that it names.
    """
    try:
        hints = typing.get_type_hints(kind)
    except NameError as error:
        raise PolicyError(
            f"{kind.__name__}: expected types of options that its module knows, found {error}; "
            "import them there"
        ) from None
    return {field.name: (hints[field.name], field.default) for field in dataclasses.fields(kind)}


def without_none(hint: Any) -> Any:
    """`X` of `X | None`."""
    if typing.get_origin(hint) in (UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


def written(value: object) -> str:
    """A value as the text of a policy holds it."""
    # 1e+20 is 1e20, as a + stands between policies.
    return str(value).replace("e+", "e") if isinstance(value, float) else str(value)


def read_value(kind: Any, key: str, text: str) -> Any:
    """The value that `text` spells of the option `key` of a policy's class.

    Raises:
        PolicyError: there is no such option, or the value does not fit it.
    """
    types = types_of(kind)
    if key not in types:
        allowed = f"use {', '.join(types)}" if types else "it has none"
        raise PolicyError(f"{kind.name}: expected a known option, found {quoted(key)}; {allowed}")
    hint, default = types[key]
    wanted = without_none(hint)
    if text == "None" and wanted is not hint and default is not None:
        return None  # where None is the default, leaving the option out says so
    if wanted is bool:
        if text not in ("True", "False"):
            raise PolicyError(
                f"{kind.name}: expected True or False for {key}, found {quoted(text)}; write "
                f"{key}=True"
            )
        return text == "True"
    if wanted not in (int, float):
        return text
    try:
        if not _NUMBERS[wanted].fullmatch(text):
            raise ValueError
        return wanted(text)
    except ValueError:  # too many digits, too
        noun = "a whole number" if wanted is int else "a number"
        raise PolicyError(
            f"{kind.name}: expected {noun} for {key}, found {quoted(text)}; write it as {key}="
            f"{3 if wanted is int else 0.5}"
        ) from None


def check_options(policy: Any) -> None:
    """Refuse a policy with a value that its text would not give back: `parse(str(policy))`.

    Raises:
        PolicyError: it has one.
    """
    kind: Any = type(policy)
    try:
        types = types_of(kind)
    except PolicyError:
        return  # `register` refuses its class, so that no text is read as one
    for key, (hint, default) in types.items():
        value, wanted = getattr(policy, key), without_none(hint)
        if wanted not in SIMPLE or (value is None and wanted is not hint):
            continue
        if not isinstance(value, (str, Number)):
            raise _unfit(policy, key, wanted, value)
        if value == default:
            continue
        if isinstance(value, float) and math.isnan(value):
            raise _unfit(policy, key, wanted, value)
        if isinstance(value, str) and (
            not value or value.strip() != value or value == "None" or _MARKS.search(value)
        ):
            raise PolicyError(
                f"{policy.name}: expected a text without + , : and without blanks around it as "
                f"{key}, found {quoted(value)}, which a policy's own text could not hold; choose "
                "another"
            )
        if read_value(kind, key, written(value)) != value:
            raise _unfit(policy, key, wanted, value)


def _unfit(policy: Any, key: str, wanted: type, value: object) -> PolicyError:
    return PolicyError(
        f"{policy.name}: expected a value of type {wanted.__name__} as {key}, found "
        f"{quoted(value)}; give it one"
    )
