"""What the parts of a plan choose, against sorted lists."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.policies import Prune, Split, TextBudget

check = settings(max_examples=120, deadline=None, derandomize=True, database=None)

# Few different values, so that ties are common.
scores = st.lists(st.integers(0, 5).map(lambda n: n / 4), max_size=24)
hundredths = st.integers(1, 100)


def best(values: list[float], count: int) -> list[int]:
    """Indices of the `count` highest values, the lower index first among equals, ascending."""
    return sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])


def share(percent: int, total: int) -> int:
    """That many hundredths of `total`, rounded down exactly, but at least 1."""
    return max(1, math.floor(Fraction(percent, 100) * total))


def array(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


@check
@given(values=scores, percent=hundredths)
def test_prune_keeps_the_best_in_order(values: list[float], percent: int) -> None:
    total = len(values)
    prune = Prune(2, percent / 100, None)
    count = prune.count(total)
    kept = prune.select(array(values), total)
    assert kept.dtype == np.int64
    assert kept.tolist() == best(values, count)
    assert abs(count - percent / 100 * total) <= 0.5 or count == 1
    assert count == 0 if total == 0 else 1 <= count <= total


@pytest.mark.parametrize(
    ("keep", "total", "count"),
    [(0.5, 144, 72), (0.5, 3, 2), (0.5, 5, 2), (0.25, 144, 36), (0.01, 10, 1), (1.0, 7, 7)],
)
def test_prune_counts(keep: float, total: int, count: int) -> None:
    assert Prune(2, keep, None).count(total) == count
    assert Prune(2, keep, 0).count(total) == count


@check
@given(total=st.integers(0, 700), alive=st.integers(0, 700), keep=hundredths, core=hundredths)
def test_split_counts(total: int, alive: int, keep: int, core: int) -> None:
    secondary, chosen = Split(keep / 100, core / 100, 3, None).counts(total, alive)
    if total == 0:
        assert (secondary, chosen) == (0, 0)
    else:
        assert secondary == min(share(keep, total), alive)
        assert chosen == min(share(core, total), secondary)


@pytest.mark.parametrize(("keep", "total", "count"), [(0.29, 100, 29), (0.57, 100, 57)])
def test_split_counts_do_not_lose_a_token_to_rounding(keep: float, total: int, count: int) -> None:
    assert math.floor(keep * total) == count - 1
    assert Split(keep, keep, 3, None).counts(total, total) == (count, count)


@check
@given(values=scores, gone=st.integers(0, 12), keep=hundredths, core=hundredths)
def test_split_partitions_by_score(values: list[float], gone: int, keep: int, core: int) -> None:
    total = len(values) + gone
    split = Split(keep / 100, core / 100, 3, None)
    core_rows, parked_rows = split.partition(array(values), total, layer=1)
    secondary = best(values, share(keep, total) if total else 0)
    wanted = [i for i in best(values, share(core, total) if total else 0) if i in secondary]
    assert core_rows.dtype == parked_rows.dtype == np.int64
    assert core_rows.tolist() == wanted
    assert parked_rows.tolist() == [i for i in secondary if i not in wanted]


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
    split = Split(1.0, core / 100, 3, None)
    chosen = split.new_core(scores, positions, total, layer=0, step=3)
    assert chosen.dtype == np.bool_
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
    split = Split(1.0, core / 100, 3, seed)
    chosen = split.new_core(scores, positions, count, layer, step=6)
    for index, (mask, places) in enumerate(zip(chosen, positions, strict=True)):
        drawn = np.random.default_rng((seed, layer + index, 6)).permutation(count)
        wanted = np.sort(places)[drawn[: share(core, count) if count else 0]]
        assert sorted(places[mask].tolist()) == sorted(wanted.tolist())


@check
@given(rows=layers(), keep=hundredths, core=hundredths, seed=st.none() | st.integers(0, 9))
def test_layers_are_partitioned_together_as_one_by_one(
    rows: tuple[np.ndarray, np.ndarray], keep: int, core: int, seed: int | None
) -> None:
    scores, _ = rows
    split = Split(keep / 100, core / 100, 3, seed)
    together = split.partition(scores, scores.shape[1], layer=5)
    for index, values in enumerate(scores):
        alone = split.partition(values, len(values), layer=5 + index)
        for indices, own in zip(together, alone, strict=True):
            np.testing.assert_array_equal(indices[index], own)


def test_refresh_steps() -> None:
    split = Split(0.5, 0.3, 3, None)
    assert [step for step in range(1, 10) if split.is_refresh(step)] == [3, 6, 9]
    assert all(Split(0.5, 0.3, 1, None).is_refresh(step) for step in range(1, 5))


@check
@given(n=st.integers(1, 60), seed=st.integers(0, 2**63), layer=st.integers(0, 40))
def test_random_choices_ignore_scores_and_repeat(n: int, seed: int, layer: int) -> None:
    flat, steep = np.zeros(n, np.float32), np.arange(n, dtype=np.float32)
    prune = Prune(2, 0.5, seed)
    kept = prune.select(flat, n)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == prune.count(n)
    assert set(kept.tolist()) <= set(range(n))
    np.testing.assert_array_equal(kept, prune.select(steep, n))

    split = Split(0.5, 0.3, 3, seed)
    core, parked = split.partition(flat, n, layer)
    again = split.partition(steep, n, layer)
    np.testing.assert_array_equal(np.concatenate([core, parked]), np.concatenate(again))
    secondary, chosen = split.counts(n, n)
    assert (len(core), len(core) + len(parked)) == (chosen, secondary)
    assert not set(core.tolist()) & set(parked.tolist())


def test_random_choices_differ_by_seed_layer_and_step() -> None:
    zeros, positions = np.zeros((1, 200), np.float32), np.arange(200)[None]

    def core(seed: int, layer: int, step: int) -> bytes:
        split = Split(0.5, 0.3, 3, seed)
        return split.new_core(zeros, positions, 200, layer, step).tobytes()

    assert len({core(0, 0, 3), core(1, 0, 3), core(0, 1, 3), core(0, 0, 6)}) == 4
    first, second = (Prune(2, 0.5, seed).select(zeros[0], 200).tolist() for seed in (0, 1))
    assert first != second


def test_random_choices_are_fair() -> None:
    hits = np.zeros(40)
    for seed in range(400):
        hits[Prune(2, 0.5, seed).select(np.zeros(40, np.float32), 40)] += 1
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
    kept = text.kept(
        np.array(acc, np.float32).reshape(shape),
        np.array(positions, np.int64).reshape(shape),
        n_text,
    )[0]
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
