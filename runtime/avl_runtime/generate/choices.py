"""Actions are asked, and rows put where they say, of one sequence and one segment at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies import ACTIVE, DROPPED, PARKED, Action, Tokens, View
from avl_runtime.generate.sequence import Sequence
from avl_runtime.kv import sight
from avl_runtime.kv.by_layer import Layers, alike
from avl_runtime.kv.cache import Floats, Ints, SegmentCache
from avl_runtime.kv.moves import evict, exchange, place


def goes_on(
    sequence: Sequence, action: Action, positions: Ints, mass: Floats, layer: int, images: int
) -> Ints:
    """Indices into `positions` of a prompt's rows that go on to `layer`: all text, some images.

    Args:
        positions: [n] of the prompt's rows.
        mass: [tokens so far], the last row's attention in the last layer before that has rows.
        images: image tokens of the whole prompt that the decoder was given.
    """
    image = sequence.image_mask[positions]
    where = np.flatnonzero(image)
    stay = ~image
    if len(where):
        at = positions[where]
        view = View(at, mass[at], layer, None, images)
        stay[where] = asked(action, view) != DROPPED
    return np.flatnonzero(stay)


def after_prompt(sequence: Sequence, cache: SegmentCache, action: Action, mass: Floats) -> None:
    """Let an action decide about all of a segment's rows.

    Args:
        mass: [L, tokens so far], the last row's attention; [L, 0] if nobody asked for it.
    """
    if action.tokens is Tokens.TEXT:
        _evict_text(sequence, cache, action)
    elif action.tokens is Tokens.IMAGE and sequence.image_tokens:
        _place_images(sequence, cache, action, mass, 0)


def after_step(
    sequence: Sequence,
    cache: SegmentCache,
    action: Action,
    masses: sight.Masses | None,
    of: int | None = None,
) -> None:
    """Let an action that is about images decide about a segment's rows, after a decode step.

    Args:
        masses: of the step, whose own rows the cache does not hold yet; None if its ranking does
            not read attention.
        of: the sequence in `masses`; None where they are of all that decode.
    """
    seq = sequence.seq
    if not sequence.image_tokens:
        return
    if not cache.parked_len[:, seq].any():
        if not action.reads_parked:
            mass = np.zeros((cache.layers, 0), np.float32)
            if masses is not None:
                new = np.array([sequence.length - 1])
                mass = sight.by_position(
                    cache, seq, masses, new, sequence.length, seq if of is None else of
                )
            _place_images(sequence, cache, action, mass, sequence.step)
        return
    core = cache.image_rows[:, seq]
    seen = list(sight.core_and_parked(cache, seq, masses, of))
    chosen = []
    for (first, last), positions, attention in seen:
        layer = cache.numbers[first]
        view = View(positions, attention, layer, sequence.step, sequence.image_tokens)
        chosen.append(((first, last), positions, asked(action, view)))
    if all(
        not (fates == DROPPED).any() and ((fates == ACTIVE).sum(1) == core[first:last]).all()
        for (first, last), _, fates in chosen
    ):
        for (first, _), _, fates in chosen:
            front = int(core[first])
            exchange(cache, seq, fates[:, :front] == PARKED, fates[:, front:] == ACTIVE, first)
    else:
        place(cache, seq, _by_position(sequence, cache, chosen), sequence.image_mask)
    sequence.settled = sequence.length


def text_after_step(sequence: Sequence, cache: SegmentCache, actions: Iterable[Action]) -> None:
    """Let actions that are about text decide, after a step whose row the cache holds."""
    for action in actions:
        _evict_text(sequence, cache, action)


def _place_images(
    sequence: Sequence,
    cache: SegmentCache,
    action: Action,
    mass: Floats,
    step: int,
) -> None:
    chosen = []
    for (first, last), positions in sight.images(cache, sequence.seq, sequence.image_mask):
        attention = np.zeros(positions.shape, np.float32)
        if mass.shape[1]:
            attention = np.take_along_axis(mass[first:last], positions, 1)
        layer = cache.numbers[first]
        view = View(positions, attention, layer, step, sequence.image_tokens)
        chosen.append(((first, last), positions, asked(action, view)))
    place(cache, sequence.seq, _by_position(sequence, cache, chosen), sequence.image_mask)
    sequence.settled = sequence.length


def asked(action: Action, view: View) -> NDArray[np.int8]:
    """What an action chooses, which somebody else may have written.

    Raises:
        PolicyError: that are no fates of the rows.
    """
    return checked(action, action.choose(view), view)


def checked(action: Action, fates: NDArray[np.int8], view: View) -> NDArray[np.int8]:
    """What an action has chosen.

    Raises:
        PolicyError: that are no fates of the rows of `view`.
    """
    found = getattr(fates, "shape", None), getattr(fates, "dtype", type(fates))
    if found != (view.positions.shape, np.int8):
        raise PolicyError(
            f"{type(action).__name__}: expected int8 {view.positions.shape} from choose(), a fate "
            f"for each row, found {found[1]} {found[0] or ''}; mend the action"
        )
    if fates.size and fates.view(np.uint8).max() > DROPPED:
        raise PolicyError(
            f"{type(action).__name__}: expected ACTIVE, PARKED or DROPPED for each row, found "
            "other numbers; mend the action"
        )
    return fates


def _limit(action: Action, total: int) -> int | None:
    """How many text rows an action says may stay.

    Raises:
        PolicyError: it says something else.
    """
    limit = action.limit(total)
    if limit is None or (type(limit) is int and limit >= 0):
        return limit
    if isinstance(limit, np.integer) and limit >= 0:
        return int(limit)
    raise PolicyError(
        f"{type(action).__name__}: expected a whole number of at least 0 from limit(), or None, "
        f"found {quoted(limit)}; mend the action"
    )


def _by_position(
    sequence: Sequence,
    cache: SegmentCache,
    chosen: Iterable[tuple[Layers, Ints, NDArray[np.int8]]],
) -> NDArray[np.int8]:
    """Fates [L, tokens so far]; of text ACTIVE."""
    found = np.full((cache.layers, sequence.length), ACTIVE, np.int8)
    for (first, last), positions, fates in chosen:
        np.put_along_axis(found[first:last], positions, fates, 1)
    return found


def _evict_text(sequence: Sequence, cache: SegmentCache, action: Action) -> None:
    """Bring a sequence down to its text budget, each KV head of each layer for itself."""
    seq, total = sequence.seq, sequence.text_after_image
    limit = _limit(action, total)
    seen = sight.text(cache, seq, sequence.evictable_mask, limit)
    for (first, last), slots, positions, mass in seen:
        view = View(positions, mass, cache.numbers[first], sequence.step, total)
        # Few rows go: by their indices everything else is cheap.
        gone = np.flatnonzero(asked(action, view) != ACTIVE)
        heads, rows = slots.shape[1:]
        of_head = np.bincount(gone // max(1, rows), minlength=(last - first) * heads)
        counts = of_head.reshape(-1, heads).tolist()
        if any(min(each) != max(each) for each in counts):
            raise PolicyError(
                f"{type(action).__name__}: expected the KV heads of a layer to drop as many text "
                "rows as one another, found otherwise; mend the action"
            )
        dropped = slots.take(gone)
        for begin, end in alike([each[0] for each in counts]):
            count = counts[begin][0]
            size = (end - begin) * heads * count
            if size:
                mine, dropped = dropped[:size], dropped[size:]
                evict(cache, seq, mine.reshape(end - begin, heads, count), first + begin)
                sequence.settled = sequence.length
