"""Values of options as callers write them: checked, and made plain Python numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np

from avl_plugins.errors import AvlError, quoted

# Name -> the range in words, its bounds, and whether the lower one is out of it.
_RANGES: dict[str, tuple[str, float, float, bool]] = {
    "temperature": ("a number of at least 0 (0 is greedy)", 0.0, math.inf, False),
    "top_p": ("a number in (0, 1] (1 is off)", 0.0, 1.0, True),
    "min_p": ("a number in [0, 1] (0 is off)", 0.0, 1.0, False),
    "repetition_penalty": ("a number above 0 (1 is off)", 0.0, math.inf, True),
    "presence_penalty": ("a number in [-2, 2] (0 is off)", -2.0, 2.0, False),
    "frequency_penalty": ("a number in [-2, 2] (0 is off)", -2.0, 2.0, False),
}
_NOTES = {"top_k": "0 is off", "no_repeat_ngram_size": "0 is off"}


class OptionError(AvlError):
    """A generation option is unknown, of the wrong type or out of range."""


def whole(
    name: str,
    value: object,
    least: int = 0,
    note: str = "",
    error: type[OptionError] = OptionError,
    *,
    most: int | None = None,
) -> int:
    """`value` as an int: an int, a whole float, or NumPy's.

    Args:
        least: the smallest that is allowed.
        most: the largest, if there is one.
        note: what a value means, for the message.

    Raises:
        OptionError: it is anything else, a bool too, or out of that range.
    """
    number = None
    if not isinstance(value, (bool, np.bool_)):
        if isinstance(value, Integral):
            number = int(value)
        elif isinstance(value, Real) and float(value).is_integer():
            number = int(float(value))
    above = number is not None and most is not None and number > most
    if number is None or number < least or above:
        bound = f"at most {most}" if above else f"at least {least}"
        wanted = f"a whole number of {bound}{note and f' ({note})'}"
        raise error(f"{name}: expected {wanted}, found {quoted(value)}; choose another")
    return number


def real(
    name: str,
    value: object,
    expected: str,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    open_below: bool = False,
    error: type[OptionError] = OptionError,
) -> float:
    """`value` as a finite float between `least` and `most`.

    Args:
        expected: the range in words, for the message.
        open_below: whether `least` itself is out of range.

    Raises:
        OptionError: it is anything else, or out of range.
    """
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, (bool, np.bool_)):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    fits = least < number <= most if open_below else least <= number <= most
    if not fits or not math.isfinite(number):
        raise error(f"{name}: expected {expected}, found {quoted(value)}; choose another")
    return number


def number(name: str, value: object, error: type[OptionError] = OptionError) -> float:
    """A numeric option by name, in its range; an int where it is a whole one.

    Raises:
        OptionError: it is out of range, or no number.
    """
    if name in _RANGES:
        expected, least, most, open_below = _RANGES[name]
        return real(name, value, expected, least, most, open_below=open_below, error=error)
    return whole(name, value, 1 if name == "max_new_tokens" else 0, _NOTES.get(name, ""), error)


def flag(name: str, value: object) -> bool:
    """A switch.

    Raises:
        OptionError: it is no bool.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise OptionError(
            f"{name}: expected true or false, found {quoted(value)}; write {name}=True"
        )
    return bool(value)


def ids(name: str, value: object) -> tuple[int, ...]:
    """Token ids.

    Raises:
        OptionError: it is no sequence of whole numbers of at least 0.
    """
    return tuple(whole(name, one) for one in _items(name, value, "a list of token ids"))


def id_lists(name: str, value: object) -> tuple[tuple[int, ...], ...]:
    """Sequences of token ids, none of them empty.

    Raises:
        OptionError: it is anything else.
    """
    found = tuple(ids(name, one) for one in _items(name, value, "a list of lists of token ids"))
    if not all(found):
        raise OptionError(f"{name}: expected lists of one token id or more, found an empty one")
    return found


def _items(name: str, value: object, expected: str) -> Sequence[object]:
    if isinstance(value, np.ndarray) and value.ndim:
        return list(value)
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, set, frozenset)):
        raise OptionError(f"{name}: expected {expected}, found {quoted(value)}; write {name}=[…]")
    return list(value)
