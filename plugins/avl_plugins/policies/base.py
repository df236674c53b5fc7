"""The base of every policy, and the checks policies share."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.plan import Plan


class Policy(abc.ABC):
    """A frozen dataclass whose options are checked when it is made.

    `str(policy)` is the one spelling of it that `parse` gives back: the name and, in field order,
    every option that is not at its default.
    """

    __slots__ = ()

    name: ClassVar[str]

    @abc.abstractmethod
    def plan(self) -> Plan:
        """What the runtime does under this policy."""

    def __str__(self) -> str:
        options = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every policy is one
            value = getattr(self, field.name)
            default = default_core(self.keep) if field.name == "core" else field.default  # type: ignore[attr-defined]  # keep stands beside core
            if value != default:
                options.append(f"{field.name}={value}")
        return f"{self.name}:{','.join(options)}" if options else self.name


def check_fraction(policy: str, option: str, value: object) -> None:
    """Refuse anything but a number in (0, 1]."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:  # type: ignore[operator]
        raise PolicyError(
            f"{policy}: expected {option} above 0 and at most 1, found {quoted(value)}; "
            "it is a fraction, 1 means all"
        )


def check_count(policy: str, option: str, value: object, minimum: int, meaning: str) -> None:
    """Refuse anything but a whole number of at least `minimum`; `meaning` says why."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise PolicyError(
            f"{policy}: expected {option} to be a whole number of at least {minimum}, "
            f"found {quoted(value)}; {meaning}"
        )


UNSET = math.nan  # the default of a core that follows from keep


def resolve_core(core: float, keep: float) -> float:
    """`core`, or its default if it is UNSET."""
    return default_core(keep) if isinstance(core, float) and math.isnan(core) else core


def default_core(keep: float) -> float:
    """A-VL's 0.3 of all image tokens, or all that are kept where that is less."""
    return min(0.3, keep)


def check_core(policy: str, core: float, keep: float) -> None:
    """Refuse a core that is larger than what is kept."""
    if core > keep:
        raise PolicyError(
            f"{policy}: expected core of at most keep = {keep}, found {core}; "
            "the core is chosen among the tokens kept"
        )
