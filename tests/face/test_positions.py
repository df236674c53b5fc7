"""Positions on three axes where pictures follow each other without text in between."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from avl_runtime.vision import Block, prompt_positions


def block(rows: int, columns: int) -> Block:
    """A picture of rows x columns tokens: one moment, and a place for each."""
    row, column = np.indices((rows, columns)).reshape(2, -1)
    return Block(np.stack([np.zeros_like(row), row, column]), max(rows, columns))


SIDES = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(st.lists(st.one_of(st.integers(1, 3), SIDES), min_size=1, max_size=6))
def test_every_part_starts_behind_the_furthest_before_it(
    parts: list[int | tuple[int, int]],
) -> None:
    """A number is a run of text, a pair a picture. The oracle goes token by token."""
    mask: list[bool] = []
    expected: list[tuple[int, int, int]] = []
    start = 0
    for part in parts:
        if isinstance(part, int):
            expected += [(start + i,) * 3 for i in range(part)]
            mask += [False] * part
            start += part
        else:
            rows, columns = part
            expected += [(start, start + r, start + c) for r in range(rows) for c in range(columns)]
            mask += [True] * (rows * columns)
            start += max(rows, columns)
    blocks = [block(*part) for part in parts if isinstance(part, tuple)]
    found, following = prompt_positions(np.array(mask), blocks, 3)
    assert found.T.tolist() == [list(position) for position in expected]
    assert following == start
