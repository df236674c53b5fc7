"""Tokens that attend to later ones: where their blocks end, and that no run cuts one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avl_runtime.execute.protocol import Chunk
from avl_runtime.generate.prefix import spans
from avl_runtime.package.manifest import CAUSAL, Reach
from avl_runtime.prompts.prompt import block_ends

MASKS = st.lists(st.booleans(), min_size=1, max_size=40).map(np.array)


@given(mask=MASKS)
def test_a_picture_ends_with_its_last_token(mask: np.ndarray) -> None:
    found = block_ends(mask, Reach(blocks="images"))
    assert found is not None
    for index, end in enumerate(found):
        assert end == index + 1 if not mask[index] else mask[index:end].all()
        assert not mask[index] or end == len(mask) or not mask[end]


def test_a_prompt_may_have_no_blocks() -> None:
    assert block_ends(np.array([True, False, True]), CAUSAL) is None


@given(mask=MASKS, most=st.integers(1, 45))
def test_runs_cut_no_block_and_are_short_where_they_can(mask: np.ndarray, most: int) -> None:
    ends = block_ends(mask, Reach(blocks="images"))
    assert ends is not None
    found = spans(len(mask), most, ends)
    assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == len(mask)
    for begin, end in found:
        assert begin < end and (ends[begin:end] <= end).all()
        assert end - begin <= most or mask[begin:end].all()


@given(count=st.integers(1, 40), most=st.integers(1, 45))
def test_without_blocks_runs_are_as_ever(count: int, most: int) -> None:
    assert spans(count, most, np.arange(count) + 1) == spans(count, most)


def test_rows_that_are_left_of_a_block_see_one_another() -> None:
    hidden, positions = np.zeros((6, 2)), np.arange(10, 16)
    ends = np.array([11, 15, 15, 15, 15, 16])
    chunk = Chunk(hidden, positions, positions[None], hidden[None], ends)
    assert chunk.row_ends.tolist() == [1, 5, 5, 5, 5, 6]
    assert chunk.at(np.array([0, 2, 4, 5])).row_ends.tolist() == [1, 3, 3, 4]
    assert chunk.between(1, 6).row_ends.tolist() == [4, 4, 4, 4, 5]


@pytest.mark.parametrize(
    ("reach", "said"),
    [
        (CAUSAL, "attention to all tokens before"),
        (Reach(5, "images"), "a window of 5 tokens and tokens of a picture that attend"),
        (Reach(blocks="images"), "tokens of a picture that attend to one another"),
    ],
)
def test_a_reach_is_told(reach: Reach, said: str) -> None:
    assert str(reach).startswith(said)
