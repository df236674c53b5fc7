"""Refreshes that the step kernel does, against the reference and a naive ranking."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins import cpu
from avl_plugins.cpu.host import host
from avl_plugins.cpu.refresh import Refresh
from ops.agreement import assert_agrees, expected
from ops.op_models import Arrays, attention_inputs, run
from ops.test_attention_function import key_of
from ops.test_cpu_kernels import LONG, of_one_row, step_session

CACHES = ("k_active", "v_active", "k_parked", "v_parked")
Labels = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def labelled(arrays: Arrays, numbers: np.random.Generator, most: int = 0) -> Labels:
    """Positions [1, B, Hkv, A] and [1, B, P], in any order, the same in every head.

    There may be room for up to `most` more of each, as where another layer has more rows.
    """
    batch, heads, active, _ = arrays["k_active"].shape
    parked = arrays["k_parked"].shape[2]
    drawn = np.array([numbers.permutation(3 * (active + parked)) for _ in range(batch)])
    positions = np.repeat(drawn[:, None, :active], heads, 1)
    found = positions[None], drawn[None, :, active : active + parked]
    active, parked = (
        np.pad(each, [(0, 0)] * (each.ndim - 1) + [(0, spare)], constant_values=-1)
        for each, spare in zip(found, numbers.integers(0, most + 1, 2), strict=True)
    )
    return active, parked


def refresh_of(arrays: Arrays, core: np.ndarray[Any, Any], labels: Labels) -> Refresh:
    return Refresh([arrays["k_active"]], [arrays["k_parked"]], *labels, host()).of(core)


def rows_by_position(arrays: Arrays, labels: Labels, b: int) -> dict[tuple[int, int], bytes]:
    """Keys and values of the live rows of a sequence, by head and position."""
    found = {}
    for head in range(arrays["k_active"].shape[1]):
        places = (labels[0][0, b, head], "active"), (labels[1][0, b], "parked")
        for positions, place in places:
            for slot in range(int(arrays[f"{place}_len"][b])):
                pair = [arrays[f"{kind}_{place}"][b, head, slot].tobytes() for kind in "kv"]
                found[head, int(positions[slot])] = b"".join(pair)
    return found


@pytest.mark.parametrize("largest", [12, LONG])
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (4, 8), (2, 80)])
def test_the_rows_with_most_attention_become_the_core(
    kernels: Path, group: int, head_dim: int, largest: int
) -> None:
    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(
        arrays=attention_inputs(group, head_dim, largest=largest), seed=st.integers(0, 2**32 - 1)
    )
    def check(arrays: Arrays, seed: int) -> None:
        arrays, numbers = of_one_row(arrays), np.random.default_rng(seed)
        core = numbers.integers(0, arrays["active_len"] + 1)
        labels = labelled(arrays, numbers, 3)
        before = {name: array.copy() for name, array in arrays.items()}
        labels_before = labels[0].copy(), labels[1].copy()
        refresh = refresh_of(arrays, core, labels)
        with refresh:
            outputs = run(step_session(kernels, *key_of(arrays)), arrays)
        assert_agrees(before, outputs)
        for b, count in enumerate(core):
            assert_core_has_most(before, labels_before, labels, b, int(count))
            assert rows_by_position(arrays, labels, b) == rows_by_position(before, labels_before, b)
            moved = (labels[0] != labels_before[0])[0, b]
            assert (moved.sum(1) == refresh.moved[0, b]).all()
            assert not moved[:, count:].any()
            assert (labels[0][0, b, :, :count] == labels[0][0, b, :1, :count]).all()

    check()


def assert_core_has_most(arrays: Arrays, before: Labels, after: Labels, b: int, count: int) -> None:
    """The reference's masses, summed over heads, say so too, but for roundings of a tie."""
    _, active, parked, _ = expected(arrays)
    apart = int(arrays["parked_len"][b])
    masses = np.concatenate(
        [each[b, :, 0].astype(float).sum(0)[:n] for each, n in ((active, count), (parked, apart))]
    )
    positions = np.concatenate([before[0][0, b, 0, :count], before[1][0, b, :apart]])
    core = np.isin(positions, after[0][0, b, 0, :count])
    assert core.sum() == count
    if 0 < count < len(core):
        assert masses[core].min() >= masses[~core].max() - 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_of_equal_attention_the_lower_positions_win(kernels: Path, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    active, parked = (int(n) for n in numbers.integers(1, 40, 2))
    core = int(numbers.integers(1, active + 1))
    row = np.repeat(numbers.standard_normal((1, 1, 1, 16), np.float32), 2, 1)
    arrays: Arrays = {
        "q": np.repeat(row, 2, 1),
        "k_new": row.copy(),
        "v_new": row.copy(),
        "row_weights": np.ones((1, 2, 1), np.float32),
        "active_len": np.array([active]),
        "parked_len": np.array([parked]),
    }
    # Two kinds of rows, the query and its opposite: within a kind, positions decide.
    kinds = numbers.integers(0, 2, active + parked)
    rows = np.where(kinds[:, None] > 0, row, -row)
    for name in CACHES:
        part = slice(active) if name.endswith("active") else slice(active, None)
        arrays[name] = np.ascontiguousarray(rows[:, :, part])
    labels = labelled(arrays, numbers)
    positions = np.concatenate([labels[0][0, 0, 0], labels[1][0, 0]])
    image = np.r_[np.arange(core), np.arange(active, active + parked)]
    best = sorted(image, key=lambda slot: (-kinds[slot], positions[slot]))[:core]
    with refresh_of(arrays, np.array([core]), labels) as refresh:
        run(step_session(kernels, *key_of(arrays)), arrays)
    assert refresh.moved[0, 0] >= 0
    assert sorted(labels[0][0, 0, 0, :core]) == sorted(positions[best])


def sample(numbers: np.random.Generator) -> Arrays:
    arrays: Arrays = {
        "row_weights": np.ones((2, 1, 1), np.float32),
        "active_len": np.array([5, 4]),
        "parked_len": np.array([6, 3]),
    }
    rows = {"q": 1, "k_new": 1, "v_new": 1, "k_active": 5, "v_active": 5}
    for name, count in (rows | {"k_parked": 6, "v_parked": 6}).items():
        arrays[name] = numbers.standard_normal((2, 2, count, 32), np.float32)
    return arrays


def test_what_is_not_offered_stays(kernels: Path) -> None:
    arrays = sample(np.random.default_rng(0))
    labels = labelled(arrays, np.random.default_rng(1))
    step = step_session(kernels, *key_of(arrays))
    before = {name: array.copy() for name, array in arrays.items()}

    def assert_not_taken(refresh: Refresh, **instead: Any) -> None:
        with refresh:
            run(step, arrays | instead)
        run(step, arrays)  # no longer offered
        assert (refresh.moved == -1).all()
        for name, array in before.items():
            np.testing.assert_array_equal(arrays[name], array)

    core = np.array([3, 3])
    other = arrays["k_active"].copy()
    assert_not_taken(Refresh([other], [arrays["k_parked"]], *labels, host()).of(core))
    assert_not_taken(refresh_of(arrays, core, labels), row_weights=np.zeros((2, 0, 1), np.float32))
    assert_not_taken(refresh_of(arrays, np.array([3, 5]), labels))  # of four active rows
    assert_not_taken(refresh_of(arrays, np.array([-1, 3]), labels))
    assert_not_taken(refresh_of(arrays, core, (labels[0], labels[1][:, :, :4].copy())))
    assert_not_taken(refresh_of(arrays, core, (labels[0][..., :4].copy(), labels[1])))


def test_a_step_that_fails_withdraws_the_offer(kernels: Path) -> None:
    arrays = sample(np.random.default_rng(0))
    labels = labelled(arrays, np.random.default_rng(1))
    refresh = refresh_of(arrays, np.array([3, 3]), labels)
    with pytest.raises(ZeroDivisionError), refresh:
        raise ZeroDivisionError
    run(step_session(kernels, *key_of(arrays)), arrays)
    assert (refresh.moved == -1).all()


def test_a_sequence_with_no_core_is_left_alone(kernels: Path) -> None:
    arrays = sample(np.random.default_rng(2))
    labels = labelled(arrays, np.random.default_rng(3))
    before = {name: arrays[name].copy() for name in CACHES}
    with refresh_of(arrays, np.array([0, 2]), labels) as refresh:
        run(step_session(kernels, *key_of(arrays)), arrays)
    assert refresh.moved[0, 0] == 0
    for name, array in before.items():
        np.testing.assert_array_equal(arrays[name][0], array[0])


def test_without_the_library_nothing_is_taken(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = sample(np.random.default_rng(4))
    labels = labelled(arrays, np.random.default_rng(5))
    monkeypatch.setenv(cpu.SWITCH, "off")
    with refresh_of(arrays, np.array([3, 3]), labels) as refresh:
        run(step_session(kernels, *key_of(arrays)), arrays)
    assert (refresh.moved == -1).all()


def test_labels_with_strides_are_refused() -> None:
    arrays = sample(np.random.default_rng(6))
    positions, parked = labelled(arrays, np.random.default_rng(7))
    apart = np.repeat(positions, 2, -1)[..., ::2], np.repeat(parked, 2, -1)[..., ::2]
    for labels in itertools.product((positions, apart[0]), (parked, apart[1])):
        if all(label.flags.c_contiguous for label in labels):
            continue
        with pytest.raises(ValueError, match="expected contiguous labels"):
            refresh_of(arrays, np.array([3, 3]), labels)
