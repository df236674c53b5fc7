"""Checks of values that policies, actions and rankings share."""

from __future__ import annotations

from typing import TypeGuard

from avl_plugins.errors import PolicyError, quoted


def check_fraction(policy: str, option: str, value: object) -> None:
    """Refuse anything but a number in (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        raise PolicyError(
            f"{policy}: expected {option} above 0 and at most 1, found {quoted(value)}; "
            "it is a fraction, 1 means all"
        )


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_count(policy: str, option: str, value: object, minimum: int, meaning: str) -> None:
    """Refuse anything but a whole number of at least `minimum`; `meaning` says why."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise PolicyError(
            f"{policy}: expected {option} to be a whole number of at least {minimum}, "
            f"found {quoted(value)}; {meaning}"
        )


def check_heavy(policy: str, value: object) -> None:
    """Refuse anything but a number in [0, 1]."""
    check_weight(policy, "heavy", value, "0 keeps only the most recent text")


def check_weight(policy: str, option: str, value: object, meaning: str) -> None:
    """Refuse anything but a number in [0, 1]; `meaning` says what one means."""
    if not is_number(value) or not 0 <= value <= 1:
        raise PolicyError(
            f"{policy}: expected {option} from 0 to 1, found {quoted(value)}; {meaning}"
        )


def core_of(policy: str, core: float | None, keep: float) -> float:
    """A core that was given, or A-VL's 0.3 of all image tokens, or all kept where that is less.

    Raises:
        PolicyError: it is no fraction, or larger than what is kept.
    """
    if core is None:
        return min(0.3, keep)
    check_fraction(policy, "core", core)
    if core > keep:
        raise PolicyError(
            f"{policy}: expected core of at most keep = {keep}, found {core}; "
            "the core is chosen among the tokens kept"
        )
    return core
