"""Which rows the host moves between decode steps, in caches on the host or on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from avl_plugins.policies import Plan, Split
from avl_runtime.execute.protocol import Masses
from avl_runtime.generate.conversation import Conversation, evict_text
from avl_runtime.kv.cache import Floats, Ints, SegmentCache
from avl_runtime.kv.moves import exchange

Mask = NDArray[np.bool_]


class HostSelection:
    """Ranks rows by the attention that a step gave them, and moves them as a plan says."""

    def __init__(self, plan: Plan, conversations: Sequence[Conversation]) -> None:
        """
        Args:
            conversations: of a batch's sequences, whose prompts have been read.
        """
        self._plan = plan
        self._conversations = conversations
        self._image_tokens = [int(each.image_mask.sum()) for each in conversations]

    def core(self, cache: SegmentCache, seqs: Sequence[int], step: int) -> Ints | None:
        """Core rows [B] of the sequences in `seqs` that a step is to rank, 0 for the others.

        None if the step is no refresh, or draws the core at random, which no step can.
        """
        split = self._plan.split
        if split is None or split.seed is not None or not split.is_refresh(step):
            return None
        if len(seqs) == len(cache.image_rows):
            return cache.image_rows
        core = np.zeros_like(cache.image_rows)
        core[seqs] = cache.image_rows[seqs]
        return core

    def follow(
        self,
        cache: SegmentCache,
        first_layer: int,
        masses: Masses | None,
        seqs: Sequence[int],
        step: int,
        append: Callable[[Floats | None], None],
        refreshed: bool = False,
    ) -> None:
        """Move a segment's rows after a step: refresh the core, add the new row, evict text.

        Args:
            first_layer: the segment's.
            masses: the attention of this step; None if nothing is selected after it.
            seqs: the sequences that the step added to.
            step: its number, from 1 on.
            append: adds the new row to `cache`, given its H2O mass [L, B, Hkv] or None.
            refreshed: whether the step did the refresh itself.
        """
        split, text = self._plan.split, self._plan.text
        if masses is None:
            append(None)
            return
        if split is not None and split.is_refresh(step) and not refreshed:
            for seq in seqs:
                total = self._image_tokens[seq]
                _refresh(cache, masses, seq, split, first_layer, total, step)
            cache.settle()
        if text is None:
            append(None)
            return
        for seq in seqs:
            length = cache.active_len[seq]
            cache.add_mass(seq, masses.mass_active[:, seq, :, 1, :length])
        append(masses.mass_new[:, :, :, 1, 0])
        for seq in seqs:
            evict_text(cache, seq, self._conversations[seq], text)
        cache.settle()


def _refresh(
    cache: SegmentCache,
    masses: Masses,
    seq: int,
    split: Split,
    first_layer: int,
    total: int,
    step: int,
) -> None:
    """Rank the secondary rows by this step's attention and exchange what the core changes.

    Args:
        total: the sequence's image tokens, dropped ones included.
    """
    core, apart = int(cache.image_rows[seq]), int(cache.parked_len[seq])
    if not apart:
        return
    # A sum over heads ranks as their mean does.
    active = masses.mass_active[:, seq, :, 0, :core].sum(1)
    parked = masses.mass_parked[:, seq, :, 0, :apart].sum(1)
    scores = np.concatenate([active, parked], 1)
    positions = np.concatenate(
        [cache.positions[:, seq, 0, :core], cache.parked_positions[:, seq, :apart]], 1
    )
    chosen = split.new_core(scores, positions, total, first_layer, step)
    exchange(cache, seq, ~chosen[:, :core], chosen[:, core:])


def placement(caches: Sequence[SegmentCache], seq: int, image_mask: Mask) -> tuple[Mask, Mask]:
    """Which image tokens of one sequence are active, and which parked, in every layer.

    Args:
        caches: of all segments, in their order.
        image_mask: [tokens so far].

    Returns:
        Two arrays [layers, image tokens], image tokens in prompt order.
    """
    layers = sum(cache.layers for cache in caches)
    active = np.zeros((layers, len(image_mask)), np.bool_)
    parked = np.zeros_like(active)
    first = 0
    for cache in caches:
        each = np.arange(first, first + cache.layers)[:, None]
        active[each, cache.positions[:, seq, 0, : cache.active_len[seq]]] = True
        parked[each, cache.parked_positions[:, seq, : cache.parked_len[seq]]] = True
        first += cache.layers
    return active[:, image_mask], parked[:, image_mask]
