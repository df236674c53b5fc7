"""Where tokens stand, by which RESTORE biases attention (arXiv 2606.01711).

Of each token of a conversation Z = axes + 1 numbers (`schema.STANDING_BIAS`): its position on each
axis of RoPE, and how many tokens it stands for: 1, or more where rows have become means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from avl_plugins.policies import Action, Tokens
from avl_runtime.kv.cache import Ints, SegmentCache

Doubles = NDArray[np.float64]

# What a token counts as where others count as fractions of one: to a row's attention ratios alone
# matter, and sums with its logarithm, 14, cost no digit that counts.
UNIT = 2**20
NONE: Mapping[int, float] = MappingProxyType({})


class TokenStanding:
    """Of each token of one conversation, where it stands, and how much it counts beside that.

    Attributes:
        factors: [L, Hkv, n], as how many the first n tokens count beside in L layers, and those
            behind as one; None: all as one.
    """

    def __init__(self, axes: int) -> None:
        self._rows: Ints = np.zeros((256, axes + 1), np.int64)
        self.factors: Doubles | None = None

    def grow(
        self, start: int, count: int, position: int, given: Ints | None, standing: Ints | None
    ) -> None:
        """Know of `count` tokens from number `start` on where they stand.

        Args:
            position: of the first one, if they are text.
            given: which of them have rows; None: all.
            standing: [given, Z]; None: they are text.
        """
        while start + count > len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        if standing is None:
            standing = np.ones((count, self._rows.shape[1]), np.int64)
            standing[:, :-1] = position + np.arange(count)[:, None]
        self._rows[start + (np.arange(count) if given is None else given)] = standing

    def first(self, count: int) -> Ints:
        """[count, Z], of the first tokens."""
        return self._rows[:count]

    def together(self, count: int) -> Ints:
        """[count, Z], of so many tokens that all stand in one place."""
        found = np.zeros((count, self._rows.shape[1]), np.int64)
        found[:, -1] = 1
        return found

    def even(self, start: int, factors: Doubles) -> None:
        """Tokens from number `start` on count as so many, [L, Hkv, tokens], those behind as one.

        Args:
            factors: for the decoder's first L layers (`Action.evened`).
        """
        found = np.ones((*factors.shape[:2], start + factors.shape[2]))
        if self.factors is not None:
            known = self.factors[:, :, :start]
            found[:, :, : known.shape[2]] = known
        found[:, :, start:] = factors
        self.factors = found

    def cut(self, length: int) -> None:
        """Tokens from number `length` on count as one each."""
        if self.factors is not None:
            self.factors = self.factors[:, :, :length]

    def copy(self) -> TokenStanding:
        """One of the same tokens, which grows by itself."""
        other = TokenStanding.__new__(TokenStanding)
        other._rows, other.factors = self._rows.copy(), self.factors
        return other


class Stood(Protocol):
    """What is asked of a sequence."""

    @property
    def actions(self) -> Sequence[Action]: ...

    @property
    def image_mask(self) -> NDArray[np.bool_]:
        """[tokens so far], which positions hold image tokens."""
        ...

    @property
    def standing(self) -> Ints | None:
        """[tokens so far, Z]; None: its attention is not biased."""
        ...

    @property
    def stands(self) -> TokenStanding: ...


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """What is known of the tokens of B sequences, of which one at least has its attention biased.

    Attributes:
        tokens: of each sequence [tokens so far, Z]; None where no attention is biased.
        unlike: whether KV heads of a layer may hold other rows than one another.
        counts: of each sequence [L, Hkv, tokens so far], how many tokens each stands for in the
            decoder's first L layers, where no rows are parked; None: as `tokens` says.
        together: of each sequence, whether its tokens all stand in one place.
        units: of each sequence, how many tokens one of text stands for.
    """

    tokens: Sequence[Ints | None]
    unlike: bool
    counts: Sequence[Ints | None]
    together: Sequence[bool]
    units: Sequence[int]

    @property
    def width(self) -> int:
        """Z."""
        widths = [one.shape[1] for one in self.tokens if one is not None]
        return int(widths[0])

    def of_new(self, positions: Ints, position_ids: Ints) -> Ints:
        """[B, S, Z] of new rows, zeros where no attention is biased.

        Args:
            positions: [B, S] in the conversations. What is behind a conversation's tokens is text.
            position_ids: [B, S], of text on each axis of RoPE.
        """
        found = np.zeros((*positions.shape, self.width), np.int64)
        for seq, (to, tokens, at) in enumerate(zip(found, self.tokens, positions, strict=True)):
            if tokens is not None:
                to[:, :-1] = 0 if self.together[seq] else position_ids[seq][:, None]
                to[:, -1] = self.units[seq]
                known = at < len(tokens)
                to[known] = tokens[at[known]]
        return found

    def of_cached(self, cache: SegmentCache, apart: bool) -> Iterator[tuple[Ints, Ints]]:
        """Of each layer's active rows [B, F, A, Z] and parked ones [B, 1, P, Z]; F is Hkv or 1.

        Args:
            apart: whether parked rows are read; else P is 1, of a row that stands nowhere.
        """
        batch, heads = cache.positions.shape[1:3]
        width, counted = self.width, max(0 if one is None else len(one) for one in self.counts)
        for layer, number in enumerate(cache.numbers):
            differ = heads if self.unlike or number < counted else 1
            rooms = cache.k_active[layer].shape[2], cache.k_parked[layer].shape[2] if apart else 1
            active = np.zeros((batch, differ, rooms[0], width), np.int64)
            parked = np.zeros((batch, 1, rooms[1], width), np.int64)
            self.put(cache, layer, active, parked if apart else None)
            yield active, parked

    def put(
        self, cache: SegmentCache, layer: int, active: Ints, parked: Ints | None, first: int = 0
    ) -> None:
        """Write where a layer's rows stand; what is past a length, or not biased, stays as it is.

        Args:
            active, parked: [B, F, rows, Z] and [B, 1, rows, Z], at least as many as there are.
            first: of the cache's sequences, the one that is the first of these.
        """
        number = cache.numbers[layer]
        for seq, (tokens, counts) in enumerate(zip(self.tokens, self.counts, strict=True)):
            if tokens is not None:
                held = cache.active_len[layer, first + seq], cache.parked_len[layer, first + seq]
                at = cache.positions[layer, first + seq, : active.shape[1], : held[0]]
                # By far faster than by an index, as rows are short.
                active[seq, :, : held[0]] = tokens.take(at, 0)
                if counts is not None and number < len(counts):
                    heads, count = counts.shape[1:]
                    places = at + np.arange(0, heads * count, count)[:, None]
                    active[seq, :, : held[0], -1] = counts[number].take(places)
                if parked is not None:
                    at = cache.parked_positions[layer, first + seq, : held[1]]
                    parked[seq, 0, : held[1]] = tokens.take(at, 0)


def of_new(standing: Standing | None, positions: Ints, position_ids: Ints, axes: int) -> Ints:
    """As `Standing.of_new`; None: [B, S, axes + 1] zeros, as no attention is biased."""
    if standing is None:
        return np.zeros((*positions.shape, axes + 1), np.int64)
    return standing.of_new(positions, position_ids)


def standing_of(sequences: Sequence[Stood], weights: Mapping[int, float] = NONE) -> Standing | None:
    """Of sequences that run together; None where no attention is biased.

    Where a sequence's tokens count as more or fewer than they stand for and nothing else biases its
    attention, all of them stand in one place: there RESTORE's bias is the logarithm of that alone.

    Args:
        weights: as how many tokens, above 0, each image token of some sequences counts, by their
            numbers.
    """
    tokens = [each.standing for each in sequences]
    together, units = [one is None for one in tokens], [1] * len(tokens)
    counts: list[Ints | None] = [None] * len(tokens)
    for seq, each in enumerate(sequences):
        factors = each.stands.factors
        if factors is None and seq not in weights:
            continue
        image, stood = each.image_mask, tokens[seq]
        found = each.stands.together(len(image)) if stood is None else stood.copy()
        found[:, -1] *= np.where(image, round(weights.get(seq, 1) * UNIT), UNIT)
        tokens[seq], units[seq] = found, UNIT
        if factors is not None:
            counts[seq] = _multiplied(found[:, -1], factors)
    if all(one is None for one in tokens):
        return None
    differ = unlike(each.actions for each in sequences)
    return Standing(tokens, differ, counts, together, units)


def _multiplied(counts: Ints, factors: Doubles) -> Ints:
    """[L, Hkv, n], at least 1, of counts [n] and factors [L, Hkv, m], which are 1 from m on."""
    found = np.empty((*factors.shape[:2], len(counts)), np.int64)
    known = min(len(counts), factors.shape[2])
    found[:, :, known:] = counts[known:]
    found[:, :, :known] = np.maximum(1, np.rint(counts[:known] * factors[:, :, :known]))
    return found


def unlike(actions: Iterable[Sequence[Action]]) -> bool:
    """Whether KV heads may hold other rows than one another, by the actions of sequences."""
    return any(one.tokens is not Tokens.IMAGE for each in actions for one in each)
