"""Rows that change places by one call of the compiled library, beside NumPy's plain indexing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.cpu.host import Host, host
from avl_runtime.kv.moves import _swapped

KINDS = ((1, "<f4"), (1, "i1"), (24, "i1"), (64, "i1"), (5, "<f2"))  # width and type of a plane


@pytest.fixture(scope="module")
def kernels() -> Host:
    found = host()
    if found is None:
        pytest.skip("no compiled kernels here")
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(KINDS), max_size=4),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 70),
)
def test_rows_swap_in_every_plane_and_head(
    kernels: Host,
    seed: int,
    kinds: list[tuple[int, str]],
    heads: int,
    active_rows: int,
    parked_rows: int,
) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, min(active_rows, parked_rows) + 1))
    out = np.sort(rng.permutation(active_rows)[:count])
    into = np.sort(rng.permutation(parked_rows)[:count])
    active, parked = (
        [rng.integers(-99, 99, (heads, rows, width)).astype(kind) for width, kind in kinds]
        for rows in (active_rows, parked_rows)
    )
    wanted = [one.copy() for one in (*active, *parked)]
    for here, there in zip(wanted[: len(kinds)], wanted[len(kinds) :], strict=True):
        here[:, out], there[:, into] = there[:, into], here[:, out]
    assert _swapped(kernels, active, parked, out, into)
    for found, want in zip((*active, *parked), wanted, strict=True):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(("out", "into"), [([0, 4], [0, 1]), ([-1], [0]), ([0], [6]), ([0], [-1])])
def test_rows_that_are_not_there_move_nothing(
    kernels: Host, out: list[int], into: list[int]
) -> None:
    active, parked = np.arange(8.0).reshape(1, 4, 2), np.arange(12.0).reshape(1, 6, 2)
    before = active.copy(), parked.copy()
    assert not _swapped(kernels, [active], [parked], np.array(out), np.array(into))
    np.testing.assert_array_equal(active, before[0])
    np.testing.assert_array_equal(parked, before[1])


def test_planes_with_gaps_are_left_to_numpy(kernels: Host) -> None:
    active = np.zeros((2, 4, 6), np.float32)[:, :, ::2]
    rows = np.array([0])
    assert not _swapped(kernels, [active], [np.zeros((2, 4, 3), np.float32)], rows, rows)
