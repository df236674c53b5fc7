"""One conversation: its tokens, its KV cache, and prefill, which adds a prompt to both.

Prefill runs segment by segment, and within a segment in chunks of rows, so that hidden states can
be dropped between segments (FastV, A-VL's prefill filter) and no graph holds more than a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError
from avl_plugins.policies import Plan, Prune, TextBudget
from avl_runtime.backends import Backend, BoundSegment
from avl_runtime.cache import LayerCache
from avl_runtime.package import Manifest

CHUNK = 256  # rows; longer chunks are slower on a CPU and hold more scores at once


class PromptTooLongError(AvlError):
    """A conversation does not fit into the model's context."""


class Conversation:
    """Tokens so far and one cache per layer, for a single sequence.

    Attributes:
        caches: one LayerCache per decoder layer.
        token_ids: every token whose row has been computed, prompt and replies.
        text_after_image: text tokens behind the first image token, which a text budget counts.
    """

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        dims = manifest.dims
        self._backend = backend
        self._manifest = manifest
        self._modality = np.zeros(256, np.bool_)
        self._first_image: int | None = None
        self.text_after_image = 0
        self.token_ids: list[int] = []
        self.caches = [
            LayerCache(1, dims.num_kv_heads, dims.head_dim, backend.dtype)
            for _ in range(dims.num_layers)
        ]

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

    def evictable(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `positions` hold text behind the first image token."""
        if self._first_image is None:
            return np.zeros(positions.shape, np.bool_)
        return ~self._modality[positions] & (positions > self._first_image)

    def room_left(self) -> int:
        """Tokens the model's context can still take."""
        return self._manifest.dims.max_positions - self.length

    def grow(self, token_ids: Sequence[int], image_mask: NDArray[np.bool_] | None = None) -> None:
        """Count tokens as part of the conversation; the caller adds their rows.

        Args:
            image_mask: [N]; None for text only.

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
        if image_mask is not None:
            self._modality[start : start + added] = image_mask
            if self._first_image is None and image_mask.any():
                self._first_image = start + int(image_mask.argmax())
        if self._first_image is not None:
            behind = self._modality[max(start, self._first_image) : start + added]
            self.text_after_image += int(len(behind) - np.count_nonzero(behind))
        self.token_ids.extend(token_ids)

    def prefill(
        self,
        token_ids: NDArray[np.int64],
        image_mask: NDArray[np.bool_],
        hidden: NDArray[Any],
        plan: Plan,
    ) -> NDArray[np.float32]:
        """Read a prompt and place its rows under `plan`; returns the last row's logits [V].

        Args:
            token_ids, image_mask: [N]; what the prompt adds.
            hidden: [N, C] embeddings with image features spliced in.

        Raises:
            PromptTooLongError: the model's context is too short.
        """
        start, before = self.length, self._snapshot()
        self.grow([int(token) for token in token_ids], image_mask)
        try:
            return self._read(np.arange(start, self.length), hidden, plan)
        except BaseException:  # Ctrl-C too: half a prompt must not stay in the cache
            self._restore(before)
            raise

    def _read(
        self, positions: NDArray[np.int64], hidden: NDArray[Any], plan: Plan
    ) -> NDArray[np.float32]:
        """Run all segments over a prompt's rows and place them; logits [V] of the last row."""
        output: NDArray[Any] = hidden
        masses: list[NDArray[np.float32]] = []
        for index, segment in enumerate(self._manifest.segments):
            prune = plan.prune
            if prune is not None and prune.layer == segment.first_layer:
                kept = self._pruned(positions, masses[-1], prune)
                output, positions = output[kept], positions[kept]
            caches = self.caches[segment.first_layer : segment.last_layer]
            output, masses = self._run_chunks(index, caches, output, positions, plan)
            self._split(caches, masses, segment.first_layer, plan)
        if plan.text is not None:
            for cache in self.caches:
                evict_text(cache, 0, self, plan.text)
        return np.asarray(output[0], np.float32)

    def _snapshot(self) -> tuple[int, int | None, int, list[LayerCache]]:
        caches = [cache.copy() for cache in self.caches]
        return self.length, self._first_image, self.text_after_image, caches

    def _restore(self, before: tuple[int, int | None, int, list[LayerCache]]) -> None:
        length, self._first_image, self.text_after_image, self.caches = before
        self._modality[length:] = False
        del self.token_ids[length:]

    def _run_chunks(
        self,
        index: int,
        caches: list[LayerCache],
        hidden: NDArray[Any],
        positions: NDArray[np.int64],
        plan: Plan,
    ) -> tuple[NDArray[Any], list[NDArray[np.float32]]]:
        """Run one segment over all rows, adding them to its caches.

        Returns its output rows ([N, C], or [1, V] logits) and per layer the last row's head-mean
        attention by position, [tokens so far].
        """
        last = index == len(self._manifest.segments) - 1
        outputs = []
        for begin in range(0, len(positions), CHUNK):
            chunk = positions[begin : begin + CHUNK]
            weights = np.zeros((1, 2, len(chunk)), np.float32)
            weights[0, 0, -1] = 1
            weights[0, 1] = ~self.image_mask[chunk]
            rows = np.ascontiguousarray(hidden[None, begin : begin + CHUNK], self._backend.dtype)
            bound = self._backend.bind(index, rows, chunk[None], weights)
            bound.run(caches, parked=True)
            final = begin + CHUNK >= len(positions)
            masses = (
                [self._by_position(cache, bound, i, chunk) for i, cache in enumerate(caches)]
                if final
                else []
            )
            for i, cache in enumerate(caches):
                new_mass = None
                if plan.text is not None:
                    length = cache.active_len[0]
                    cache.add_mass(0, bound.mass_active[i][0, :, 1, :length])
                    new_mass = bound.mass_new[i][0, :, 1]
                cache.extend(bound.k_new[i], bound.v_new[i], chunk, new_mass)
            outputs.append(bound.output[0])
        return (outputs[-1] if last else np.concatenate(outputs)), masses

    def _by_position(
        self, cache: LayerCache, bound: BoundSegment, index: int, chunk: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The last query row's head-mean attention on every token so far; 0 where dropped."""
        scores = np.zeros(self.length, np.float32)
        heads = cache.positions.shape[1]
        length, parked = cache.active_len[0], cache.parked_len[0]
        active = bound.mass_active[index][0, :, 0, :length] / heads
        np.add.at(scores, cache.positions[0, :, :length], active)
        if parked:
            scores[cache.parked_positions[0, :parked]] = bound.mass_parked[index][
                0, :, 0, :parked
            ].mean(0)
        scores[chunk] = bound.mass_new[index][0, :, 0].mean(0)
        return scores

    def _pruned(
        self, positions: NDArray[np.int64], scores: NDArray[np.float32], prune: Prune
    ) -> NDArray[np.int64]:
        """Indices into `positions` that stay: all text, and the image tokens `prune` keeps."""
        image = self.image_mask[positions]
        where = np.flatnonzero(image)
        stay = ~image
        if len(where):
            stay[where[prune.select(scores[positions[where]], len(where))]] = True
        return np.flatnonzero(stay)

    def _split(
        self,
        caches: list[LayerCache],
        masses: list[NDArray[np.float32]],
        first_layer: int,
        plan: Plan,
    ) -> None:
        """Divide each layer's image rows into core, parked and dropped."""
        total = int(self.image_mask.sum())
        if plan.split is None or not total:
            return
        for layer, (cache, scores) in enumerate(zip(caches, masses, strict=True), first_layer):
            alive = cache.image_positions(self.image_mask)
            core, parked = plan.split.partition(scores[alive], total, layer)
            cache.partition(alive[core], alive[parked], self.image_mask)


def evict_text(cache: LayerCache, row: int, conversation: Conversation, budget: TextBudget) -> None:
    """Bring one layer of one sequence down to its text budget (H2O, per KV head)."""
    length = int(cache.active_len[row])
    positions = cache.positions[row, :, :length]
    evictable = conversation.evictable(positions)
    count = int(evictable[0].sum())
    n_text = conversation.text_after_image
    if count <= budget.budget(n_text):
        return
    heads = len(positions)
    # Every head holds the same number of evictable rows, at slots of its own.
    slots = np.nonzero(evictable)[1].reshape(heads, count)
    mass = np.take_along_axis(cache.mass[row, :, :length], slots, 1)
    kept_text = budget.kept(mass, np.take_along_axis(positions, slots, 1), n_text)
    kept = np.ones_like(evictable)
    np.put_along_axis(kept, slots, kept_text, 1)
    cache.evict(row, kept)
