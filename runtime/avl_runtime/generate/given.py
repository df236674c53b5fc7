"""Image tokens are chosen before the decoder: what is not chosen, it is never given."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import PolicyError
from avl_plugins.policies import DROPPED, PARKED, Action, Picture, View
from avl_runtime.generate.choices import asked
from avl_runtime.prompts.prompt import Prompt
from avl_runtime.prompts.rows import PromptRows
from avl_runtime.vision import Media

Indices = NDArray[np.int64]
Values = NDArray[np.floating]


def choose(
    rows: PromptRows,
    prompt: Prompt,
    actions: Sequence[Action],
    question: NDArray[np.float32],
    before: int,
) -> Generator[None, None, PromptRows]:
    """The rows of a prompt that actions leave before the first layer; stops behind each picture.

    Positions stay those of the whole prompt.

    Args:
        rows: all of the prompt.
        actions: those that decide then.
        question: [m, C], embeddings of the text that the user said last.
        before: pictures and videos that the conversation has before the prompt.

    Raises:
        PolicyError: an action answers what cannot be.
    """
    hidden, deepstack = rows.hidden.copy(), rows.deepstack.copy()
    stays = np.ones(len(rows.token_ids), np.bool_)
    for number, (media, at) in enumerate(prompt.places(), before):
        stays[at] = False
        tokens = np.arange(len(at))
        for action in actions:
            seen = _picture(media, hidden[at[tokens]], tokens, question, number)
            tokens = tokens[_left(action, seen, (hidden, deepstack), at[tokens])]
        stays[at[tokens]] = True
        yield
    chosen = np.flatnonzero(stays)
    return replace(
        rows,
        hidden=hidden[chosen],
        deepstack=deepstack[:, chosen],
        position_ids=rows.position_ids[:, chosen],
        ends=None if rows.ends is None else rows.ends[chosen],
        chosen=chosen,
    )


def _picture(
    media: Media, features: Values, tokens: Indices, question: NDArray[np.float32], number: int
) -> Picture:
    places = media.cells.places[:, tokens]
    wide = features.astype(np.float32, copy=False)
    return Picture(wide, question, places, number, media.kind == "video")


def _left(
    action: Action, seen: Picture, rows: tuple[Values, Values], at: Indices
) -> NDArray[np.int64]:
    """The numbers of a picture's tokens that an action leaves; rows that become means are written.

    Args:
        rows: hidden [N, C] and deepstack [K, N, C] of the prompt, where `at` are the picture's.
    """
    count = len(at)
    view = View(np.arange(count), np.zeros(count, np.float32), 0, None, count, seen)
    fates = asked(action, view)
    if (fates == PARKED).any():
        raise PolicyError(
            f"{type(action).__name__}: expected ACTIVE or DROPPED for each token before the first "
            "layer, where no rows are that could be parked, found PARKED; mend the action"
        )
    left = np.flatnonzero(fates != DROPPED)
    groups = action.groups(view, fates)
    if groups is not None:
        hidden, deepstack = rows
        hidden[at[left]] = _means(action, hidden[at], groups, left)
        for layer in deepstack:
            layer[at[left]] = _means(action, layer[at], groups, left)
    return left


def _means(action: Action, rows: Values, groups: Indices, left: Indices) -> Values:
    """[left, C]: of rows [n, C], the mean of each that is left and those that join it."""
    place = np.full(len(rows) + 1, -1)
    place[left] = np.arange(len(left))
    fits = groups.shape == (len(rows),) and groups.dtype.kind == "i"
    if not fits or (groups >= len(rows)).any() or (groups < -1).any():
        raise _unfit(action, len(rows))
    into = place[groups]  # -1 is the last place, which is in no group
    if (into[groups >= 0] < 0).any() or (into[left] != np.arange(len(left))).any():
        raise _unfit(action, len(rows))
    sums = np.zeros((len(left), rows.shape[1]), np.float64)
    np.add.at(sums, into[into >= 0], rows[into >= 0])
    counts = np.bincount(into[into >= 0], minlength=len(left))
    means: Values = (sums / counts[:, None]).astype(rows.dtype)
    return means


def _unfit(action: Action, count: int) -> PolicyError:
    return PolicyError(
        f"{type(action).__name__}: expected for each of {count} tokens one that stays, or -1, from "
        "groups(), and for each that stays itself, found otherwise; mend the action"
    )
