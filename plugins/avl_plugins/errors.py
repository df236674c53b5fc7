"""The one base of every error a user may meet, and how errors quote what a user gave."""

from __future__ import annotations

import os
import re
import reprlib
from typing import Final

QUOTED: Final = 100  # characters of one value; a message may quote two
_LONG_WORD: Final = re.compile(rf"\S{{{2 * QUOTED + 1},}}")


class AvlError(Exception):
    """An expected failure.

    Its message is one line: what was expected, what was found and what to do. Command lines print
    it without a traceback and exit with 1. What a user gave stands in it as `shown` or `quoted`;
    of any other word of more than 200 characters (a path, mostly) the middle is left out.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_LONG_WORD.sub(lambda found: _cut(found[0], 2 * QUOTED), message))


class PolicyError(AvlError):
    """A policy's options are invalid or impossible together."""


class FormatError(AvlError):
    """A value does not fit the type it is declared with."""


class TensorRTError(AvlError):
    """TensorRT is missing, too old for avl's plugins, or asked for what they cannot do."""


class OpError(AvlError):
    """Arrays given to an op do not fit its schema."""


def shown(value: object, limit: int = QUOTED) -> str:
    """A path, an address or a name as messages write it: bare, on one line, `limit` characters.

    Of longer ones the middle is left out. Characters that cannot be printed are escaped.
    """
    try:
        text = os.fsdecode(value) if isinstance(value, os.PathLike) else str(value)
    except ValueError:
        text = _endless(value)
    if len(text) > 2 * limit:  # enough is left to escape, and no copy is made of megabytes
        text = _cut(text, 2 * limit)
    return _cut("".join(one if one.isprintable() else ascii(one)[1:-1] for one in text), limit)


def quoted(value: object, limit: int = QUOTED) -> str:
    """Any value as messages quote it: its `repr` in at most `limit` characters."""
    short = reprlib.Repr()
    short.maxother = short.maxlong = limit
    short.maxstring = limit - 2
    if isinstance(value, os.PathLike):
        value = os.fsdecode(value)
    if isinstance(value, str):
        return _cut(repr(_cut(value, limit - 2)), limit)
    try:
        return _cut(short.repr(value), limit)
    except ValueError:
        return _cut(_endless(value), limit)


def _endless(value: object) -> str:
    """What holds a number of so many digits that Python does not write it."""
    return f"{type(value).__name__} of very many digits"


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 1]}…{text[-tail:]}"
