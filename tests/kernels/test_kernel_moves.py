"""`update` and the selections, interpreted on the CPU, against naive forms and the policies."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

from avl_plugins.kernels import naive
from avl_plugins.policies.split import Split
from avl_plugins.policies.text import TextBudget
from avl_plugins.reference import split_cache_update
from kernel_moves import (
    random_moves,
    selection_with_ties,
    text_evictions,
    update_in_place,
    update_into_copies,
)
from kernel_sequences import refreshes, text_steps
from kernels import interpreted

CHECKS: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    # seed, batch, KV heads, head_dim, moves
    (update_in_place, (0, 2, 2, 16, 5)),
    (update_in_place, (1, 1, 3, 64, 64)),
    (update_in_place, (2, 2, 1, 32, 100)),
    (update_in_place, (3, 1, 1, 80, 1200)),
    (update_into_copies, (0, 2, 2, 16, 30)),
    (update_into_copies, (1, 1, 2, 80, 300)),
    (update_into_copies, (2, 2, 1, 64, 1)),
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


@pytest.mark.parametrize("seed", range(5))
def test_naive_moves_are_those_of_the_op(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((2, 2, rows, 4)) for rows in (7, 7, 5, 5, 2, 2)]
    source, destination = random_moves(rng, (2, 2), 14, 12, 9)
    expected = split_cache_update(*arrays, source, destination)
    naive.move_rows(*arrays, source, destination)
    for array, reference in zip(arrays, expected, strict=False):
        np.testing.assert_array_equal(array, reference)


@pytest.mark.parametrize("seed", range(5))
def test_naive_exchange_is_the_policys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    core, parked, total = 12, 8, 40
    mass = rng.integers(0, 4, (3, core + parked)).astype(np.float32)
    positions = rng.permutation(total)[: core + parked]
    moves = naive.exchange(
        mass[:, :core], mass[:, core:], positions[:core], positions[core:], capacity=100
    )
    chosen = Split(0.5, 0.3, 1, None).new_core(mass.sum(0)[None], positions[None], total, 0, 1)[0]
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
    kept = policy.kept(gathered[None, evictable], positions[None, evictable], 30)[0]
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
