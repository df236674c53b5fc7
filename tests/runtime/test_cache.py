"""The KV cache against a model that keeps rows as plain Python lists of (position, K, V, mass)."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_runtime.cache import LayerCache, dense_bytes, room, stacked

HEADS, DIM = 2, 4
FLOAT = np.dtype(np.float32)


class Naive:
    """Per head a dict of active rows by position, and one of parked rows."""

    def __init__(self) -> None:
        self.active: list[dict[int, tuple]] = [{} for _ in range(HEADS)]
        self.parked: list[dict[int, tuple]] = [{} for _ in range(HEADS)]
        self.images: set[int] = set()  # only text rows are ranked by their mass

    def add(self, position: int, k: np.ndarray, v: np.ndarray, mass: np.ndarray) -> None:
        for head in range(HEADS):
            self.active[head][position] = (k[head].copy(), v[head].copy(), float(mass[head]))


def check(cache: LayerCache, naive: Naive, row: int = 0) -> None:
    length, parked = int(cache.active_len[row]), int(cache.parked_len[row])
    for head in range(HEADS):
        positions = cache.positions[row, head, :length].tolist()
        assert sorted(positions) == sorted(naive.active[head])
        for slot, position in enumerate(positions):
            k, v, mass = naive.active[head][position]
            np.testing.assert_array_equal(cache.k_active[row, head, slot], k)
            np.testing.assert_array_equal(cache.v_active[row, head, slot], v)
            assert position in naive.images or abs(cache.mass[row, head, slot] - mass) < 1e-5
        apart = cache.parked_positions[row, :parked].tolist()
        assert sorted(apart) == sorted(naive.parked[head])
        for slot, position in enumerate(apart):
            k, v, _ = naive.parked[head][position]
            np.testing.assert_array_equal(cache.k_parked[row, head, slot], k)
            np.testing.assert_array_equal(cache.v_parked[row, head, slot], v)
    assert np.isfinite(cache.k_active).all()
    assert cache.nbytes == sum(
        a.nbytes for a in (cache.k_active, cache.v_active, cache.k_parked, cache.v_parked)
    )


def fill(cache: LayerCache, naive: Naive, rng: np.random.Generator, positions: np.ndarray) -> None:
    k, v = (rng.normal(size=(1, HEADS, len(positions), DIM)).astype(FLOAT) for _ in range(2))
    mass = rng.random((HEADS, len(positions))).astype(FLOAT)
    cache.extend(k, v, positions, mass)
    for index, position in enumerate(positions):
        naive.add(int(position), k[0, :, index], v[0, :, index], mass[:, index])


def split(
    cache: LayerCache, naive: Naive, rng: np.random.Generator, image_mask: np.ndarray
) -> None:
    alive = cache.image_positions(image_mask)
    secondary = np.sort(rng.permutation(alive)[: rng.integers(0, len(alive) + 1)])
    core = np.sort(rng.permutation(secondary)[: rng.integers(0, len(secondary) + 1)])
    parked = np.setdiff1d(secondary, core)
    cache.partition(core, parked, image_mask)
    for head in range(HEADS):
        rows = {**naive.active[head], **naive.parked[head]}
        naive.active[head] = {p: r for p, r in rows.items() if not image_mask[p] or p in core}
        naive.parked[head] = {p: rows[p] for p in parked.tolist()}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(0, 20))
def test_any_sequence_of_moves_keeps_exactly_the_right_rows(
    seed: int, text: int, images: int
) -> None:
    rng = np.random.default_rng(seed)
    image_mask = np.zeros(400, np.bool_)
    cache, naive = LayerCache(1, HEADS, DIM, FLOAT), Naive()
    count = 0
    for _turn in range(2):
        total = text + images
        where = rng.permutation(total - 1)[: min(images, total - 1)]
        image_mask[count + where] = True
        naive.images = set(np.flatnonzero(image_mask).tolist())
        for chunk in np.array_split(np.arange(count, count + total), rng.integers(1, 4)):
            if len(chunk):
                fill(cache, naive, rng, chunk)
        count += total
        check(cache, naive)
        split(cache, naive, rng, image_mask)
        check(cache, naive)
        cache.trim(8)
        for _step in range(6):
            exchange(cache, naive, rng)
            k, v = (rng.normal(size=(1, HEADS, 1, DIM)).astype(FLOAT) for _ in range(2))
            cache.append(k, v, np.array([count]), np.array([True]), 8)
            naive.add(count, k[0, :, 0], v[0, :, 0], np.zeros(HEADS))
            count += 1
            evict(cache, naive, rng, image_mask)
            check(cache, naive)


def exchange(cache: LayerCache, naive: Naive, rng: np.random.Generator) -> None:
    core, parked = int(cache.image_rows[0]), int(cache.parked_len[0])
    count = int(rng.integers(0, min(core, parked) + 1)) if parked else 0
    leaving = rng.permutation(core)[:count]
    entering = rng.permutation(parked)[:count]
    out = cache.positions[0, 0, leaving].tolist()
    into = cache.parked_positions[0, entering].tolist()
    if count:
        cache.exchange(0, leaving, entering)
    for head in range(HEADS):
        for position in out:
            naive.parked[head][position] = naive.active[head].pop(position)
        for position in into:
            naive.active[head][position] = naive.parked[head].pop(position)


def evict(
    cache: LayerCache, naive: Naive, rng: np.random.Generator, image_mask: np.ndarray
) -> None:
    length = int(cache.active_len[0])
    text = ~image_mask[cache.positions[0, :, :length]]
    count = int(text[0].sum())
    drop = int(rng.integers(0, min(3, count)))
    kept = np.ones((HEADS, length), np.bool_)
    for head in range(HEADS):
        holes = rng.permutation(np.flatnonzero(text[head]))[:drop]
        kept[head, holes] = False
        for slot in holes:
            naive.active[head].pop(int(cache.positions[0, head, slot]))
    # Core image rows stay in the slots that all heads share.
    image_slots = cache.positions[0, :, : int(cache.image_rows[0])].copy()
    cache.evict(0, kept)
    if cache.image_rows[0]:
        np.testing.assert_array_equal(cache.positions[0, :, : len(image_slots[0])], image_slots)


def test_a_batch_appends_to_living_sequences_only() -> None:
    rng = np.random.default_rng(0)
    naives = [Naive(), Naive(), Naive()]
    singles = []
    for naive, rows in zip(naives, (3, 7, 1), strict=True):
        cache = LayerCache(1, HEADS, DIM, FLOAT)
        fill(cache, naive, rng, np.arange(rows))
        singles.append(cache)
    batch = stacked(singles, 4)
    lengths = np.array([3, 7, 1])
    for alive in ([True, True, True], [True, False, True], [False, False, True]) * 8:
        mask = np.array(alive)
        k, v = (rng.normal(size=(3, HEADS, 1, DIM)).astype(FLOAT) for _ in range(2))
        batch.append(k, v, lengths, mask, 24)
        for row in np.flatnonzero(mask):
            naives[row].add(int(lengths[row]), k[row, :, 0], v[row, :, 0], np.zeros(HEADS))
        lengths += mask
    for row, naive in enumerate(naives):
        check(batch, naive, row)


def test_dropped_rows_are_really_freed() -> None:
    cache, naive = LayerCache(1, HEADS, DIM, FLOAT), Naive()
    fill(cache, naive, np.random.default_rng(1), np.arange(1000))
    before = cache.nbytes
    mask = np.zeros(1000, np.bool_)
    mask[10:910] = True
    cache.partition(np.arange(10, 100), np.arange(100, 200), mask)
    assert cache.k_active.base is None or cache.k_active.base.nbytes == cache.k_active.nbytes
    assert cache.nbytes <= before * 300 / 1000
    check_lengths = (int(cache.active_len[0]), int(cache.parked_len[0]))
    assert check_lengths == (190, 100)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 600), st.integers(0, 200), st.integers(0, 300))
def test_dense_bytes_is_what_a_dense_cache_holds(rows: int, steps: int, spare: int) -> None:
    limit = steps + spare
    cache = LayerCache(1, HEADS, DIM, FLOAT)
    fill(cache, Naive(), np.random.default_rng(0), np.arange(rows))
    cache.trim(limit)
    row = np.zeros((1, HEADS, 1, DIM), FLOAT)
    for step in range(steps):
        cache.append(row, row, np.array([rows + step]), np.array([True]), limit - step)
    assert cache.nbytes == dense_bytes(rows, steps, limit, HEADS, DIM, FLOAT)
    assert int(cache.active_len[0]) == rows + steps
    assert cache.k_active.shape[2] <= rows + steps + room(rows + steps, limit)


def test_a_copy_survives_reading_another_prompt() -> None:
    rng = np.random.default_rng(2)
    cache, naive = LayerCache(1, HEADS, DIM, FLOAT), Naive()
    mask = np.zeros(100, np.bool_)
    mask[2:12] = True
    fill(cache, naive, rng, np.arange(20))
    naive.images = set(range(2, 12))
    split(cache, naive, rng, mask)
    copy = cache.copy()
    fill(cache, Naive(), rng, np.arange(20, 40))
    cache.add_mass(0, np.ones((HEADS, 5), np.float32))
    cache.partition(cache.image_positions(mask)[:1], np.zeros(0, np.int64), mask)
    cache.evict(0, np.arange(int(cache.active_len[0]))[None].repeat(HEADS, 0) % 3 > 0)
    check(copy, naive)
