"""What actions choose, against sorted lists."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.policies import (
    ACTIVE,
    ATTENTION,
    PARKED,
    AtRandom,
    Divide,
    Prune,
    Ranking,
    Refresh,
    TextBudget,
    View,
)

check = settings(max_examples=120, deadline=None, derandomize=True, database=None)

# Few different values, so that ties are common.
scores = st.lists(st.integers(0, 5).map(lambda n: n / 4), max_size=24)
hundredths = st.integers(1, 100)
pairs = st.tuples(hundredths, hundredths).map(sorted)  # core <= keep


def best(values: list[float], count: int) -> list[int]:
    """Indices of the `count` highest values, the lower index first among equals, ascending."""
    return sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])


def share(percent: int, total: int) -> int:
    """That many hundredths of `total`, rounded down exactly, but at least 1."""
    return max(1, math.floor(Fraction(percent, 100) * total))


def view(
    values: list[float] | np.ndarray,
    total: int | None = None,
    positions: np.ndarray | None = None,
    layer: int = 0,
    step: int | None = 0,
) -> View:
    attention = np.asarray(values, np.float32)
    if positions is None:
        positions = np.broadcast_to(np.arange(attention.shape[-1]), attention.shape)
    return View(positions, attention, layer, step, attention.shape[-1] if total is None else total)


def ranking(seed: int | None) -> Ranking:
    return ATTENTION if seed is None else AtRandom(seed)


def pruned(prune: Prune, values: list[float] | np.ndarray) -> list[int]:
    fates = prune.choose(view(values, layer=prune.layer, step=None))
    return np.flatnonzero(fates == ACTIVE).tolist()


def divided(divide: Divide, seen: View) -> tuple[list[int], list[int]]:
    """Indices of core and parked rows of a single layer."""
    fates = divide.choose(seen)
    assert fates.dtype == np.int8
    return np.flatnonzero(fates == ACTIVE).tolist(), np.flatnonzero(fates == PARKED).tolist()


@check
@given(values=scores, percent=hundredths)
def test_prune_keeps_the_best_in_order(values: list[float], percent: int) -> None:
    total = len(values)
    prune = Prune(2, percent / 100)
    count = prune.count(total)
    assert pruned(prune, values) == best(values, count)
    assert abs(count - percent / 100 * total) <= 0.5 or count == 1
    assert count == 0 if total == 0 else 1 <= count <= total


@pytest.mark.parametrize(
    ("keep", "total", "count"),
    [(0.5, 144, 72), (0.5, 3, 2), (0.5, 5, 2), (0.25, 144, 36), (0.01, 10, 1), (1.0, 7, 7)],
)
def test_prune_counts(keep: float, total: int, count: int) -> None:
    assert Prune(2, keep).count(total) == count
    assert Prune(2, keep, AtRandom(0)).count(total) == count


@check
@given(total=st.integers(0, 700), alive=st.integers(0, 700), shares=pairs)
def test_split_counts(total: int, alive: int, shares: tuple[int, int]) -> None:
    core, keep = shares
    secondary, chosen = Divide(keep / 100, core / 100).counts(total, alive)
    if total == 0:
        assert (secondary, chosen) == (0, 0)
    else:
        assert secondary == min(share(keep, total), alive)
        assert chosen == min(share(core, total), secondary)


@pytest.mark.parametrize(("keep", "total", "count"), [(0.29, 100, 29), (0.57, 100, 57)])
def test_split_counts_do_not_lose_a_token_to_rounding(keep: float, total: int, count: int) -> None:
    assert math.floor(keep * total) == count - 1
    assert Divide(keep, keep).counts(total, total) == (count, count)
    assert Refresh(keep, 3).count(total, total) == count


@check
@given(values=scores, gone=st.integers(0, 12), shares=pairs)
def test_split_partitions_by_score(values: list[float], gone: int, shares: tuple[int, int]) -> None:
    core, keep = shares
    total = len(values) + gone
    core_rows, parked_rows = divided(Divide(keep / 100, core / 100), view(values, total, layer=1))
    secondary = best(values, share(keep, total) if total else 0)
    wanted = [i for i in best(values, share(core, total) if total else 0) if i in secondary]
    assert core_rows == wanted
    assert parked_rows == [i for i in secondary if i not in wanted]


@st.composite
def layers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and unique positions in any order, of the same number of rows a layer."""
    count, n = draw(st.integers(1, 4)), draw(st.integers(0, 20))
    values = st.lists(st.integers(0, 5).map(lambda i: i / 4), min_size=n, max_size=n)
    places = st.lists(st.integers(0, 90), min_size=n, max_size=n, unique=True)
    return (
        np.array([draw(values) for _ in range(count)], np.float32).reshape(count, n),
        np.array([draw(places) for _ in range(count)], np.int64).reshape(count, n),
    )


@check
@given(rows=layers(), gone=st.integers(0, 12), core=hundredths)
def test_a_refresh_ranks_the_core_anew(
    rows: tuple[np.ndarray, np.ndarray], gone: int, core: int
) -> None:
    scores, positions = rows
    total = scores.shape[1] + gone
    chosen = Refresh(core / 100, 3).choose(view(scores, total, positions, step=3)) == ACTIVE
    for mask, values, places in zip(chosen, scores, positions, strict=True):
        ranked = sorted(range(len(values)), key=lambda i: (-values[i], places[i]))
        wanted = ranked[: share(core, total) if total else 0]
        assert np.flatnonzero(mask).tolist() == sorted(wanted)


@check
@given(rows=layers(), seed=st.integers(0, 2**40), layer=st.integers(0, 30), core=hundredths)
def test_a_random_core_is_drawn_from_positions_by_layer_and_step(
    rows: tuple[np.ndarray, np.ndarray], seed: int, layer: int, core: int
) -> None:
    scores, positions = rows
    count = scores.shape[1]
    refresh = Refresh(core / 100, 3, AtRandom(seed))
    chosen = refresh.choose(view(scores, count, positions, layer, 6)) == ACTIVE
    for index, (mask, places) in enumerate(zip(chosen, positions, strict=True)):
        drawn = np.random.default_rng((seed, layer + index, 6)).permutation(count)
        wanted = np.sort(places)[drawn[: share(core, count) if count else 0]]
        assert sorted(places[mask].tolist()) == sorted(wanted.tolist())


@check
@given(rows=layers(), shares=pairs, seed=st.none() | st.integers(0, 9))
def test_layers_are_partitioned_together_as_one_by_one(
    rows: tuple[np.ndarray, np.ndarray], shares: tuple[int, int], seed: int | None
) -> None:
    core, keep = shares
    scores, _ = rows
    divide = Divide(keep / 100, core / 100, ranking(seed))
    together = divide.choose(view(scores, layer=5))
    for index, values in enumerate(scores):
        alone = divide.choose(view(values, layer=5 + index))
        np.testing.assert_array_equal(together[index], alone)


def test_refresh_steps() -> None:
    refresh = Refresh(0.3, 3)
    assert [step for step in range(1, 10) if refresh.due(step)] == [3, 6, 9]
    assert all(Refresh(0.3, 1).due(step) for step in range(1, 5))


@check
@given(n=st.integers(1, 60), seed=st.integers(0, 2**63), layer=st.integers(0, 40))
def test_random_choices_ignore_scores_and_repeat(n: int, seed: int, layer: int) -> None:
    flat, steep = np.zeros(n, np.float32), np.arange(n, dtype=np.float32)
    prune = Prune(2, 0.5, AtRandom(seed))
    kept = pruned(prune, flat)
    assert len(kept) == prune.count(n)
    assert kept == pruned(prune, steep)
    drawn = np.random.default_rng((seed, 2)).permutation(n)
    assert kept == sorted(drawn[: prune.count(n)].tolist())

    divide = Divide(0.5, 0.3, AtRandom(seed))
    core, parked = divided(divide, view(flat, layer=layer))
    assert (core, parked) == divided(divide, view(steep, layer=layer))
    secondary, chosen = divide.counts(n, n)
    assert (len(core), len(core) + len(parked)) == (chosen, secondary)
    drawn = np.random.default_rng((seed, layer, 0)).permutation(n)
    assert core == sorted(drawn[:chosen].tolist())
    assert parked == sorted(drawn[chosen:secondary].tolist())


def test_random_choices_differ_by_seed_layer_and_step() -> None:
    zeros, positions = np.zeros((1, 200), np.float32), np.arange(200)[None]

    def core(seed: int, layer: int, step: int) -> bytes:
        refresh = Refresh(0.3, 3, AtRandom(seed))
        return refresh.choose(view(zeros, 200, positions, layer, step)).tobytes()

    assert len({core(0, 0, 3), core(1, 0, 3), core(0, 1, 3), core(0, 0, 6)}) == 4
    first, second = (pruned(Prune(2, 0.5, AtRandom(seed)), zeros[0]) for seed in (0, 1))
    assert first != second


def test_random_choices_are_fair() -> None:
    hits = np.zeros(40)
    for seed in range(400):
        hits[pruned(Prune(2, 0.5, AtRandom(seed)), np.zeros(40, np.float32))] += 1
    assert hits.min() > 150  # 200 expected, standard deviation 10
    assert hits.max() < 250


@pytest.mark.parametrize(
    ("ratio", "minimum", "n_text", "budget"),
    [(0.6, 20, 10, 20), (0.6, 20, 50, 30), (0.5, 1, 5, 2), (0.5, 1, 7, 4), (0.6, 20, 0, 20)],
)
def test_text_budgets(ratio: float, minimum: int, n_text: int, budget: int) -> None:
    assert TextBudget(ratio, minimum, 0.7).budget(n_text) == budget


@st.composite
def heads(draw: st.DrawFn) -> tuple[list[list[float]], list[list[int]]]:
    """Accumulated attention with ties, and unique positions in any order, of some KV heads."""
    count, alive = draw(st.integers(1, 3)), draw(st.integers(0, 16))
    values = st.lists(st.integers(0, 4).map(float), min_size=alive, max_size=alive)
    places = st.lists(st.integers(0, 90), min_size=alive, max_size=alive, unique=True)
    return [draw(values) for _ in range(count)], [draw(places) for _ in range(count)]


@check
@given(
    alive=heads(),
    evicted=st.integers(0, 20),
    ratio=hundredths,
    minimum=st.integers(1, 12),
    heavy=st.integers(0, 100),
)
def test_text_kept_per_head(
    alive: tuple[list[list[float]], list[list[int]]],
    evicted: int,
    ratio: int,
    minimum: int,
    heavy: int,
) -> None:
    acc, positions = alive
    n_text = len(acc[0]) + evicted
    text = TextBudget(ratio / 100, minimum, heavy / 100)
    shape = (1, len(acc), len(acc[0]))  # [L, Hkv, n]
    seen = View(
        np.array(positions, np.int64).reshape(shape),
        np.array(acc, np.float32).reshape(shape),
        0,
        1,
        n_text,
    )
    kept = (text.choose(seen) == ACTIVE)[0]
    budget = max(round(ratio / 100 * n_text), minimum)
    assert text.budget(n_text) == budget
    for head, (weights, places) in enumerate(zip(acc, positions, strict=True)):
        slots = list(range(len(places)))
        if len(slots) > budget:
            hitters = int(budget * (heavy / 100))
            newest_first = sorted(slots, key=lambda i: -places[i])
            recent, older = newest_first[: budget - hitters], newest_first[budget - hitters :]
            older.sort(key=lambda i: (-weights[i], places[i]))
            slots = sorted(recent + older[:hitters])
        assert np.flatnonzero(kept[head]).tolist() == slots
