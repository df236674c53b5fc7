"""Values of a body's fields: each is of its type and in its range, or refused in one sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any, Final

from avl_plugins.errors import quoted
from avl_runtime.serve.errors import ApiError, refused

Object = dict[str, Any]
IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of functions and schemas
LONGEST_DESCRIPTION: Final = 1 << 16


def whole(value: object, name: str, least: int, most: int) -> int:
    """A whole number.

    Raises:
        ApiError: it is none between `least` and `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise wrong(name, f"a whole number from {least} to {most}", value)
    return value


def real(value: object, name: str, least: float, most: float) -> float:
    """A number.

    Raises:
        ApiError: it is none between `least` and `most`.
    """
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not isinstance(value, (int, float)) or not fits or not least <= value <= most:
        raise wrong(name, f"a number from {least:g} to {most:g}", value)
    number = float(value)
    if not math.isfinite(number):
        raise wrong(name, f"a number from {least:g} to {most:g}", value)
    return number


def flag(value: object, name: str) -> bool:
    """A switch.

    Raises:
        ApiError: it is neither true nor false.
    """
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return value


def text(value: object, name: str, most: int) -> str:
    """A text of at most so many characters.

    Raises:
        ApiError: it is none.
    """
    if not isinstance(value, str):
        raise wrong(name, "a text", value)
    if len(value) > most:
        raise refused(
            f"{name}: expected a text of at most {most} characters, found {len(value)}; shorten it",
            name,
        )
    return value


def identifier(value: object, name: str) -> str:
    """What a function or a schema is called.

    Raises:
        ApiError: it is no name, or a longer one than OpenAI's protocol has.
    """
    found = text(value, name, 64)
    if IDENTIFIER.fullmatch(found) is None:
        raise wrong(name, "letters, digits, _ and -", found)
    return found


def described(given: Object, name: str) -> tuple[str, bool]:
    """The `name` and `strict` of a function or a schema, whose `description` is a text.

    Raises:
        ApiError: one of them cannot be used.
    """
    called = identifier(given.get("name"), f"{name}.name")
    if "description" in given:
        text(given["description"], f"{name}.description", LONGEST_DESCRIPTION)
    return called, flag(given.get("strict", False), f"{name}.strict")


def items(value: object, name: str, least: int, most: int, expected: str = "a list") -> list[Any]:
    """A list; `expected` says what else might have stood there.

    Raises:
        ApiError: it is none, or holds fewer than `least` or more than `most`.
    """
    if not isinstance(value, list):
        raise wrong(name, expected, value)
    if not least <= len(value) <= most:
        raise refused(f"{name}: expected {least} to {most} entries, found {len(value)}", name)
    return value


def an_object(value: object, name: str, known: Collection[str]) -> Object:
    """An object with no names but those `known`; those that are null are left out.

    Raises:
        ApiError: it is anything else.
    """
    if not isinstance(value, dict):
        raise wrong(name, "an object", value)
    for key in value:
        if key not in known:
            raise refused(
                f"{name}: expected the names {', '.join(known)}, found {quoted(key)}; leave it out",
                f"{name}.{key}" if key.isidentifier() and len(key) < 100 else name,
            )
    return {key: one for key, one in value.items() if one is not None}


def wrong(name: str, expected: str, value: object) -> ApiError:
    """A field is not what it should be."""
    return refused(f"{name}: expected {expected}, found {quoted(value)}; choose another", name)
