"""One conversation: its tokens, its KV cache, and prefill, which adds a prompt to both.

Prefill runs segment by segment, and within a segment in chunks of rows, so that hidden states can
be dropped between segments (FastV, A-VL's prefill filter) and no graph holds more than a chunk.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.logits import Logits
from avl_plugins.errors import AvlError
from avl_plugins.policies import Plan, Prune, TextBudget
from avl_runtime.execute.protocol import Masses
from avl_runtime.kv.cache import Ints, SegmentCache
from avl_runtime.kv.moves import evict, image_positions, partition
from avl_runtime.package.manifest import Manifest
from avl_runtime.prompts.rows import PromptRows
from avl_runtime.vision import Cells


class PromptTooLongError(AvlError):
    """A conversation does not fit into the model's context."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Rows on their way through a segment.

    hidden [n, C], positions [n] in the conversation, position_ids [axes, n] for RoPE, deepstack
    [k, n, C] for the segment's k deepstack layers.
    """

    hidden: NDArray[Any]
    positions: Ints
    position_ids: Ints
    deepstack: NDArray[Any]

    def between(self, begin: int, end: int) -> Chunk:
        """The rows from `begin` to `end` - 1."""
        part = slice(begin, end)
        return Chunk(
            self.hidden[part],
            self.positions[part],
            self.position_ids[:, part],
            self.deepstack[:, part],
        )


class Conversation(abc.ABC):
    """Tokens so far and their cache, for a single sequence.

    Attributes:
        caches: one SegmentCache per decoder segment.
        token_ids: every token whose row has been computed, prompt and replies.
        next_position: RoPE position of the next token, which M-RoPE moves apart from `length`.
        visuals: what the tokens of each picture and video show, in order.
        text_after_image: text tokens behind the first image token, which a text budget counts.
    """

    def __init__(self, manifest: Manifest, caches: Sequence[SegmentCache]) -> None:
        """
        Args:
            caches: one for each segment, empty.
        """
        self._manifest = manifest
        self._modality = np.zeros(256, np.bool_)
        self._evictable = np.zeros(256, np.bool_)
        self._first_image: int | None = None
        self.text_after_image = 0
        self.next_position = 0
        self.visuals: list[Cells] = []
        self.token_ids: list[int] = []
        self.caches = list(caches)

    @property
    def length(self) -> int:
        """Tokens so far, dropped ones included: the next token's position."""
        return len(self.token_ids)

    @property
    def image_mask(self) -> NDArray[np.bool_]:
        """[tokens so far], which positions hold image tokens."""
        return self._modality[: self.length]

    @property
    def nbytes(self) -> int:
        """Bytes of the live K and V arrays."""
        return sum(cache.nbytes for cache in self.caches)

    def evictable(self, positions: Ints) -> NDArray[np.bool_]:
        """Which of `positions` hold text behind the first image token."""
        return self._evictable.take(positions)

    def room_left(self) -> int:
        """Tokens the model's context can still take."""
        return self._manifest.dims.max_positions - self.length

    def grow(
        self,
        token_ids: Sequence[int],
        image_mask: NDArray[np.bool_] | None = None,
        advance: int | None = None,
    ) -> None:
        """Count tokens as part of the conversation; the caller adds their rows.

        Args:
            image_mask: [N]; None for text only.
            advance: how far RoPE positions go on; None for one a token.

        Raises:
            PromptTooLongError: the model's context is too short for them.
        """
        start, added = self.length, len(token_ids)
        if added > self.room_left():
            raise PromptTooLongError(
                f"expected at most {self._manifest.dims.max_positions} tokens in all (the model's "
                f"context), found {start + added}; shorten the prompt or use fewer images"
            )
        while start + added > len(self._modality):
            self._modality = np.concatenate([self._modality, np.zeros_like(self._modality)])
            self._evictable = np.concatenate([self._evictable, np.zeros_like(self._evictable)])
        if image_mask is not None:
            self._modality[start : start + added] = image_mask
            if self._first_image is None and image_mask.any():
                self._first_image = start + int(image_mask.argmax())
        if self._first_image is not None:
            begin = max(start, self._first_image)
            text = True if image_mask is None else ~image_mask[begin - start :]
            self._evictable[begin : start + added] = text
            self.text_after_image += added if image_mask is None else int(np.count_nonzero(text))
        self.next_position += added if advance is None else advance
        self.token_ids.extend(token_ids)

    def prefill(
        self, rows: PromptRows, plan: Plan, logits: Logits = Logits.ALL
    ) -> NDArray[np.float32]:
        """Read a prompt and place its rows under `plan`; returns the last row's logits [V].

        Args:
            logits: which of them the caller reads.

        Raises:
            PromptTooLongError: the model's context is too short.
        """
        start, before = self.length, self._snapshot()
        position_ids = rows.position_ids + self.next_position
        self.grow(rows.token_ids.tolist(), rows.image_mask, rows.next_position)
        try:
            return self._read(np.arange(start, self.length), position_ids, rows, plan, logits)
        except BaseException:  # Ctrl-C too: half a prompt must not stay in the cache
            self._restore(before)
            raise

    def _read(
        self, positions: Ints, position_ids: Ints, rows: PromptRows, plan: Plan, logits: Logits
    ) -> NDArray[np.float32]:
        """Run all segments over a prompt's rows and place them; logits [V] of the last row."""
        hidden, deepstack = rows.hidden, rows.deepstack
        mass = np.zeros((0, self.length), np.float32)
        for index, (segment, cache) in enumerate(
            zip(self._manifest.segments, self.caches, strict=True)
        ):
            prune = plan.prune
            if prune is not None and prune.layer == segment.first_layer:
                kept = self._pruned(positions, mass[-1], prune)
                hidden, positions = hidden[kept], positions[kept]
                position_ids, deepstack = position_ids[:, kept], deepstack[:, kept]
            added, deepstack = np.split(deepstack, [len(segment.deepstack)])
            chunk = Chunk(hidden, positions, position_ids, added)
            hidden, mass = self._run_chunks(index, cache, chunk, plan, logits)
            self._split(cache, mass, segment.first_layer, plan)
        if plan.text is not None:
            for cache in self.caches:
                evict_text(cache, 0, self, plan.text)
                cache.settle()
        return np.asarray(hidden[0], np.float32)

    def _snapshot(self) -> tuple[int, int, int | None, int, list[SegmentCache]]:
        caches = [cache.copy() for cache in self.caches]
        return self.length, self.next_position, self._first_image, self.text_after_image, caches

    def _restore(self, before: tuple[int, int, int | None, int, list[SegmentCache]]) -> None:
        length, self.next_position, self._first_image, self.text_after_image, self.caches = before
        self._modality[length:] = False
        self._evictable[length:] = False
        del self.token_ids[length:]

    @abc.abstractmethod
    def _run_chunks(
        self, index: int, cache: SegmentCache, rows: Chunk, plan: Plan, logits: Logits
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Run one segment over all rows, adding them to its cache; `logits` are read of the last.

        Returns its output rows ([N, C], or [1, V] logits) and, if the plan ranks by it, the last
        row's head-mean attention by position, [L, tokens so far].
        """

    def _row_weights(
        self, positions: Ints, last: bool = True, text: bool = True
    ) -> NDArray[np.float32]:
        """[1, 2, n]: what makes a mass of the last row's attention, and of all text rows'.

        Where one of them is not wanted its weights are 0, which makes it cheap.
        """
        weights = np.zeros((1, 2, len(positions)), np.float32)
        weights[0, 0, -1] = last
        if text:
            weights[0, 1] = ~self.image_mask[positions]
        return weights

    def _pruned(self, positions: Ints, scores: NDArray[np.float32], prune: Prune) -> Ints:
        """Indices into `positions` that stay: all text, and the image tokens `prune` keeps."""
        image = self.image_mask[positions]
        where = np.flatnonzero(image)
        stay = ~image
        if len(where):
            stay[where[prune.select(scores[positions[where]], len(where))]] = True
        return np.flatnonzero(stay)

    def _split(
        self, cache: SegmentCache, mass: NDArray[np.float32], first_layer: int, plan: Plan
    ) -> None:
        """Divide each layer's image rows into core, parked and dropped."""
        total = int(self.image_mask.sum())
        if plan.split is None or not total:
            return
        scores = np.take_along_axis(mass, image_positions(cache, self.image_mask), 1)
        core, parked = plan.split.partition(scores, total, first_layer)
        partition(cache, core, parked, self.image_mask)
        cache.settle()


def attention_by_position(
    cache: SegmentCache, bound: Masses, chunk: Ints, total: int
) -> NDArray[np.float32]:
    """The last query row's head-mean attention, [L, total tokens]; 0 on dropped ones."""
    layers, _, heads, _ = cache.positions.shape
    length, apart = cache.active_len[0], cache.parked_len[0]
    mass = np.zeros((layers, total), np.float32)
    # A head may have dropped a token that another still holds: each adds its share.
    each = np.arange(layers)[:, None, None]
    active = bound.mass_active[:, 0, :, 0, :length] / heads
    np.add.at(mass, (each, cache.positions[:, 0, :, :length]), active)
    parked = bound.mass_parked[:, 0, :, 0, :apart].mean(1)
    np.put_along_axis(mass, cache.parked_positions[:, 0, :apart], parked, 1)
    mass[:, chunk] = bound.mass_new[:, 0, :, 0].mean(1)
    return mass


def evict_text(
    cache: SegmentCache, seq: int, conversation: Conversation, budget: TextBudget
) -> None:
    """Bring one sequence down to its text budget (H2O, per layer and KV head)."""
    # Core image rows, where a partition has put them first, are not looked at again.
    begin, length = int(cache.image_rows[seq]), int(cache.active_len[seq])
    positions, n_text = cache.positions[:, seq, :, begin:length], conversation.text_after_image
    # Every head holds the same number of evictable rows, at slots of its own.
    count = int(np.count_nonzero(conversation.evictable(positions[0, 0])))
    if count <= budget.budget(n_text):
        return
    evictable = conversation.evictable(positions)
    by_head = (*evictable.shape[:2], count)
    mass = cache.mass[:, seq, :, begin:length][evictable].reshape(by_head)
    kept = budget.kept(mass, positions[evictable].reshape(by_head), n_text)
    slots = begin + np.flatnonzero(evictable).reshape(by_head) % (length - begin)
    evict(cache, seq, slots[~kept].reshape(*by_head[:2], -1))
