"""The KV cache against a model that keeps rows in dicts by position, per layer and KV head."""

from __future__ import annotations

from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_runtime.kv import moves
from avl_runtime.kv.cache import SegmentCache, dense_bytes, room, stacked
from avl_runtime.kv.moves import evict, exchange, image_positions, partition

LAYERS, HEADS, DIM = 3, 2, 4
FLOAT = np.dtype(np.float32)
EACH = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
NO_MASS = np.zeros((LAYERS, HEADS))


class Naive:
    """Of each layer and head a dict of active rows by position, and one of parked rows."""

    def __init__(self) -> None:
        self.active: dict[tuple[int, int], dict[int, tuple]] = {each: {} for each in EACH}
        self.parked: dict[tuple[int, int], dict[int, tuple]] = {each: {} for each in EACH}
        self.images: set[int] = set()  # only text rows are ranked by their mass

    def add(self, position: int, k: np.ndarray, v: np.ndarray, mass: np.ndarray) -> None:
        """Add a row of every layer and head; k, v [L, Hkv, D], mass [L, Hkv]."""
        for each in EACH:
            self.active[each][position] = (k[each].copy(), v[each].copy(), float(mass[each]))


def empty() -> SegmentCache:
    return SegmentCache(LAYERS, 1, HEADS, DIM, FLOAT)


def kv(cache: SegmentCache) -> list[np.ndarray]:
    return [*cache.k_active, *cache.v_active, *cache.k_parked, *cache.v_parked]


def check(cache: SegmentCache, naive: Naive, row: int = 0) -> None:
    length, parked = int(cache.active_len[row]), int(cache.parked_len[row])
    for layer, head in EACH:
        rows = naive.active[layer, head]
        positions = cache.positions[layer, row, head, :length].tolist()
        assert sorted(positions) == sorted(rows)
        for slot, position in enumerate(positions):
            k, v, mass = rows[position]
            np.testing.assert_array_equal(cache.k_active[layer][row, head, slot], k)
            np.testing.assert_array_equal(cache.v_active[layer][row, head, slot], v)
            found = cache.mass[layer, row, head, slot]
            assert position in naive.images or abs(found - mass) < 1e-5
        rows = naive.parked[layer, head]
        apart = cache.parked_positions[layer, row, :parked].tolist()
        assert sorted(apart) == sorted(rows)
        for slot, position in enumerate(apart):
            k, v, _ = rows[position]
            np.testing.assert_array_equal(cache.k_parked[layer][row, head, slot], k)
            np.testing.assert_array_equal(cache.v_parked[layer][row, head, slot], v)
    assert all(np.isfinite(array).all() for array in kv(cache))
    assert all(array.flags.c_contiguous for array in kv(cache))  # as backends bind them
    assert cache.nbytes == sum(array.nbytes for array in kv(cache))
    assert cache.positions.shape[3] == cache.k_active[0].shape[2]


def drawn(rng: np.random.Generator, batch: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """K and V [L, B, Hkv, S, D] of new rows."""
    k, v = (rng.normal(size=(LAYERS, batch, HEADS, rows, DIM)).astype(FLOAT) for _ in range(2))
    return k, v


def fill(
    cache: SegmentCache, naive: Naive, rng: np.random.Generator, positions: np.ndarray
) -> None:
    k, v = drawn(rng, 1, len(positions))
    mass = rng.random((LAYERS, 1, HEADS, len(positions))).astype(FLOAT)
    cache.extend(k, v, positions, mass)
    for index, position in enumerate(positions):
        naive.add(int(position), k[:, 0, :, index], v[:, 0, :, index], mass[:, 0, :, index])


def split(
    cache: SegmentCache, naive: Naive, rng: np.random.Generator, image_mask: np.ndarray
) -> None:
    """Every layer keeps and parks image rows of its own choice, as many as the others."""
    alive = image_positions(cache, image_mask)
    count = alive.shape[1]
    secondary = rng.integers(0, count + 1)
    order = np.stack([rng.permutation(count) for _ in range(LAYERS)])
    core, parked = np.split(order[:, :secondary], [rng.integers(0, secondary + 1)], 1)
    core, parked = np.sort(core, 1), np.sort(parked, 1)
    partition(cache, core, parked, image_mask)
    for layer, head in EACH:
        rows = {**naive.active[layer, head], **naive.parked[layer, head]}
        stay, apart = alive[layer, core[layer]].tolist(), alive[layer, parked[layer]].tolist()
        naive.active[layer, head] = {
            p: row for p, row in rows.items() if not image_mask[p] or p in stay
        }
        naive.parked[layer, head] = {p: rows[p] for p in apart}


def test_a_copy_keeps_its_rows_while_a_prompt_is_read() -> None:
    rng = np.random.default_rng(0)
    cache, naive = empty(), Naive()
    fill(cache, naive, rng, np.arange(5))
    cache.trim(8)  # leaves room behind the rows, which the copy shares
    before = cache.copy()
    cache.reserve(9)
    assert all(a is not b for a, b in zip(kv(cache)[:LAYERS], kv(before)[:LAYERS], strict=True))
    for array in (*cache.k_active, *cache.v_active):
        array[:] = 7
    check(before, naive)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(0, 20))
def test_any_sequence_of_moves_keeps_exactly_the_right_rows(
    seed: int, text: int, images: int
) -> None:
    rng = np.random.default_rng(seed)
    image_mask = np.zeros(400, np.bool_)
    cache, naive = empty(), Naive()
    count = 0
    for _turn in range(2):
        total = text + images
        where = rng.permutation(total - 1)[: min(images, total - 1)]
        image_mask[count + where] = True
        naive.images = set(np.flatnonzero(image_mask).tolist())
        if rng.random() < 0.5:
            cache.reserve(cache.top + int(rng.integers(total + 1)))
            check(cache, naive)
        for chunk in np.array_split(np.arange(count, count + total), rng.integers(1, 4)):
            if len(chunk):
                fill(cache, naive, rng, chunk)
        count += total
        check(cache, naive)
        split(cache, naive, rng, image_mask)
        check(cache, naive)
        cache.trim(8)
        for _step in range(6):
            swap(cache, naive, rng)
            attend(cache, naive, rng)
            (k, v), mass = drawn(rng, 1, 1), rng.random((LAYERS, 1, HEADS)).astype(FLOAT)
            cache.append(k, v, np.array([count]), mass, np.array([True]), 8)
            naive.add(count, k[:, 0, :, 0], v[:, 0, :, 0], mass[:, 0])
            count += 1
            forget(cache, naive, rng, image_mask)
            check(cache, naive)


def swap(cache: SegmentCache, naive: Naive, rng: np.random.Generator, row: int = 0) -> None:
    """Every layer exchanges as many rows as it likes."""
    core, parked = int(cache.image_rows[row]), int(cache.parked_len[row])
    leaving, entering = np.zeros((LAYERS, core), np.bool_), np.zeros((LAYERS, parked), np.bool_)
    for layer in range(LAYERS):
        count = rng.integers(0, min(core, parked) + 1)
        leaving[layer, rng.permutation(core)[:count]] = True
        entering[layer, rng.permutation(parked)[:count]] = True
    out = [cache.positions[i, row, 0, :core][leaving[i]].tolist() for i in range(LAYERS)]
    into = [cache.parked_positions[i, row, :parked][entering[i]].tolist() for i in range(LAYERS)]
    threads = mock.patch.object(moves, "WORTH_THREADS", rng.choice((0, 1 << 20)))
    with threads:
        exchange(cache, row, leaving, entering)
    for layer, head in EACH:
        active, apart = naive.active[layer, head], naive.parked[layer, head]
        for position in out[layer]:
            apart[position] = active.pop(position)
        for position in into[layer]:
            active[position] = apart.pop(position)


def attend(cache: SegmentCache, naive: Naive, rng: np.random.Generator, row: int = 0) -> None:
    """Every active row receives attention."""
    length = int(cache.active_len[row])
    mass = rng.random((LAYERS, HEADS, length)).astype(FLOAT)
    for layer, head in EACH:
        rows = naive.active[layer, head]
        for slot, position in enumerate(cache.positions[layer, row, head, :length].tolist()):
            k, v, before = rows[position]
            rows[position] = (k, v, before + float(mass[layer, head, slot]))
    cache.add_mass(row, mass)


def forget(
    cache: SegmentCache,
    naive: Naive,
    rng: np.random.Generator,
    image_mask: np.ndarray,
    row: int = 0,
) -> None:
    """Every layer and head drops as many text rows as the others, at slots of its own."""
    length = int(cache.active_len[row])
    positions = cache.positions[:, row, :, :length]
    text = ~image_mask[positions]
    count = rng.integers(0, min(4, int(text[0, 0].sum())))
    dropped = np.zeros((LAYERS, HEADS, count), np.int64)
    for each in EACH:
        dropped[each] = np.sort(rng.permutation(np.flatnonzero(text[each]))[:count])
        for slot in dropped[each]:
            naive.active[each].pop(int(positions[each][slot]))
    # Core image rows stay in the slots that all heads share.
    core = cache.positions[:, row, :, : int(cache.image_rows[row])].copy()
    evict(cache, row, dropped)
    np.testing.assert_array_equal(cache.positions[:, row, :, : core.shape[2]], core)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_the_sequences_of_a_batch_are_moved_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image_mask = np.zeros(100, np.bool_)
    image_mask[1:8] = True
    singles, naives = [], []
    lengths = np.array([12, 19, 9])
    for length in lengths:
        cache, naive = empty(), Naive()
        naive.images = set(range(1, 8))
        fill(cache, naive, rng, np.arange(length))
        split(cache, naive, rng, image_mask)
        singles.append(cache)
        naives.append(naive)
    batch = stacked(singles, 4)
    assert batch.version == 0
    for alive in ([True, True, True], [True, False, True], [False, False, True]) * 8:
        rows = np.flatnonzero(alive)
        for row in rows:
            swap(batch, naives[row], rng, row)
            attend(batch, naives[row], rng, row)
        (k, v), mass = drawn(rng, 3, 1), rng.random((LAYERS, 3, HEADS)).astype(FLOAT)
        batch.append(k, v, lengths, mass, np.array(alive), 24)
        for row in rows:
            naives[row].add(int(lengths[row]), k[:, row, :, 0], v[:, row, :, 0], mass[:, row])
            forget(batch, naives[row], rng, image_mask, row)
        lengths[rows] += 1
    for row, naive in enumerate(naives):
        check(batch, naive, row)


def test_a_batch_leaves_nothing_with_the_single_caches() -> None:
    singles = [empty(), empty()]
    for cache in singles:
        fill(cache, Naive(), np.random.default_rng(0), np.arange(5))
    batch = stacked(singles, 4)
    assert [kv(cache) for cache in singles] == [[], []]
    assert len(kv(batch)) == 4 * LAYERS
    assert stacked([batch], 4) is batch


def test_dropped_rows_are_really_freed() -> None:
    cache, naive = empty(), Naive()
    fill(cache, naive, np.random.default_rng(1), np.arange(1000))
    before = cache.nbytes
    mask = np.zeros(1000, np.bool_)
    mask[10:910] = True
    core, parked = (
        np.broadcast_to(indices, (LAYERS, len(indices)))
        for indices in (np.arange(90), np.arange(90, 190))
    )
    partition(cache, core, parked, mask)
    # No array is a view into something larger that would stay in memory unseen.
    assert all(array.base is None or array.base.nbytes == array.nbytes for array in kv(cache))
    assert cache.nbytes <= before * 300 / 1000
    assert (int(cache.active_len[0]), int(cache.parked_len[0])) == (190, 100)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 600), st.integers(0, 200), st.integers(0, 300))
def test_dense_bytes_is_what_a_dense_cache_holds(rows: int, steps: int, spare: int) -> None:
    limit = steps + spare
    cache = empty()
    fill(cache, Naive(), np.random.default_rng(0), np.arange(rows))
    cache.trim(limit)
    row = np.zeros((LAYERS, 1, HEADS, 1, DIM), FLOAT)
    for step in range(steps):
        full, version = cache.is_full, cache.version
        cache.append(row, row, np.array([rows + step]), None, np.array([True]), limit - step)
        assert (cache.version > version) == full
    assert cache.nbytes == LAYERS * dense_bytes(rows, steps, limit, HEADS, DIM, FLOAT)
    assert int(cache.active_len[0]) == rows + steps
    assert cache.positions.shape[3] <= rows + steps + room(rows + steps, limit)


def test_a_copy_survives_reading_another_prompt() -> None:
    rng = np.random.default_rng(2)
    cache, naive = empty(), Naive()
    mask = np.zeros(100, np.bool_)
    mask[2:12] = True
    fill(cache, naive, rng, np.arange(20))
    naive.images = set(range(2, 12))
    split(cache, naive, rng, mask)
    copy = cache.copy()
    fill(cache, Naive(), rng, np.arange(20, 40))
    cache.add_mass(0, np.ones((LAYERS, HEADS, 5), np.float32))
    none = np.zeros((LAYERS, 0), np.int64)
    partition(cache, np.zeros((LAYERS, 1), np.int64), none, mask)
    evict(cache, 0, np.broadcast_to(np.arange(1, 15, 3), (LAYERS, HEADS, 5)))
    check(copy, naive)
