"""The device cache against the NumPy cache and against what every row says it is."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device import cache_cases


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.sampled_from(["fp16", "bf16", "fp32"]),
    st.sampled_from([1, 8]),
    st.booleans(),
)
def test_any_sequence_of_moves(
    interpreting: ProcessPoolExecutor, seed: int, dtype: str, row_block: int, park_on_host: bool
) -> None:
    case = (seed, dtype, row_block, park_on_host)
    interpreting.submit(cache_cases.any_sequence_of_moves, *case).result()


@pytest.mark.parametrize("park_on_host", [False, True])
def test_a_batch(interpreting: ProcessPoolExecutor, park_on_host: bool) -> None:
    interpreting.submit(cache_cases.a_batch, 0, park_on_host).result()


def test_lists_longer_than_a_launch_takes(interpreting: ProcessPoolExecutor) -> None:
    interpreting.submit(cache_cases.long_lists, 0).result()
