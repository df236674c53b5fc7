"""`update` and the selections, interpreted on the CPU, against naive forms and the policies."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

from avl_plugins.kernels import naive
from avl_plugins.policies import ACTIVE, Refresh, TextBudget, View
from kernel_moves import (
    random_moves,
    selection_with_ties,
    text_evictions,
    update_in_place,
)
from kernel_sequences import refreshes, text_steps
from kernels import interpreted

CHECKS: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    # seed, batch, KV heads, head_dim, moves
    (update_in_place, (0, 2, 2, 16, 5)),
    (update_in_place, (1, 1, 3, 64, 64)),
    (update_in_place, (2, 2, 1, 32, 100)),
    (update_in_place, (3, 1, 1, 80, 1200)),
    # seed, core rows, parked rows, rows of the variant
    (selection_with_ties, (0, 20, 30, 1024)),
    (selection_with_ties, (1, 1, 1, 1024)),
    (selection_with_ties, (2, 30, 0, 1024)),
    (selection_with_ties, (3, 600, 900, 4096)),
    (selection_with_ties, (4, 5, 90, 1024)),
    (selection_with_ties, (5, 500, 524, 1024)),
    # seed, rows
    *((text_evictions, (seed, rows)) for seed, rows in enumerate((40, 40, 12, 300))),
]


@pytest.fixture(scope="module")
def results(interpreting: ProcessPoolExecutor) -> list[Any]:
    return [
        interpreting.submit(interpreted.run, check, arguments[0], *arguments)
        for check, arguments in CHECKS
    ]


@pytest.mark.parametrize(
    "index", range(len(CHECKS)), ids=[f"{check.__name__}-{a[0]}" for check, a in CHECKS]
)
def test_equals_the_naive_form(index: int, results: list[Any]) -> None:
    assert results[index].result() is True


def test_refreshes_in_sequence(interpreting: ProcessPoolExecutor) -> None:
    assert interpreting.submit(interpreted.run, refreshes, 5, 0, 3).result() == []


@pytest.mark.parametrize("ratio", [0.4, 0.9])
def test_evictions_in_sequence(ratio: float, interpreting: ProcessPoolExecutor) -> None:
    assert interpreting.submit(interpreted.run, text_steps, None, 1, 5, ratio).result() == []


def moved_by_hand(places: list[list[int]], moves: list[tuple[int, int]]) -> list[list[int]]:
    """Active and parked rows of (active, parked, new) after moves, on a Python list."""
    active, parked, _ = (len(rows) for rows in places)
    before = [row for rows in places for row in rows]
    after = list(before)
    for source, destination in moves:
        if destination != -1:
            after[destination] = before[source]
    return [after[:active], after[active : active + parked]]


@pytest.mark.parametrize("seed", range(20))
def test_naive_moves_are_those_of_a_list(seed: int) -> None:
    """Rows whose every element tells where it was."""
    rng = np.random.default_rng(seed)
    batch, heads, width = (int(n) for n in rng.integers(1, 4, 3))
    active, parked, new = (int(n) for n in rng.integers(1, 7, 3))
    rows = active + parked + new
    moves = int(rng.integers(1, active + parked + 1))
    labels = np.arange(batch * heads * rows * width).reshape(batch, heads, rows, width) + 1
    ends = [active, active + parked]
    places = np.split(labels, ends, axis=2)
    arrays = [sign * part for part in places for sign in (1, -1)]
    source, destination = random_moves(rng, (batch, heads), rows, active + parked, moves)
    before = [array.copy() for array in arrays]
    naive.move_rows(*arrays, source, destination)
    for b, h, x, d in np.ndindex(batch, heads, 2, width):
        rows_at = [before[2 * place + x][b, h, :, d].tolist() for place in range(3)]
        lists = (source[b, h].tolist(), destination[b, h].tolist())
        expected = moved_by_hand(rows_at, list(zip(*lists, strict=True)))
        found = [arrays[2 * place + x][b, h, :, d].tolist() for place in range(2)]
        assert found == expected
    for array, same in zip(arrays[4:], before[4:], strict=True):
        np.testing.assert_array_equal(array, same)


@pytest.mark.parametrize(
    ("moves", "active", "parked"),
    [
        pytest.param([(1, 3), (3, 1)], [1, 4, 3], [2, 5], id="exchange"),
        pytest.param([(5, 2), (6, 4)], [1, 2, 6], [4, 7], id="append"),
        pytest.param([(2, 0), (0, -1)], [3, 2, 3], [4, 5], id="evict, the last row down"),
        pytest.param([(0, 1), (1, 2), (2, 0)], [3, 1, 2], [4, 5], id="cycle"),
        pytest.param([(5, -1), (6, -1)], [1, 2, 3], [4, 5], id="nothing"),
        pytest.param([(6, 0), (6, 4)], [7, 2, 3], [4, 7], id="one row to two places"),
    ],
)
def test_named_moves(moves: list[tuple[int, int]], active: list[int], parked: list[int]) -> None:
    """3 active, 2 parked and 2 new rows, labelled 1 to 7."""
    rows = np.arange(1, 8, dtype=np.float32).reshape(1, 1, 7, 1)
    keys = [part.copy() for part in np.split(rows, [3, 5], 2)]
    values = [-part for part in keys]
    arrays = [part for pair in zip(keys, values, strict=True) for part in pair]
    source, destination = np.array(moves).T[:, None, None]
    naive.move_rows(*arrays, source, destination)
    for sign, found in ((1, keys), (-1, values)):
        assert found[0].ravel().tolist() == [sign * row for row in active]
        assert found[1].ravel().tolist() == [sign * row for row in parked]


@pytest.mark.parametrize(("source", "destination"), [(7, 0), (0, 5)])
def test_moves_past_the_rows_are_refused(source: int, destination: int) -> None:
    arrays = [np.zeros((1, 1, rows, 1)) for rows in (3, 3, 2, 2, 2, 2)]
    with pytest.raises(IndexError):
        naive.move_rows(*arrays, np.full((1, 1, 1), source), np.full((1, 1, 1), destination))


@pytest.mark.parametrize("seed", range(5))
def test_naive_exchange_is_the_policys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    core, parked, total = 12, 8, 40
    mass = rng.integers(0, 4, (3, core + parked)).astype(np.float32)
    positions = rng.permutation(total)[: core + parked]
    moves = naive.exchange(
        mass[:, :core], mass[:, core:], positions[:core], positions[core:], capacity=100
    )
    seen = View(positions[None], mass.sum(0)[None], 0, 1, total)
    chosen = Refresh(0.3, 1).choose(seen)[0] == ACTIVE
    slots = [*range(core), *range(100, 100 + parked)]
    kept = {slot for slot, stays in zip(slots, chosen, strict=True) if stays}
    assert {source for source, _ in moves[::2]} == kept - set(range(core))
    assert {source for source, _ in moves[1::2]} == set(range(core)) - kept


@pytest.mark.parametrize("seed", range(5))
def test_naive_eviction_is_the_policys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, policy = 30, TextBudget(0.4, 3, 0.6)
    gathered = rng.integers(0, 4, rows) / 4
    positions = rng.permutation(50)[:rows]
    evictable = rng.random(rows) < 0.7
    seen = View(positions[None, evictable], gathered[None, evictable], 0, 1, 30)
    kept = policy.choose(seen)[0] == ACTIVE
    budget = policy.budget(30)
    moves = naive.eviction(
        gathered, positions, evictable, budget, budget - int(budget * policy.heavy)
    )
    stays = ~evictable
    stays[evictable] = kept
    remaining = int(stays.sum())
    slots = list(range(rows))
    for source, destination in moves:
        assert destination < remaining <= source
        slots[destination] = source
    assert set(slots[:remaining]) == set(np.flatnonzero(stays))
