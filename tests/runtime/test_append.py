"""Rows of decode steps that the compiled library adds, against those that NumPy adds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.cpu.host import Host, host
from avl_plugins.policies import DROPPED
from avl_plugins.schema import COMPUTED
from avl_runtime.kv.append import Appender
from avl_runtime.kv.by_layer import ByLayer, Floats
from avl_runtime.kv.cache import Array, SegmentCache
from avl_runtime.kv.gather import gathered
from avl_runtime.kv.moves import evict, place

LAYERS, HEADS = 3, 2


def filled(rng: np.random.Generator, lengths: list[int], dim: int, dtype: type) -> SegmentCache:
    """A cache of several sequences of so many rows each."""
    caches = []
    for length in lengths:
        cache = SegmentCache(1, HEADS, [COMPUTED.planes(dim, np.dtype(dtype))] * LAYERS)
        rows = rng.standard_normal((2, LAYERS, 1, HEADS, length, dim)).astype(dtype)
        cache.extend(rows, 0, np.arange(length), None)
        fates = np.zeros((LAYERS, length), np.int8)
        for fate in fates:  # each layer has as many rows as it likes
            fate[1 + int(rng.integers(length)) :] = DROPPED
        place(cache, 0, fates, np.ones(length, np.bool_))
        caches.append(cache)
    return gathered([(cache, 0) for cache in caches], 5)


def held(cache: SegmentCache) -> list[bytes]:
    arrays: list[Array] = [cache.active_len, cache.positions, cache.mass]
    return [array.tobytes() for array in (*arrays, *cache.k_active, *cache.v_active)]


@dataclass
class Given:
    """What a step's attention gave rows; see `kv.sight.Masses`."""

    mass_active: ByLayer
    mass_parked: ByLayer
    mass_new: Floats

    @classmethod
    def drawn(cls, rng: np.random.Generator, batch: int) -> Given:
        # Of few values, so that some are equal.
        active, parked, new = (
            rng.integers(0, 4, (LAYERS, batch, HEADS, 2, rows)).astype(np.float32)
            for rows in (200, 1, 1)
        )
        return cls(ByLayer([active[:1], active[1:]]), ByLayer([parked]), new)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    dim=st.sampled_from([3, 8, 64, 80]),
    dtype=st.sampled_from([np.float32, np.float16]),
    events=st.lists(st.sampled_from(["row", "mass", "evict", "extend", "fork"]), max_size=40),
    seed=st.integers(0, 2**32 - 1),
)
def check(
    library: Host, lengths: list[int], dim: int, dtype: type, events: list[str], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    batch = len(lengths)
    caches = [filled(np.random.default_rng(seed), lengths, dim, dtype) for _ in range(2)]
    new = [np.empty((LAYERS, batch, HEADS, 1, dim), dtype) for _ in "kv"]
    positions = np.zeros(batch, np.int64)
    released: list[int] = []
    appenders = [Appender(new, positions, each) for each in (library, None)]
    several_given = [Given.drawn(rng, batch) for _ in range(2)]  # steps take turns with two
    steps = len(events)
    for number, event in enumerate(events):
        seq = int(rng.integers(batch))
        layer, slot = int(rng.integers(LAYERS)), int(rng.integers(2**31))
        several = rng.standard_normal((2, LAYERS, 1, HEADS, 2, dim)).astype(dtype)
        for plane in new:
            plane[...] = rng.standard_normal(plane.shape)
        positions[:] = 100 + number
        given = several_given[number % 2] if event == "mass" else None
        gathers = [bool(rng.integers(2)) for _ in range(batch)]
        for cache, appender in zip(caches, appenders, strict=True):
            if event == "evict":
                gone = slot % int(cache.active_len[layer, seq])
                evict(cache, seq, np.full((1, HEADS, 1), gone), layer)
                if not cache.active_len[layer, seq]:  # an empty layer is no cache's
                    cache.extend(several, seq, np.array([7, 8]), None)
            elif event == "extend":
                cache.extend(several, seq, np.array([50, 51]), None)
            elif event == "fork":
                before = cache.fork()
                kept = held(before)
                appender.append(cache, given, gathers, steps, lambda: released.append(0))
                assert held(before) == kept
            else:
                appender.append(cache, given, gathers, steps, lambda: released.append(0))
        assert held(caches[0]) == held(caches[1])
    assert len(released) % 2 == 0


def test_rows_lie_where_numpy_puts_them(kernels: Path) -> None:
    library = host()
    assert library is not None
    check(library)


def test_a_slot_without_room_is_refused_with_nothing_written(kernels: Path) -> None:
    library = host()
    assert library is not None
    cache, new = np.zeros((2, 4), np.float32), np.ones(2, np.float32)
    table = np.array([[cache.ctypes.data, new.ctypes.data, 2, 4, 4, 4]] * 2, np.int64)
    for wrong in (-1, 4):
        slots = np.array([1, wrong], np.int64)
        assert not library.append(table.ctypes.data, slots.ctypes.data, 1, 2)
        assert not cache.any()
    slots = np.array([1, 3], np.int64)
    assert library.append(table.ctypes.data, slots.ctypes.data, 1, 2)
    assert cache.tolist() == [[0, 1, 0, 1]] * 2


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_lone_sequence_grows_past_its_room(kernels: Path, dtype: type) -> None:
    cache = filled(np.random.default_rng(0), [4], 8, dtype)
    new, positions = [np.ones((LAYERS, 1, HEADS, 1, 8), dtype) for _ in "kv"], np.zeros(1, np.int64)
    appender, released = Appender(new, positions, host()), []
    before = cache.tops
    for number in range(100):
        positions[0] = 4 + number
        new[0][...] = number
        appender.append(cache, None, [False], 100 - number, lambda: released.append(1))
    assert released and cache.tops == [top + 100 for top in before]
    assert cache.positions[2, 0, 1, before[2] :][:100].tolist() == list(range(4, 104))
    assert cache.k_active[1][0, 0, before[1] :][:100, 5].tolist() == list(range(100))
