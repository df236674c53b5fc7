"""One conversation as the decoder knows it: its tokens, its policy, and where its rows are."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError
from avl_plugins.policies import Action, Policy, Tokens, When
from avl_runtime.execute.protocol import Executor, PromptTooLongError
from avl_runtime.kv.cache import Ints, SegmentCache
from avl_runtime.kv.moves import roll_back
from avl_runtime.kv.sight import bytes_held
from avl_runtime.kv.standing import TokenStanding
from avl_runtime.kv.states import LayerStates
from avl_runtime.kv.window import leave_behind
from avl_runtime.package.manifest import Manifest
from avl_runtime.vision import Cells

NEVER = -1  # as the layer before which a token was dropped


class RollbackError(AvlError):
    """Rows cannot be taken back: a policy has moved rows since, for good."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """What tokens change of a sequence beside its rows."""

    length: int
    next_position: int
    first_image: int | None
    text_after_image: int
    step: int
    settled: int
    visuals: int
    image_tokens: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A sequence as it was before a prompt."""

    counts: _Counts
    caches: list[SegmentCache] = field(repr=False)


class Sequence:
    """Tokens so far and their cache. It belongs to nobody, or to one batch.

    Attributes:
        executor: where its rows lie.
        actions: what its policy decides, in the order of time.
        drafting: how tokens may be drafted by active rows alone, if its policy says so.
        evicts: whether an action ranks text rows, so that text rows' attention is counted.
        restores: whether attention is biased, once there is a picture.
        stands: where its tokens stand, and how much they count.
        caches: of each segment; shared with other sequences while it decodes in a batch.
        seq: its place in `caches`.
        token_ids: every token whose row has been computed, prompt and replies.
        next_position: RoPE position of the next token, which M-RoPE moves apart from `length`.
        visuals: what the tokens of each picture and video show, in order.
        text_after_image: text tokens behind the first image token, which a text budget counts.
        step: decode steps since the last prompt.
        again: those of them that were computed again, as an action weighs image tokens.
        settled: tokens that can no longer be taken back, as a policy has moved rows since.
        prefix_tokens: tokens of the last prompt whose rows an earlier one has left.
        image_tokens: those that the decoder was given; dropped since, too.
        images_read: image tokens of the last prompt that the decoder was given.
    """

    def __init__(self, executor: Executor, manifest: Manifest, policy: Policy) -> None:
        self.executor = executor
        self._manifest = manifest
        self.actions: tuple[Action, ...] = policy.actions()
        self.drafting = policy.drafting()
        self.evicts = any(action.tokens is Tokens.TEXT for action in self.actions)
        self.restores = any(action.restores for action in self.actions)
        self._at_steps = tuple(one for one in self.actions if When.STEP in one.when)
        self.caches: list[SegmentCache] = executor.new_caches()
        self.seq = 0
        self._modality, self._evictable = np.zeros(256, np.bool_), np.zeros(256, np.bool_)
        self._dropped = np.full(256, NEVER, np.int16)
        self.stands = TokenStanding(manifest.dims.position_axes)
        self._first_image: int | None = None
        self.text_after_image = 0
        self.next_position = 0
        self.visuals: list[Cells] = []
        self.token_ids: list[int] = []
        self.step = self.again = self.settled = 0
        self.prefix_tokens = self.image_tokens = self.images_read = 0

    @property
    def length(self) -> int:
        """Tokens so far, dropped ones included: the next token's position."""
        return len(self.token_ids)

    @property
    def image_mask(self) -> NDArray[np.bool_]:
        """[tokens so far], which positions hold image tokens."""
        return self._modality[: self.length]

    @property
    def images_dropped(self) -> NDArray[np.int16]:
        """[image tokens so far], before which layer a prompt dropped each, `NEVER`: none.

        0 is before the decoder, which was not given it.
        """
        return self._dropped[: self.length][self.image_mask]

    @property
    def standing(self) -> Ints | None:
        """[tokens so far, Z], where each stands (`kv.standing`); None: attention is not biased."""
        biased = self.restores and self._first_image is not None
        return self.stands.first(self.length) if biased else None

    @property
    def evictable_mask(self) -> NDArray[np.bool_]:
        """[tokens so far], which positions hold text behind the first image token."""
        return self._evictable[: self.length]

    @property
    def nbytes(self) -> int:
        """Bytes of the live planes, an equal share where a batch holds them."""
        return sum(cache.nbytes // cache.batch for cache in self.caches)

    def bytes_held(self) -> tuple[int, int]:
        """Bytes of its live active rows, and of its parked ones."""
        held = [bytes_held(cache, self.seq) for cache in self.caches]
        return sum(active for active, _ in held), sum(parked for _, parked in held)

    def row_bytes(self) -> tuple[int, int]:
        """Bytes of its live rows, room left out, and of those that dense attention would hold."""
        of_layers = iter(self.executor.row_bytes)
        held = dense = 0
        for cache in self.caches:
            lengths = (cache.active_len, cache.parked_len)
            rows = (one[:, self.seq].tolist() for one in lengths)
            for live, aside, window in zip(*rows, cache.windows, strict=True):
                active, parked = next(of_layers)
                held += live * active + aside * parked
                dense += active * (self.length if window is None else min(self.length, window))
        return held, dense

    def values_held(self) -> int:
        """Numbers in keys and values of all its rows."""
        dims, numbers = self._manifest.dims, 0
        for cache in self.caches:
            rows = (cache.active_len + cache.parked_len)[:, self.seq].tolist()
            numbers += sum(dims.head_size(n) * k for n, k in zip(cache.numbers, rows, strict=True))
        return 2 * dims.num_kv_heads * numbers

    def due(self) -> tuple[Action, ...]:
        """What decides after the step that `step` now counts."""
        return tuple([action for action in self._at_steps if action.due(self.step)])

    @property
    def moves_images(self) -> bool:
        """Whether the step that `step` now counts may move image tokens, where none is drafted."""
        images = any(action.tokens is Tokens.IMAGE and action.moves for action in self.due())
        return images and self.drafting is None

    def reads_parked(self, ahead: int = 0) -> bool:
        """Whether the step after `step`, or one further ahead, reads parked rows."""
        step = self.step + 1 + ahead
        return any(action.reads_parked and action.due(step) for action in self._at_steps)

    def undecided(self, most: int) -> int:
        """How many of the next `most` steps read the same rows, and move none."""
        reads = self.reads_parked()
        for ahead in range(most):
            step = self.step + 1 + ahead
            if any(action.moves and action.due(step) for action in self._at_steps):
                return ahead
            if self.reads_parked(ahead) != reads:
                return ahead
        return most

    def room_left(self) -> int:
        """Tokens that the context (RESTORE's positions, too) and the caches can still take."""
        taken = max(self.length, self.next_position if self.restores else 0)
        left, most = self._manifest.dims.max_positions - taken, self.executor.most_rows
        held = max(int(cache.active_len[:, self.seq].max()) for cache in self.caches)
        return left if most is None else min(left, most - held)

    def grow(
        self,
        token_ids: abc.Sequence[int],
        image_mask: NDArray[np.bool_] | None = None,
        advance: int | None = None,
        given: Ints | None = None,
        standing: Ints | None = None,
    ) -> None:
        """Count tokens as part of the conversation; the caller adds their rows.

        Args:
            image_mask: [N]; None for text only.
            advance: how far RoPE positions go on; None for one a token.
            given: which of them the decoder is given; None for all.
            standing: [given, Z], where these stand; None for text only.

        Raises:
            PromptTooLongError: the model's context is too short for them.
        """
        start, added = self.length, len(token_ids)
        if added > self._manifest.dims.max_positions - start:
            raise PromptTooLongError(
                f"expected at most {self._manifest.dims.max_positions} tokens in all (the model's "
                f"context), found {start + added}; shorten the prompt or use fewer images"
            )
        if self.restores:
            self.stands.grow(start, added, self.next_position, given, standing)
        while start + added > len(self._modality):
            self._modality = np.concatenate([self._modality, np.zeros_like(self._modality)])
            self._dropped = np.concatenate([self._dropped, np.full_like(self._dropped, NEVER)])
            later = np.full(len(self._evictable), self._first_image is not None)
            self._evictable = np.concatenate([self._evictable, later])
        if image_mask is not None:
            self._modality[start : start + added] = image_mask
            at = np.arange(added) if given is None else given
            self._dropped[start : start + added] = 0
            self._dropped[start + at] = NEVER
            self.images_read = int(np.count_nonzero(image_mask[at]))
            self.image_tokens += self.images_read
            if self._first_image is None and image_mask.any():
                self._first_image = start + int(image_mask.argmax())
        if self._first_image is not None:
            text_added = added
            if image_mask is not None:
                begin = max(start, self._first_image)
                text = ~image_mask[begin - start :]
                self._evictable[begin : start + added] = text
                # What comes later is text until it is found to be an image.
                self._evictable[start + added :] = True
                text_added = int(np.count_nonzero(text))
            self.text_after_image += text_added
        self.next_position += added if advance is None else advance
        self.token_ids.extend(token_ids)

    def leave_behind(self, cache: SegmentCache, position: int) -> None:
        """Drop rows of a segment that windows end before, as seen from the next row's position."""
        if self._manifest.reach.window is None:  # asked before every step
            return
        if leave_behind(cache, self.seq, position):
            self.settled = max(self.settled, position)

    def snapshot(self) -> Snapshot:
        """What `restore` goes back to, if a prompt fails."""
        return Snapshot(self._counts(), [cache.copy() for cache in self.caches])

    def restore(self, before: Snapshot) -> None:
        """Be as at a snapshot."""
        self.caches = before.caches
        self._recount(before.counts)

    def states(self) -> list[LayerStates]:
        """What layers with a state keep now, of each segment, for `roll_back`."""
        if not any(len(cache.states) for cache in self.caches):
            return []
        return [cache.states.copy().window(self.seq) for cache in self.caches]

    def roll_back(self, length: int, states: abc.Sequence[LayerStates] = ()) -> None:
        """Take back the tokens from position `length` on, generated ones with a row each.

        Args:
            states: what `states` gave at that length, where layers keep some.

        Raises:
            RollbackError: a policy has moved rows since, or layers keep states, and they are not
                given.
            ValueError: there are fewer tokens.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"expected at most {self.length} tokens to go back to, found {length}")
        keeps = any(len(cache.states) for cache in self.caches)
        if keeps and not states and length < self.length:
            raise RollbackError(
                "expected layers that keep rows, which can be taken back, found some that keep a "
                "state; go on from a fork that was made before, or read the conversation anew"
            )
        if length < self.settled:
            raise RollbackError(
                f"expected to go back to token {self.settled} or later, behind which the policy "
                f"has moved no rows, found {length}; read the conversation anew"
            )
        taken = self.length - length
        if self._modality[length : self.length].any():
            raise RollbackError(
                "expected text to take back, found image tokens; read the conversation anew"
            )
        with self.executor.turn:
            for cache in self.caches:
                roll_back(cache, self.seq, length)
            for cache, before in zip(self.caches, states, strict=bool(states)):
                cache.states.replace(self.seq, before.arrays)
        text = int(np.count_nonzero(self._evictable[length : self.length]))
        self._recount(
            _Counts(
                length,
                self.next_position - taken,
                self._first_image,
                self.text_after_image - text,
                max(0, self.step - taken),
                self.settled,
                len(self.visuals),
                self.image_tokens,
            )
        )

    def drop_before(self, layer: int, positions: NDArray[np.int64]) -> None:
        """Note that a prompt's tokens do not go on to a layer."""
        self._dropped[positions] = layer

    def fork(self) -> Sequence:
        """A second sequence of the same tokens; rows are shared until one of them writes."""
        other = Sequence.__new__(Sequence)
        other.__dict__.update(self.__dict__)
        with self.executor.turn:
            other.caches = [cache.fork() for cache in self.caches]
        for name in ("_modality", "_evictable", "_dropped", "stands", "visuals", "token_ids"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def _counts(self) -> _Counts:
        return _Counts(
            self.length,
            self.next_position,
            self._first_image,
            self.text_after_image,
            self.step,
            self.settled,
            len(self.visuals),
            self.image_tokens,
        )

    def _recount(self, counts: _Counts) -> None:
        self.stands.cut(counts.length)
        self._modality[counts.length :] = False
        self._dropped[counts.length :] = NEVER
        self._evictable[counts.length :] = counts.first_image is not None
        self.image_tokens = counts.image_tokens
        self._first_image, self.next_position = counts.first_image, counts.next_position
        self.text_after_image = counts.text_after_image
        self.step, self.settled = counts.step, counts.settled
        del self.token_ids[counts.length :], self.visuals[counts.visuals :]
