"""Attention of a prompt's probes, and what actions about rows of all kinds decide by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies import ACTIVE, Action, Tokens, View
from avl_runtime.generate.choices import checked
from avl_runtime.generate.sequence import Sequence
from avl_runtime.kv import sight
from avl_runtime.kv.cache import Ints, SegmentCache
from avl_runtime.kv.moves import evict, merge


def probing(sequence: Sequence, positions: Ints) -> Probed | None:
    """What collects attention for a policy that asks for it, of a prompt's rows [n]."""
    for action in sequence.actions:
        if action.tokens is Tokens.ANY:
            return Probed(sequence, action, positions)
    return None


def probes_of(action: Action, positions: Ints, image: NDArray[np.bool_]) -> Ints:
    """The probes that an action, which somebody else may have written, asks for.

    Raises:
        PolicyError: they are not some of the prompt's rows.
    """
    return some_of(positions, action.probes(positions, image), action, "probes")


def some_of(positions: Ints, found: object, action: Action, method: str, fewest: int = 0) -> Ints:
    """What a method of an action, which somebody else may have written, tells of a prompt.

    Raises:
        PolicyError: they are not an ascending array of at least `fewest` of `positions`.
    """
    if (
        not isinstance(found, np.ndarray)
        or found.ndim != 1
        or found.dtype.kind != "i"
        or len(found) < fewest
        or not np.isin(found, positions).all()
        or not (np.diff(found) > 0).all()
    ):
        raise PolicyError(
            f"{type(action).__name__}: expected some of a prompt's {len(positions)} positions from "
            f"{method}(), an ascending array, found {quoted(found)}; mend the action"
        )
    return found.astype(np.int64)


def merging_of(
    action: Action, view: View, chosen: NDArray[np.int8]
) -> tuple[Ints, NDArray[np.floating]]:
    """Which rows an action, which somebody else may have written, merges: [Hkv, n] each.

    Raises:
        PolicyError: it says of a row what cannot be done.
    """
    name, shape = type(action).__name__, view.positions.shape
    into, times = action.merging(view, chosen)
    for found, kind, of in ((into, "i", "int64"), (times, "f", "float")):
        if getattr(found, "shape", None) != shape or found.dtype.kind != kind:
            raise PolicyError(
                f"{name}: expected {of} {shape} from merging(), a number for each row, found "
                f"{quoted(found)}; mend the action"
            )
    ends, stays = into[0], chosen[0] == ACTIVE
    known = (ends >= 0) & (ends < shape[-1])
    may = known & np.take_along_axis(stays, np.where(known, ends, 0), 1)
    may &= ~stays | (ends == np.arange(shape[-1]))
    if not (may | (ends == -1)).all() or not np.isfinite(times).all():
        raise PolicyError(
            f"{name}: expected each row to be merged into one that stays, or if it stays itself, "
            "or into none, a finite number of times, found otherwise; mend the action"
        )
    return ends, times[0]


class Probed:
    """Attention of a prompt's probes on all tokens so far, while it is read.

    Attributes:
        probes: [p], their positions.
    """

    def __init__(self, sequence: Sequence, action: Action, positions: Ints) -> None:
        """
        Raises:
            PolicyError: the action asks for probes that are not there.
        """
        self._sequence, self._action = sequence, action
        self.probes = probes_of(action, positions, sequence.image_mask[positions])
        self._found: list[NDArray[np.float32]] = []  # of each segment [L, Hkv, tokens so far]
        self._ran: list[Ints] = []  # probes that each segment was given

    def begin(self, cache: SegmentCache, positions: Ints) -> None:
        """A segment is about to read a prompt's rows at `positions`."""
        shape = cache.layers, cache.positions.shape[2], self._sequence.length
        self._found.append(np.zeros(shape, np.float32))
        self._ran.append(self.probes[np.isin(self.probes, positions)])

    def weights(self, positions: Ints) -> NDArray[np.float32]:
        """[n], 1 for each probe among rows."""
        return np.isin(positions, self.probes).astype(np.float32)

    def note(self, cache: SegmentCache, masses: sight.Masses, positions: Ints) -> None:
        """A run over rows at `positions`, some of them probes, has given this attention."""
        sight.add_by_position(self._found[-1], cache, self._sequence.seq, masses, positions)

    def decide(self) -> None:
        """Let the action decide about the rows of all segments, which have read the prompt."""
        sequence, action = self._sequence, self._action
        total = sequence.length - int(sequence.image_mask.sum()) + sequence.image_tokens
        places, views = [], []
        for cache, found, ran in zip(sequence.caches, self._found, self._ran, strict=True):
            for layer, slots, positions in sight.any_rows(cache, sequence.seq):
                attention = np.take_along_axis(found[layer], positions, 1)
                number = cache.numbers[layer]
                both = positions[None], attention[None]
                image = sequence.image_mask[positions][None]
                views.append(View(*both, number, 0, total, probes=ran, image=image))
                places.append((cache, layer, slots))
        if not views:
            return
        chosen = action.choose_layers(views)
        for view, (cache, layer, slots), fates in zip(views, places, chosen, strict=True):
            gone = checked(action, fates, view)[0] != ACTIVE
            counts = gone.sum(1)
            if counts.min() != counts.max():
                raise PolicyError(
                    f"{type(action).__name__}: expected the KV heads of a layer to keep as many "
                    "rows as one another, found otherwise; mend the action"
                )
            if counts[0]:
                if action.merges:
                    shown = replace(view, keys=sight.keys(cache, sequence.seq, layer, slots))
                    into, times = merging_of(action, shown, fates)
                    merge(cache, sequence.seq, layer, slots, into, times)
                dropped = np.sort(slots[gone].reshape(len(slots), -1), 1)
                evict(cache, sequence.seq, dropped[None], layer)
        for cache in sequence.caches:
            cache.settle()
