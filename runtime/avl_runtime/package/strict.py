"""Frozen dataclasses from parsed JSON, refusing anything that does not fit."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, Literal

from avl_plugins.errors import FormatError, quoted


def build(kind: Any, value: Any, where: str) -> Any:
    """Build the annotated type `kind` from parsed JSON.

    Args:
        kind: a dataclass, tuple, union, Literal, str, int from 0 on, finite float, bool, None.
        where: what is being read, for messages.

    Raises:
        FormatError: a wrong type, an unknown key, or a missing one that has no default.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_object(kind, value, where)
    if origin is tuple:
        return _build_tuple(args, value, where)
    if origin in (typing.Union, types.UnionType):
        return _build_union(args, value, where)
    if origin is Literal:
        if value not in args:
            raise _mismatch(where, " or ".join(map(str, args)), value)
        return value
    return _build_scalar(kind, value, where)


def _build_object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(where, "an object", value)
    hints = typing.get_type_hints(kind)
    unknown = next((key for key in value if key not in hints), None)
    if unknown is not None:
        raise FormatError(f"{where}: expected known keys, found {quoted(unknown)}")
    optional = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
        or field.default_factory is not dataclasses.MISSING
    }
    missing = next((key for key in hints if key not in value and key not in optional), None)
    if missing is not None:
        raise FormatError(f"{where}: expected the key {missing!r}, found none")
    return kind(**{k: build(hints[k], v, f"{where}: {k}") for k, v in value.items()})


def _build_tuple(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise _mismatch(where, "a list", value)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(build(args[0], item, where) for item in value)
    if len(value) != len(args):
        raise _mismatch(where, f"{len(args)} items", value)
    return tuple(build(arg, item, where) for arg, item in zip(args, value, strict=True))


def _build_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    kinds = {name: option for option in args for name in _kinds(option)}
    if kinds and isinstance(value, dict) and "kind" in value:
        # Told apart by name: the message shall be about the one that is meant.
        named = value["kind"]
        if not isinstance(named, str) or named not in kinds:
            raise _mismatch(f"{where}: kind", " or ".join(kinds), named)
        return build(kinds[named], value, where)
    others = [option for option in args if option is not types.NoneType]
    if len(others) == 1 and value is not None:
        return build(others[0], value, where)
    for option in args:
        try:
            return build(option, value, where)
        except FormatError:
            continue
    raise _mismatch(where, " or ".join(_name(option) for option in args), value)


def _kinds(option: Any) -> tuple[str, ...]:
    """The values that the field `kind` of a dataclass may have, if it has one."""
    if not dataclasses.is_dataclass(option):
        return ()
    return typing.get_args(typing.get_type_hints(option).get("kind"))


def _build_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise _mismatch(where, "a number", value) from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _mismatch(where, _name(kind), value)
    if kind is int and value < 0:
        raise _mismatch(where, "a number of at least 0", value)
    if kind is float and not math.isfinite(value):
        raise _mismatch(where, "a number", value)
    return value


def _name(kind: Any) -> str:
    if kind is types.NoneType:
        return "null"
    return str(getattr(kind, "__name__", kind))


def _mismatch(where: str, expected: str, value: Any) -> FormatError:
    return FormatError(f"{where}: expected {expected}, found {quoted(str(value), 60)}")
