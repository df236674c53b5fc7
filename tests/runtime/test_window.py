"""Rows that windows leave behind are dropped, and no others."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from avl_plugins.schema import COMPUTED
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.kv.sight import images, text
from avl_runtime.kv.window import leave_behind

HEADS, WIDTH = 2, 4
WINDOWS = st.lists(st.none() | st.integers(1, 9), min_size=1, max_size=4)


def filled(windows: list[int | None], batch: int, kept: list[int]) -> SegmentCache:
    """A cache whose rows are their positions, `kept` in each layer and sequence."""
    planes = COMPUTED.planes(WIDTH, np.dtype(np.float32))
    cache = SegmentCache(batch, HEADS, [planes] * len(windows), windows=windows)
    rows = np.array(kept, np.float32)[None, None, None, :, None]
    new = [np.broadcast_to(rows, (len(windows), 1, HEADS, len(kept), WIDTH))] * 2
    for seq in range(batch):
        cache.extend(new, seq, np.array(kept, np.int64), None)
    return cache


@given(
    windows=WINDOWS,
    kept=st.sets(st.integers(0, 20), max_size=15).map(sorted),
    position=st.integers(0, 30),
    batch=st.integers(1, 3),
)
def test_what_a_window_leaves(
    windows: list[int | None], kept: list[int], position: int, batch: int
) -> None:
    cache, seq = filled(windows, batch, kept), batch - 1
    dropped = leave_behind(cache, seq, position)
    wanted = [
        [one for one in kept if window is None or position - one < window] for window in windows
    ]
    assert dropped == any(len(one) < len(kept) for one in wanted)
    for layer, left in enumerate(wanted):
        count = int(cache.active_len[layer, seq])
        for head in range(HEADS):
            places = cache.positions[layer, seq, head, :count]
            assert sorted(places.tolist()) == left
            rows = cache.k_active[layer][seq, head, :count]
            np.testing.assert_array_equal(rows, np.repeat(places[:, None], WIDTH, 1))
    others = [number for number in range(batch) if number != seq]
    assert (cache.active_len[:, others] == len(kept)).all()
    assert not leave_behind(cache, seq, position)


def test_policies_see_no_layer_with_a_window() -> None:
    cache = filled([None, 9, 9, None], 1, list(range(6)))
    pictures = np.arange(6) < 3
    assert [layers for layers, _ in images(cache, 0, pictures)] == [(0, 1), (3, 4)]
    assert [layers for layers, *_ in text(cache, 0, ~pictures, None)] == [(0, 1), (3, 4)]


@given(rows=st.integers(1, 60), chunk=st.integers(1, 9))
def test_room_is_for_a_window_and_a_chunk(rows: int, chunk: int) -> None:
    cache = filled([None, 8], 1, [])
    cache.reserve(rows, 0, chunk)
    assert cache.rooms == [rows + 1, min(rows, 8 + chunk) + 1]
