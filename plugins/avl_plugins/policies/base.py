"""The base of every policy."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import Action, When


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
        decided = set()
        for action in actions:
            if When.BETWEEN in action.when and not isinstance(action.before, int):
                raise PolicyError(
                    f"{self}: expected {type(action).__name__} to say before which layer it "
                    f"decides, found {quoted(action.before)}; define its property before"
                )
            decision = (action.decides, action.when, action.before)
            if decision in decided:
                raise PolicyError(
                    f"{self}: expected each decision once, found two actions that say "
                    f"{action.decides}; leave one out"
                )
            decided.add(decision)
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
