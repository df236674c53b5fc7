"""The KV cache against a model that keeps rows in dicts by position, per layer and KV head."""

from __future__ import annotations

import copy
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.policies import ACTIVE, DROPPED, PARKED
from avl_plugins.schema import COMPUTED
from avl_runtime.kv import moves, sight
from avl_runtime.kv.append import append_rows
from avl_runtime.kv.by_layer import ByLayer, unfilled
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.kv.gather import gathered
from avl_runtime.kv.growth import dense_bytes, room
from avl_runtime.kv.moves import evict, exchange, place, roll_back

LAYERS, HEADS, DIM = 3, 2, 4
FLOAT = np.dtype(np.float32)
PLANES = COMPUTED.planes(DIM, FLOAT)
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
    return SegmentCache(1, HEADS, [PLANES] * LAYERS)


def kv(cache: SegmentCache) -> list[np.ndarray]:
    return [*cache.k_active, *cache.v_active, *cache.k_parked, *cache.v_parked]


def check(cache: SegmentCache, naive: Naive, row: int = 0) -> None:
    for layer, head in EACH:
        length, parked = int(cache.active_len[layer, row]), int(cache.parked_len[layer, row])
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
    assert cache.positions.shape[3] == max(cache.rooms)


def drawn(rng: np.random.Generator, batch: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """K and V [L, B, Hkv, S, D] of new rows."""
    k, v = (rng.normal(size=(LAYERS, batch, HEADS, rows, DIM)).astype(FLOAT) for _ in range(2))
    return k, v


def fill(
    cache: SegmentCache, naive: Naive, rng: np.random.Generator, positions: np.ndarray
) -> None:
    k, v = drawn(rng, 1, len(positions))
    mass = rng.random((LAYERS, 1, HEADS, len(positions))).astype(FLOAT)
    cache.extend((k, v), 0, positions, mass)
    for index, position in enumerate(positions):
        naive.add(int(position), k[:, 0, :, index], v[:, 0, :, index], mass[:, 0, :, index])


def split(
    cache: SegmentCache,
    naive: Naive,
    rng: np.random.Generator,
    image_mask: np.ndarray,
    row: int = 0,
    alike: bool = False,
) -> None:
    """Every layer keeps and parks image rows of its own choice, as many as it likes."""
    count = max(max(naive.active[each] | naive.parked[each], default=0) for each in EACH) + 1
    fates = np.zeros((LAYERS, count), np.int8)
    shares = rng.random(2)
    for layer in range(LAYERS):
        (alive,) = np.nonzero(
            [p in naive.active[layer, 0] or p in naive.parked[layer, 0] for p in range(count)]
        )
        alive = rng.permutation(alive[image_mask[alive]])
        kept, core = np.sort(shares if alike else rng.random(2))[::-1]
        fates[layer, alive[round(core * len(alive)) :]] = PARKED
        fates[layer, alive[round(kept * len(alive)) :]] = DROPPED
    alone = cache.batch == 1 and (fates.any() or cache.parked_len.any())
    place(cache, row, fates, image_mask[:count])
    if alone:  # each layer takes what its own rows need
        assert cache.rooms == [max(1, top) for top in cache.tops]
        apart = [rows.shape[2] for rows in cache.k_parked]
        assert apart == [max(1, *held) for held in cache.parked_len.tolist()]
    for layer, head in EACH:
        rows = {**naive.active[layer, head], **naive.parked[layer, head]}
        fate = fates[layer].tolist()
        naive.active[layer, head] = {p: each for p, each in rows.items() if fate[p] == 0}
        naive.parked[layer, head] = {p: each for p, each in rows.items() if fate[p] == PARKED}


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
            cache.reserve(int(rng.integers(total + 1)))
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
            append_rows(cache, (k, v), np.array([count]), mass, 8)
            naive.add(count, k[:, 0, :, 0], v[:, 0, :, 0], mass[:, 0])
            count += 1
            forget(cache, naive, rng, image_mask)
            check(cache, naive)


def swap(cache: SegmentCache, naive: Naive, rng: np.random.Generator, row: int = 0) -> None:
    """Every layer exchanges as many rows as it likes."""
    for (first, last), _, _ in sight.core_and_parked(cache, row, None):
        core, parked = int(cache.image_rows[first, row]), int(cache.parked_len[first, row])
        layers = range(first, last)
        leaving = np.zeros((len(layers), core), np.bool_)
        entering = np.zeros((len(layers), parked), np.bool_)
        for index in range(len(layers)):
            count = rng.integers(0, min(core, parked) + 1)
            leaving[index, rng.permutation(core)[:count]] = True
            entering[index, rng.permutation(parked)[:count]] = True
        out = [
            cache.positions[layer, row, 0, :core][leaving[i]].tolist()
            for i, layer in enumerate(layers)
        ]
        into = [
            cache.parked_positions[layer, row, :parked][entering[i]].tolist()
            for i, layer in enumerate(layers)
        ]
        threads = mock.patch.object(moves, "WORTH_THREADS", rng.choice((0, 1 << 20)))
        with threads:
            exchange(cache, row, leaving, entering, first)
        for index, layer in enumerate(layers):
            for head in range(HEADS):
                active, apart = naive.active[layer, head], naive.parked[layer, head]
                for position in out[index]:
                    apart[position] = active.pop(position)
                for position in into[index]:
                    active[position] = apart.pop(position)


def attend(cache: SegmentCache, naive: Naive, rng: np.random.Generator, row: int = 0) -> None:
    """Every active row receives attention."""
    masses = unfilled([(cache.batch, HEADS, 2, rows) for rows in cache.rooms])
    for mass in masses:
        mass[...] = rng.random(mass.shape)
    for layer, head in EACH:
        length = int(cache.active_len[layer, row])
        rows = naive.active[layer, head]
        for slot, position in enumerate(cache.positions[layer, row, head, :length].tolist()):
            k, v, before = rows[position]
            rows[position] = (k, v, before + float(masses[layer][row, head, 1, slot]))
    cache.add_mass(row, masses, row)


def forget(
    cache: SegmentCache,
    naive: Naive,
    rng: np.random.Generator,
    image_mask: np.ndarray,
    row: int = 0,
) -> None:
    """Every layer drops as many text rows as it likes, each head at slots of its own."""
    # Core image rows stay in the slots that all heads share.
    fronts = [cache.positions[i, row, :, : cache.image_rows[i, row]].copy() for i in range(LAYERS)]
    for layer in range(LAYERS):
        length = int(cache.active_len[layer, row])
        positions = cache.positions[layer, row, :, :length]
        text = ~image_mask[positions]
        count = rng.integers(0, min(4, int(text[0].sum())))
        dropped = np.zeros((1, HEADS, count), np.int64)
        for head in range(HEADS):
            dropped[0, head] = np.sort(rng.permutation(np.flatnonzero(text[head]))[:count])
            for slot in dropped[0, head]:
                naive.active[layer, head].pop(int(positions[head, slot]))
        evict(cache, row, dropped, layer)
    for layer, front in enumerate(fronts):
        found = cache.positions[layer, row, :, : front.shape[1]]
        np.testing.assert_array_equal(found, front)


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
    batch = gathered([(cache, 0) for cache in singles], 4)
    members = [0, 1, 2]
    for step in range(24):
        for row, one in enumerate(members):
            swap(batch, naives[one], rng, row)
            attend(batch, naives[one], rng, row)
        count = len(members)
        if step % 7 == 0:  # rows that are taken back
            for ahead in range(2):
                append_rows(batch, drawn(rng, count, 1), lengths[members] + ahead, None, 24)
            for row, one in enumerate(members):
                roll_back(batch, row, int(lengths[one]))
        (k, v), mass = drawn(rng, count, 1), rng.random((LAYERS, count, HEADS)).astype(FLOAT)
        append_rows(batch, (k, v), lengths[members], mass, 24)
        for row, one in enumerate(members):
            naive, position = naives[one], int(lengths[one])
            naive.add(position, k[:, row, :, 0], v[:, row, :, 0], mass[:, row])
            forget(batch, naive, rng, image_mask, row)
            if step % 5 == 0:
                split(batch, naive, rng, image_mask, row)
        lengths[members] += 1
        if step == 8:  # the middle one leaves and goes on alone, later it is back in front
            alone = batch.taken(1)
            batch = gathered([(batch, 0), (batch, 2)], 4)
            members = [0, 2]
            check(alone, naives[1])
        if step == 16:
            batch = gathered([(alone, 0), (batch, 1), (batch, 0)], 4)
            members = [1, 2, 0]
    for row, one in enumerate(members):
        check(batch, naives[one], row)


def test_a_batch_leaves_nothing_with_the_single_caches() -> None:
    singles = [empty(), empty()]
    for cache in singles:
        fill(cache, Naive(), np.random.default_rng(0), np.arange(5))
    batch = gathered([(cache, 0) for cache in singles], 4)
    assert [array.size for cache in singles for array in kv(cache)] == [0] * 8 * LAYERS
    assert len(kv(batch)) == 4 * LAYERS
    alone = gathered([(batch, 1)], 4)
    assert gathered([(alone, 0)], 4) is alone


def test_dropped_rows_are_really_freed() -> None:
    cache, naive = empty(), Naive()
    fill(cache, naive, np.random.default_rng(1), np.arange(1000))
    before = cache.nbytes
    mask = np.zeros(1000, np.bool_)
    mask[10:910] = True
    fates = np.zeros((LAYERS, 1000), np.int8)
    fates[:, 100:200], fates[:, 200:910] = PARKED, DROPPED
    place(cache, 0, fates, mask)
    # No array is a view into something larger that would stay in memory unseen.
    assert all(array.base is None or array.base.nbytes == array.nbytes for array in kv(cache))
    assert cache.nbytes <= before * 300 / 1000
    found = (cache.active_len, cache.parked_len, cache.image_rows)
    assert [set(each.ravel().tolist()) for each in found] == [{190}, {100}, {90}]


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
        append_rows(cache, (row, row), np.array([rows + step]), None, limit - step)
        assert (cache.version > version) == full
    assert cache.nbytes == LAYERS * dense_bytes(rows, steps, limit, HEADS, PLANES)
    assert cache.tops == [rows + steps] * LAYERS
    most = max(room(rows + steps, limit), (rows + steps) // 4)
    assert cache.positions.shape[3] <= rows + steps + most


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 150), st.integers(0, 30)), min_size=LAYERS, max_size=LAYERS),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_a_layer_holds_the_bytes_that_its_own_rows_need(
    rows: list[tuple[int, int]], steps: int, spare: int
) -> None:
    cache, most, limit = empty(), 180, steps + spare
    fill(cache, Naive(), np.random.default_rng(0), np.arange(most))
    mask = np.arange(most) > 0
    fates = np.full((LAYERS, most), DROPPED, np.int8)
    for fate, (active, parked) in zip(fates, rows, strict=True):
        fate[:active], fate[active : active + parked] = ACTIVE, PARKED
    place(cache, 0, fates, mask)
    row = HEADS * DIM * FLOAT.itemsize
    assert cache.nbytes == 2 * row * sum(active + max(1, parked) for active, parked in rows)
    cache.trim(limit)
    new = np.zeros((LAYERS, 1, HEADS, 1, DIM), FLOAT)
    for step in range(steps):
        held = kv(cache)
        full = [top == rooms for top, rooms in zip(cache.tops, cache.rooms, strict=True)]
        append_rows(cache, (new, new), np.array([most + step]), None, limit - step)
        kept = [now is before for now, before in zip(kv(cache), held, strict=True)]
        assert kept == [not each for each in full] * 2 + [True] * 2 * LAYERS
    assert cache.nbytes == sum(
        dense_bytes(active, steps, limit, HEADS, PLANES) + 2 * row * (max(1, parked) - 1)
        for active, parked in rows
    )


def test_a_copy_survives_reading_another_prompt() -> None:
    rng = np.random.default_rng(2)
    cache, naive = empty(), Naive()
    mask = np.zeros(100, np.bool_)
    mask[2:12] = True
    fill(cache, naive, rng, np.arange(20))
    naive.images = set(range(2, 12))
    split(cache, naive, rng, mask)
    other = cache.copy()
    fill(cache, Naive(), rng, np.arange(20, 40))
    cache.add_mass(0, ByLayer([np.ones((LAYERS, 1, HEADS, 2, 40), np.float32)]))
    fates = np.zeros((LAYERS, 40), np.int8)
    fates[:, 3:12] = DROPPED
    place(cache, 0, fates, mask[:40])
    evict(cache, 0, np.broadcast_to(np.arange(1, 15, 3), (LAYERS, HEADS, 5)))
    check(other, naive)


def test_the_first_to_write_takes_rows_of_its_own() -> None:
    rng = np.random.default_rng(3)
    cache, naive = empty(), Naive()
    mask = np.zeros(100, np.bool_)
    mask[2:12] = True
    naive.images = set(range(2, 12))
    fill(cache, naive, rng, np.arange(20))
    split(cache, naive, rng, mask, alike=True)
    cache.trim(8)
    for writer in (0, 1):
        pair = [cache.fork(), None]
        pair[1] = pair[0].fork()
        written, other = pair[writer], pair[1 - writer]
        same = copy.deepcopy(naive)
        swap(written, same, rng)
        (k, v), mass = drawn(rng, 1, 1), rng.random((LAYERS, 1, HEADS)).astype(FLOAT)
        append_rows(written, (k, v), np.array([20]), mass, 8)
        same.add(20, k[:, 0, :, 0], v[:, 0, :, 0], mass[:, 0])
        forget(written, same, rng, mask)
        check(written, same)
        check(other, naive)
        check(cache, naive)
