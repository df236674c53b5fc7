"""The base of every policy."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import Action
from avl_plugins.policies.agreement import (
    check_action,
    check_class,
    check_drafts,
    check_splits,
    check_together,
)
from avl_plugins.policies.drafting import Drafting
from avl_plugins.policies.options import check_options, written


class Policy(abc.ABC):
    """A frozen dataclass whose options are checked when it is made.

    `str(policy)` is the one spelling of it that `parse` gives back: the name and, in field order,
    every option that is not at its default. An option that nobody has to give is `None`; a text
    holds no `+ , :` and no blanks around it.
    """

    __slots__ = ()

    name: ClassVar[str]

    @abc.abstractmethod
    def actions(self) -> tuple[Action, ...]:
        """What it decides, in the order of time."""

    def drafting(self) -> Drafting | None:
        """How tokens may be drafted by reading active rows alone; None: they may not.

        Only where every step reads all rows and drops none, so that the draft changes no token.
        """
        return None

    def check(self, splits: Sequence[int], layers: int | None = None) -> None:
        """Refuse a package whose decoder, of so many `layers`, is split after the layers `splits`.

        Raises:
            PolicyError: an action cannot work with it, or this is no policy that can be asked.
        """
        check_class(type(self))
        check_options(self)
        actions = self.actions()
        if not isinstance(actions, tuple) or not all(isinstance(one, Action) for one in actions):
            raise PolicyError(
                f"{self}: expected a tuple of actions from actions(), found {quoted(actions)}; "
                "write return (Prune(2, 0.5),)"
            )
        for action in actions:
            check_action(action, splits, str(self))
        check_splits(actions, splits, layers, str(self))
        check_together(actions, str(self))
        if self.drafting() is not None:
            check_drafts(actions, str(self))

    @property
    def reads_question(self) -> bool:
        """Whether it depends on what the user says last, and so has to decide anew in each turn."""
        return any(action.reads_question for action in self.actions())

    @property
    def reads_vision(self) -> bool:
        """Whether it chooses by attention in the vision encoder, which not all packages tell."""
        return any(action.reads_vision for action in self.actions())

    @property
    def biases(self) -> bool:
        """Whether attention is biased, which not all packages can do."""
        return any(one.restores or one.weighs or one.evens for one in self.actions())

    @property
    def places(self) -> tuple[str, ...]:
        """What pictures call image tokens that are active, parked (where some are) and gone."""
        if any(action.reads_parked for action in self.actions()):
            return "core", "secondary", "minor"
        return "kept", "dropped"

    def __str__(self) -> str:
        options = [
            f"{field.name}={written(value)}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]  # every policy is one
            if (value := getattr(self, field.name)) != field.default
        ]
        mark = "," if ":" in self.name else ":"
        return f"{self.name}{mark}{','.join(options)}" if options else self.name
