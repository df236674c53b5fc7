"""Image tokens are chosen before the decoder: what is not chosen, it is never given."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.sharing import on_threads
from avl_plugins.errors import PolicyError
from avl_plugins.policies import DROPPED, PARKED, Action, Picture, View
from avl_runtime.generate.choices import checked
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
    threads: int,
) -> Generator[None, None, PromptRows]:
    """The rows of a prompt that actions leave before the first layer; stops behind each picture.

    Positions stay those of the whole prompt, unless an action closes them up, or has rows that
    become means move.

    Args:
        rows: all of the prompt.
        actions: those that decide then.
        question: [m, C], embeddings of the text that the user said last. Rows have as many columns,
            and behind them what layers read of a token by themselves.
        before: pictures and videos that the conversation has before the prompt.
        threads: that a choice may take.

    Raises:
        PolicyError: an action answers what cannot be.
    """
    hidden, deepstack = rows.hidden.copy(), rows.deepstack.copy()
    position_ids = rows.position_ids.copy()
    arrays = hidden, deepstack, position_ids
    stays, counts = np.ones(len(rows.token_ids), np.bool_), rows.counts.copy()
    for number, (media, at) in enumerate(prompt.places(), before):
        stays[at] = False
        tokens = np.arange(len(at))
        for action in actions:
            features = hidden[at[tokens], : question.shape[1]]
            given = features, rows.attention[at[tokens]]
            seen = _picture(media, given, tokens, question, number)
            with on_threads(threads):
                left = _left(action, seen, arrays, at[tokens], counts)
            tokens = tokens[left]
        stays[at[tokens]] = True
        yield
    chosen = np.flatnonzero(stays)
    rows = replace(rows, position_ids=position_ids)
    if any(action.closes_up for action in actions):
        rows = _closed_up(rows, [at for _, at in prompt.places()], stays)
    return replace(
        rows,
        hidden=hidden[chosen],
        deepstack=deepstack[:, chosen],
        position_ids=rows.position_ids[:, chosen],
        ends=None if rows.ends is None else rows.ends[chosen],
        chosen=chosen,
        standing_for=counts[chosen],
        attention=rows.attention[:0],
    )


def _closed_up(
    rows: PromptRows, pictures: Sequence[Indices], stays: NDArray[np.bool_]
) -> PromptRows:
    """The rows [N] with RoPE positions as if what does not stay had never taken any.

    In each run of adjacent tokens of a picture, on each axis of positions: a position at which no
    token stays is taken out, and those behind it move up. Text behind a run follows its largest
    position as it did, so that where all stay nothing changes.

    Args:
        pictures: the numbers of each one's tokens.
    """
    before, moved = rows.position_ids, 0
    positions, behind = before.copy(), np.append(before.min(0), rows.next_position)
    shift = np.zeros(before.shape[1] + 1, np.int64)  # how far text moves up
    for at in pictures:
        for run in np.split(at, np.flatnonzero(np.diff(at) != 1) + 1):
            closed = np.stack([_axis(one, stays[run]) for one in before[:, run]])
            positions[:, run] = closed - moved
            # Times of a long video may pass the text behind it, which goes by the other axes.
            axes = before[:, run].max(1) < behind[run[-1] + 1]
            left = closed[axes][:, stays[run]]
            end = int(left.max()) if left.size else int(before[:, run].min()) - 1
            moved += int(before[axes][:, run].max()) - end
            shift[run[-1] + 1 :] = moved
    text = ~rows.image_mask
    positions[:, text] -= shift[:-1][text]
    return replace(rows, position_ids=positions, next_position=int(positions[:, stays].max()) + 1)


def _axis(positions: Indices, stays: NDArray[np.bool_]) -> Indices:
    """Positions [n] on one axis without those at which no token stays."""
    taken, which = np.unique(positions, return_inverse=True)
    held = np.zeros(len(taken), np.bool_)
    held[which[stays]] = True
    steps = np.diff(taken, append=taken[-1] + 1)  # from each to the next
    gone = np.cumsum(np.where(held, 0, steps)) - np.where(held, 0, steps)
    closed: Indices = positions - gone[which]
    return closed


def _picture(
    media: Media,
    given: tuple[Values, NDArray[np.float32]],
    tokens: Indices,
    question: NDArray[np.float32],
    number: int,
) -> Picture:
    features, attention = given
    places = media.cells.places[:, tokens]
    wide = features.astype(np.float32, copy=False)
    return Picture(wide, question, places, number, media.kind == "video", attention)


def _left(
    action: Action,
    seen: Picture,
    rows: tuple[Values, Values, Indices],
    at: Indices,
    counts: Indices,
) -> NDArray[np.int64]:
    """The numbers of a picture's tokens that an action leaves; rows that become means are written.

    Args:
        rows: hidden [N, C], deepstack [K, N, C] and positions [axes, N] of the prompt, where `at`
            are the picture's.
        counts: [N], how many tokens each stands for; written where rows become means.
    """
    count = len(at)
    view = View(np.arange(count), np.zeros(count, np.float32), 0, None, count, seen)
    found, groups = action.merged(view)
    fates = checked(action, found, view)
    if (fates == PARKED).any():
        raise PolicyError(
            f"{type(action).__name__}: expected ACTIVE or DROPPED for each token before the first "
            "layer, where no rows are that could be parked, found PARKED; mend the action"
        )
    left = np.flatnonzero(fates != DROPPED)
    if groups is not None:
        hidden, deepstack, positions = rows
        into = _places(action, groups, count, left)
        hidden[at[left]] = _means(hidden[at], into, len(left))
        for layer in deepstack:
            layer[at[left]] = _means(layer[at], into, len(left))
        if action.at_medians:
            for axis in positions:
                axis[at[left]] = _medians(axis[at], into)
        counts[at[left]] = np.bincount(into[into >= 0], counts[at[into >= 0]])
    return left


def _places(action: Action, groups: Indices, count: int, left: Indices) -> Indices:
    """[count]: the place in `left` of the row into which each row is averaged, -1: none.

    Raises:
        PolicyError: an action, which somebody else may have written, says what cannot be.
    """
    place = np.full(count + 1, -1)
    place[left] = np.arange(len(left))
    fits = groups.shape == (count,) and groups.dtype.kind == "i"
    if not fits or (groups >= count).any() or (groups < -1).any():
        raise _unfit(action, count)
    into = place[groups]  # -1 is the last place, which is in no group
    if (into[groups >= 0] < 0).any() or (into[left] != np.arange(len(left))).any():
        raise _unfit(action, count)
    return into


def _means(rows: Values, into: Indices, count: int) -> Values:
    """[count, C]: the mean of those of the rows [n, C] that go `into` each."""
    order = into.argsort(kind="stable")[np.count_nonzero(into < 0) :]
    counts = np.bincount(into[order], minlength=count)
    begins = np.cumsum(counts) - counts
    means: Values = rows[order[begins]]
    for place in np.flatnonzero(counts > 1):
        some = order[begins[place] : begins[place] + counts[place]]
        means[place] = rows[some].mean(0, dtype=np.float64)
    return means


def _medians(positions: Indices, into: Indices) -> Indices:
    """The median of those of the positions [n] that go `into` each, of two the lower one."""
    order = np.lexsort((positions, into))[np.count_nonzero(into < 0) :]
    sizes = np.bincount(into[order])
    medians: Indices = positions[order[np.cumsum(sizes) - sizes + (sizes - 1) // 2]]
    return medians


def _unfit(action: Action, count: int) -> PolicyError:
    return PolicyError(
        f"{type(action).__name__}: expected for each of {count} tokens one that stays, or -1, from "
        "merged(), and for each that stays itself, found otherwise; mend the action"
    )
