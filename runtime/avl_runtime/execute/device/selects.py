"""What of a policy's selections the device's kernels do, and what they count on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avl_plugins.kernels.catalog import MOVES, ROWS
from avl_plugins.policies import Tokens, When
from avl_plugins.policies.declared import is_refresh_by_attention, is_text_budget, refresh_fits
from avl_runtime.execute.device.cache import DeviceCache
from avl_runtime.execute.protocol import Member
from avl_runtime.kv.cache import LENGTHS, Ints
from avl_runtime.kv.sight import core_and_parked_rows


def selects_on_device(cache: DeviceCache, members: Sequence[Member]) -> bool:
    """Whether the selection kernels do all that `members` decide after steps, on such a cache.

    They do what they declare, on a limited number of rows. Otherwise the host selects.
    """
    evicts = False
    for seq, member in enumerate(members):
        about_images = []
        for action in member.actions:
            if When.STEP not in action.when:
                continue
            if action.tokens is Tokens.TEXT:
                evicts = True
                if not is_text_budget(action):
                    return False
            else:
                about_images.append(action)
        rows = core_and_parked_rows(cache, seq)
        if not about_images or not any(parked for _, parked in rows):
            if any(not action.reads_parked for action in about_images):
                return False
            continue
        (first, *others) = about_images
        if others or not is_refresh_by_attention(first):
            return False
        if not refresh_fits(first, member.image_tokens, rows):
            return False
        core, parked = (max(column) for column in zip(*rows, strict=True))
        if core + parked > ROWS[-1] or 2 * min(core, parked) > MOVES[-1]:
            return False
    return not evicts or max(cache.active_rooms) <= ROWS[-1]


def length_groups(cache: DeviceCache) -> list[int]:
    """A number for each layer, from 0 on; those that hold as many rows have the same."""
    numbers: dict[tuple[int, ...], int] = {}
    lengths = np.concatenate([getattr(cache, name) for name in LENGTHS], 1).tolist()
    return [numbers.setdefault(tuple(line), len(numbers)) for line in lengths]


def evictable_rows(cache: DeviceCache, members: Sequence[Member]) -> Ints:
    """How many of a head's rows a text budget may drop, [L, B]; every head holds as many."""
    found: Ints = np.zeros(cache.active_len.shape, np.int64)
    for layer, seq in np.ndindex(found.shape):
        positions = cache.positions[layer, seq, 0, : cache.active_len[layer, seq]]
        found[layer, seq] = np.count_nonzero(members[seq].evictable_mask[positions])
    return found
