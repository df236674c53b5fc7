"""The base of every policy, and the checks policies share."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, TypeGuard

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import Action


class Policy(abc.ABC):
    """A frozen dataclass whose options are checked when it is made.

    `str(policy)` is the one spelling of it that `parse` gives back: the name and, in field order,
    every option that is not at its default. An option that nobody has to give is `None`.
    """

    __slots__ = ()

    name: ClassVar[str]

    @abc.abstractmethod
    def actions(self) -> tuple[Action, ...]:
        """What it decides, in the order of time."""

    def check(self, splits: Sequence[int]) -> None:
        """Refuse a package whose decoder is split after the layers `splits`.

        Raises:
            PolicyError: an action cannot work with it, or this is no policy that can be asked.
        """
        kind = type(self)
        if not dataclasses.is_dataclass(kind):
            raise PolicyError(
                f"{kind.__name__}: expected a dataclass derived from Policy, found another class; "
                "write @dataclass(frozen=True) over the class"
            )
        actions = self.actions()
        if not isinstance(actions, tuple) or not all(isinstance(one, Action) for one in actions):
            raise PolicyError(
                f"{self}: expected a tuple of actions from actions(), found {quoted(actions)}; "
                "write return (Prune(2, 0.5),)"
            )
        for action in actions:
            action.check(splits, str(self))

    @property
    def places(self) -> tuple[str, ...]:
        """What pictures call image tokens that are active, parked (where some are) and gone."""
        if any(action.reads_parked for action in self.actions()):
            return "core", "secondary", "minor"
        return "kept", "dropped"

    def __str__(self) -> str:
        options = [
            f"{field.name}={value}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]  # every policy is one
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{self.name}:{','.join(options)}" if options else self.name


def check_fraction(policy: str, option: str, value: object) -> None:
    """Refuse anything but a number in (0, 1]."""
    if not _is_number(value) or not 0 < value <= 1:
        raise PolicyError(
            f"{policy}: expected {option} above 0 and at most 1, found {quoted(value)}; "
            "it is a fraction, 1 means all"
        )


def _is_number(value: object) -> TypeGuard[int | float]:
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
    if not _is_number(value) or not 0 <= value <= 1:
        raise PolicyError(
            f"{policy}: expected heavy from 0 to 1, found {quoted(value)}; "
            "0 keeps only the most recent text"
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
