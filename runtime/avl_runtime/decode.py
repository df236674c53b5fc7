"""Decode: one token a step for a batch of conversations, and A-VL's moves between steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.policies import Plan
from avl_runtime.backends import Backend, BoundSegment
from avl_runtime.cache import LayerCache, stacked
from avl_runtime.conversation import Conversation, evict_text
from avl_runtime.embedding import Embedding
from avl_runtime.package import Manifest


class Decoder:
    """Runs decode steps over conversations whose prompts have been read.

    The caches of several conversations are stacked into one batch, which ends their use as single
    conversations; one conversation keeps its caches. Buffers are bound once, written in place.
    """

    def __init__(
        self,
        backend: Backend,
        manifest: Manifest,
        embedding: Embedding,
        conversations: list[Conversation],
        plan: Plan,
        max_steps: int,
    ) -> None:
        dims, batch = manifest.dims, len(conversations)
        self._conversations = conversations
        self._embedding = embedding
        self._plan = plan
        self._steps_left = max_steps
        self.step = 0
        self.refreshed = False  # whether the last step read parked rows and chose a new core
        self.caches = [
            stacked(list(layer), max_steps)
            for layer in zip(*(c.caches for c in conversations), strict=True)
        ]
        for conversation in conversations:
            # The batch owns the rows from here on; single caches would hold them twice.
            conversation.caches = self.caches if batch == 1 else []
        self._hidden = np.zeros((batch, 1, dims.hidden_size), backend.dtype)
        self._positions = np.zeros((batch, 1), np.int64)
        weights = np.ones((batch, 2, 1), np.float32)
        self._segments: list[tuple[BoundSegment, list[LayerCache]]] = []
        rows: NDArray[Any] = self._hidden
        for index, segment in enumerate(manifest.segments):
            bound = backend.bind(index, rows, self._positions, weights)
            self._segments.append((bound, self.caches[segment.first_layer : segment.last_layer]))
            rows = bound.output
        self._logits = rows

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)

    def placement(
        self, row: int, image_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which image tokens of one sequence are active, and which parked, in every layer.

        Args:
            image_mask: [tokens so far].

        Returns:
            Two arrays [layers, image tokens], image tokens in prompt order.
        """
        active = np.zeros((len(self.caches), len(image_mask)), np.bool_)
        parked = np.zeros_like(active)
        for layer, cache in enumerate(self.caches):
            active[layer, cache.positions[row, 0, : cache.active_len[row]]] = True
            parked[layer, cache.parked_positions[row, : cache.parked_len[row]]] = True
        return active[:, image_mask], parked[:, image_mask]

    def run(self, tokens: NDArray[np.int64], alive: NDArray[np.bool_]) -> NDArray[np.float32]:
        """One step: the newest token of each sequence in, the next token's logits [B, V] out.

        Args:
            tokens: [B]; ignored where not alive.
            alive: [B]; finished sequences add no rows.
        """
        self.step += 1
        for row in np.flatnonzero(alive):
            conversation = self._conversations[row]
            self._positions[row, 0] = conversation.length
            conversation.grow([int(tokens[row])])
        self._hidden[:, 0] = self._embedding.lookup(tokens)
        split = self._plan.split
        refresh = split is not None and split.is_refresh(self.step)
        self.refreshed = refresh
        layer = 0
        for bound, caches in self._segments:
            bound.run(caches, parked=refresh)
            for index, cache in enumerate(caches):
                self._update(bound, index, cache, layer, refresh, alive)
                layer += 1
        self._steps_left -= 1
        return np.asarray(self._logits[:, 0], np.float32)

    def _update(
        self,
        bound: BoundSegment,
        index: int,
        cache: LayerCache,
        layer: int,
        refresh: bool,
        alive: NDArray[np.bool_],
    ) -> None:
        if refresh:
            for row in np.flatnonzero(alive & (cache.parked_len > 0)):
                self._refresh(bound, index, cache, layer, int(row))
        budget = self._plan.text
        lengths = cache.active_len if budget is None else cache.active_len.copy()
        cache.append(
            bound.k_new[index], bound.v_new[index], self._positions[:, 0], alive, self._steps_left
        )
        if budget is None:
            return
        for row in np.flatnonzero(alive):
            length = lengths[row]
            mass = np.concatenate(
                [bound.mass_active[index][row, :, 1, :length], bound.mass_new[index][row, :, 1]], 1
            )
            cache.add_mass(int(row), mass)
            evict_text(cache, int(row), self._conversations[row], budget)

    def _refresh(
        self, bound: BoundSegment, index: int, cache: LayerCache, layer: int, row: int
    ) -> None:
        """Rank the secondary rows by this step's attention and exchange what the core changes."""
        split = self._plan.split
        if split is None:
            return
        core, apart = int(cache.image_rows[row]), int(cache.parked_len[row])
        # A sum over heads ranks as their mean does.
        scores = np.concatenate(
            [
                bound.mass_active[index][row, :, 0, :core],
                bound.mass_parked[index][row, :, 0, :apart],
            ],
            1,
        ).sum(0)
        positions = np.concatenate(
            [cache.positions[row, 0, :core], cache.parked_positions[row, :apart]]
        )
        order = positions.argsort()  # ties go to the lower position
        total = int(self._conversations[row].image_mask.sum())
        ranked = split.rank_core(scores[order], total, layer, self.step)
        chosen = np.zeros(core + apart, np.bool_)
        chosen[order[ranked]] = True
        leaving = (~chosen[:core]).nonzero()[0]
        entering = chosen[core:].nonzero()[0]
        if len(leaving):
            cache.exchange(row, leaving, entering)
