"""Whether a policy can be asked: its class, each of its actions, and all of them together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import Action, Tokens, When
from avl_plugins.policies.checks import check_fraction
from avl_plugins.policies.drafting import MOST_ROWS
from avl_plugins.policies.ranking import check_ranking


def moment(action: Action) -> tuple[When, int]:
    """When an action first decides: what actions are put in order by."""
    return min(action.when), action.before or 0


def check_class(kind: type) -> None:
    """Refuse a policy's class that has no name, or is no frozen dataclass, as policies are values.

    Raises:
        PolicyError: it is not.
    """
    if not dataclasses.is_dataclass(kind):
        raise PolicyError(
            f"{kind.__name__}: expected a dataclass derived from Policy, found another class; "
            "write @dataclass(frozen=True) over the class"
        )
    if not isinstance(getattr(kind, "name", None), str):
        raise PolicyError(
            f"{kind.__name__}: expected a policy with a name, found none; set name: ClassVar[str]"
        )
    check_frozen(kind)


def check_frozen(kind: type) -> None:
    """Refuse a dataclass whose instances can be changed.

    Raises:
        PolicyError: they can.
    """
    made = getattr(kind, "__dataclass_params__", None)
    if made is not None and not made.frozen:
        raise PolicyError(
            f"{kind.__name__}: expected a frozen dataclass, as policies, actions and rankings are "
            "values, found one that can be changed; write @dataclass(frozen=True) over the class"
        )


def check_action(action: Action, splits: Sequence[int], where: str) -> None:
    """Refuse an action that cannot be asked, or not in a decoder split after the layers `splits`.

    Raises:
        PolicyError: it cannot; `where` names the policy.
    """
    name = type(action).__name__
    check_frozen(type(action))
    if not action.when or not all(isinstance(one, When) for one in action.when):
        raise PolicyError(
            f"{where}: expected {name} to say when it decides, found {quoted(action.when)}; set "
            "when: ClassVar[frozenset[When]]"
        )
    if not isinstance(action.tokens, Tokens):
        raise PolicyError(
            f"{where}: expected {name} to say which tokens it is about, found "
            f"{quoted(action.tokens)}; set tokens: ClassVar[Tokens]"
        )
    check_ranking(f"{where}: {name}", action.ranking)
    check_frozen(type(action.ranking))
    check_fraction(f"{where}: {name}", "share", action.share)
    check_fraction(f"{where}: {name}", "wants", action.wants)
    if When.BETWEEN in action.when:
        _check_between(action, where)
    if action.weighs and When.STEP not in action.when:
        raise PolicyError(
            f"{where}: expected {name} to decide after decode steps, as it has them computed "
            f"again, found {quoted(action.when)}; add When.STEP"
        )
    if action.tokens is Tokens.ANY and action.when != {When.PROMPT}:
        raise PolicyError(
            f"{where}: expected {name} to decide after a prompt alone, as it does so about rows of "
            f"all kinds, found {quoted(action.when)}; make two actions of it"
        )
    if When.EMBEDDED in action.when and (len(action.when) > 1 or action.tokens is not Tokens.IMAGE):
        raise PolicyError(
            f"{where}: expected {name} to decide about image tokens and nothing later, as it does "
            f"so before the first layer, found {quoted(action.when)} and {quoted(action.tokens)}; "
            "make two actions of it"
        )
    action.check(splits, where)


def _check_between(action: Action, where: str) -> None:
    name = type(action).__name__
    if not isinstance(action.before, int):
        raise PolicyError(
            f"{where}: expected {name} to say before which layer it decides, found "
            f"{quoted(action.before)}; define its property before"
        )
    if action.tokens is not Tokens.IMAGE:
        raise PolicyError(
            f"{where}: expected {name} to be about image tokens, as it decides between two "
            f"layers, found {quoted(action.tokens)}; text is evicted after a prompt or a step"
        )


def check_splits(
    actions: Sequence[Action], splits: Sequence[int], layers: int | None, where: str
) -> None:
    """Refuse actions between layers after which the decoder, of `layers` of them, is not split.

    Raises:
        PolicyError: it is not split there, or cannot be.
    """
    wanted = {one.before for one in actions if When.BETWEEN in one.when and one.before is not None}
    beyond = sorted(layer for layer in wanted if layers is not None and layer >= layers)
    if layers == 1 and wanted:
        raise PolicyError(
            f"{where}: expected a decoder of two layers at least, as tokens are dropped between "
            "them, found one; use a policy that drops none there, as avl"
        )
    if layers is not None and beyond:
        raise PolicyError(
            f"{where}: expected to drop tokens after a layer from 1 to {layers - 1} of this "
            f"decoder's {layers}, found {', '.join(map(str, beyond))}; choose another"
        )
    if missing := sorted(wanted.difference(splits)):
        named = f"layer{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        found = ", ".join(map(str, splits)) or "no layer"
        raise PolicyError(
            f"{where}: expected a package split after {named}, found splits after {found}; export "
            f"with --split {','.join(map(str, sorted(wanted.union(splits))))}"
        )


def check_together(actions: Sequence[Action], where: str) -> None:
    """Refuse actions that contradict each other.

    Raises:
        PolicyError: two decide the same, one wants more image tokens than those before it leave,
            they are not in the order of time, or nothing parks the rows that one reads.
    """
    decided = set()
    for action in actions:
        decision = (action.decides, frozenset(action.when), action.before)
        if decision in decided:
            raise PolicyError(
                f"{where}: expected each decision once, found two actions that say "
                f"{action.decides}; leave one out"
            )
        decided.add(decision)
    check_alone(actions, where)
    check_raters(actions, where)
    check_evened(actions, where)
    choosing = [action for action in actions if action.tokens is Tokens.IMAGE]
    left = 1.0
    for index, action in enumerate(choosing):
        name = type(action).__name__
        if index and moment(action) < moment(choosing[index - 1]):
            raise PolicyError(
                f"{where}: expected actions in the order of time, found {name} behind "
                f"{type(choosing[index - 1]).__name__}, which decides later; give it first"
            )
        if left < action.wants < 1:
            raise PolicyError(
                f"{where}: expected {name} to choose at most the {left} of the image tokens that "
                f"actions before it leave, found {action.wants}; lower it, or have them leave more"
            )
        left = min(left, action.share)
        if When.STEP in action.when and action.reads_parked and not any(map(_parks, choosing)):
            raise PolicyError(
                f"{where}: expected an action that parks rows for {name} to read, as Divide does "
                f"after a prompt, found none; add one, or leave {name} out"
            )


def check_evened(actions: Sequence[Action], where: str) -> None:
    """Refuse parked rows where heads count tokens differently: graphs bias those for all alike.

    Raises:
        PolicyError: there are both.
    """
    evening = next((one for one in actions if one.evens), None)
    reading = next((one for one in actions if one.reads_parked), None)
    if evening is not None and reading is not None:
        raise PolicyError(
            f"{where}: expected a policy that parks no rows beside {type(evening).__name__}, which "
            f"has each head count them in its own way, found {type(reading).__name__}; leave one "
            "of the two out"
        )


def check_raters(actions: Sequence[Action], where: str) -> None:
    """Refuse raters where text is evicted: graphs tell the attention of two sets of rows alone.

    Raises:
        PolicyError: there are both.
    """
    rating = next((one for one in actions if one.rates), None)
    evicting = next((one for one in actions if one.tokens is Tokens.TEXT), None)
    if rating is not None and evicting is not None:
        raise PolicyError(
            f"{where}: expected a policy that evicts no text beside {type(rating).__name__}, which "
            f"ranks by some of the prompt's rows, found {type(evicting).__name__}; leave one of "
            "the two out"
        )


def check_alone(actions: Sequence[Action], where: str) -> None:
    """Refuse what decides about cached rows beside an action that decides about all of them.

    Heads of a layer may hold different rows behind such a one.

    Raises:
        PolicyError: there is something.
    """
    behind = [one for one in actions if max(one.when) > When.BETWEEN and one.moves]
    for action in behind:
        if action.tokens is Tokens.ANY and len(behind) > 1:
            other = next(one for one in behind if one is not action)
            raise PolicyError(
                f"{where}: expected {type(action).__name__}, which says {action.decides}, to be "
                f"all that decides about cached rows, found {type(other).__name__} too; leave one "
                "of the two out"
            )


def _parks(action: Action) -> bool:
    """Whether an action may park rows while none are parked, when those that read them rest."""
    if When.PROMPT in action.when:
        return True
    return When.STEP in action.when and action.moves and not action.reads_parked


def check_drafts(actions: Sequence[Action], where: str) -> None:
    """Refuse actions under which tokens drafted by active rows could not be checked.

    Raises:
        PolicyError: one evicts text, has steps computed again, or decides after some steps only,
            or without parked rows.
    """
    for action in actions:
        name = type(action).__name__
        if action.tokens is Tokens.TEXT:
            raise PolicyError(
                f"{where}: expected a policy that drops no text, as drafts are taken back, found "
                f"{name}; leave it out"
            )
        if action.weighs:
            raise PolicyError(
                f"{where}: expected steps that are computed once, as drafts are checked many at a "
                f"time, found {name}, which has some computed again; leave one of the two out"
            )
        steps = range(1, MOST_ROWS + 1)
        if When.STEP in action.when and not (action.reads_parked and all(map(action.due, steps))):
            raise PolicyError(
                f"{where}: expected every step to read all rows, as drafts are checked by them, "
                f"found {name}, which decides otherwise; leave one of the two out"
            )
