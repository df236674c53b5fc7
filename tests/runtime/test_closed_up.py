"""RoPE positions that close up where image tokens are dropped before the decoder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avl_plugins.errors import PolicyError
from avl_plugins.policies import Select, parse
from avl_runtime import LVLM
from avl_runtime.generate.given import _closed_up
from avl_runtime.prompts.rows import PromptRows
from avl_runtime.vision.media import Block
from avl_runtime.vision.positions import prompt_positions
from families.support import picture


def rows_of(mask: np.ndarray, blocks: list[Block], axes: int) -> PromptRows:
    positions, following = prompt_positions(mask, blocks, axes)
    none = np.zeros((len(mask), 0), np.float32)
    ids = np.zeros(len(mask), np.int64)
    return PromptRows(ids, mask, none, none[None], positions, following)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[np.ndarray, list[tuple[int, int, int]], np.ndarray]:
    """Which tokens are visual, the grids of pictures, and which tokens stay."""
    mask, grids = [False] * draw(st.integers(0, 3)), []
    for _ in range(draw(st.integers(1, 3))):
        grids.append(tuple(draw(st.integers(1, most)) for most in (2, 3, 4)))
        mask += [True] * int(np.prod(grids[-1]))
        mask += [False] * draw(st.integers(0, 2))
    mask.append(False)
    stays = [draw(st.booleans()) if visual else True for visual in mask]
    return np.array(mask), grids, np.array(stays)


def grid_block(grid: tuple[int, int, int], stays: np.ndarray | None = None) -> Block:
    """Time, row and column of the tokens of a picture that stay, without those that are gone."""
    places = np.indices(grid).reshape(3, -1)
    if stays is None:
        return Block(places, max(grid))
    places = places[:, stays]
    closed = np.array([[sorted(set(axis)).index(one) for one in axis] for axis in places.tolist()])
    closed = closed.reshape(3, -1).astype(np.int64)
    return Block(closed, int(closed.max(initial=-1)) + 1)


@given(prompts())
def test_positions_are_those_of_a_prompt_that_never_had_the_others(
    drawn: tuple[np.ndarray, list[tuple[int, int, int]], np.ndarray],
) -> None:
    mask, grids, stays = drawn
    ends = np.cumsum([int(np.prod(grid)) for grid in grids])
    pictures = np.split(np.flatnonzero(mask), ends)[: len(grids)]
    for axes in (1, 3):
        rows = rows_of(mask, [grid_block(one) for one in grids], axes)
        found = _closed_up(rows, pictures, stays)
        parts = [
            grid_block(one, stays[at])
            for one, at in zip(grids, pictures, strict=True)
            if stays[at].any()
        ]
        want, following = prompt_positions(mask[stays], parts, axes)
        assert found.position_ids[:, stays].tolist() == want.tolist()
        assert found.next_position == following
        same = _closed_up(rows, pictures, np.ones_like(stays))
        assert same.position_ids.tolist() == rows.position_ids.tolist()
        assert same.next_position == rows.next_position


def test_times_with_gaps_stay_where_all_frames_do_and_text_goes_by_the_others() -> None:
    """Times 0, 5 and 10 of four tokens each pass the text, which begins behind row and column 1."""
    times = np.repeat([0, 5, 10], 4)
    cells = np.tile(np.indices((2, 2)).reshape(2, -1), 3)
    mask = np.array([True] * 12 + [False] * 2)
    rows = rows_of(mask, [Block(np.stack([times, *cells]), 2)], 3)
    assert rows.position_ids[0].tolist() == [*times, 2, 3] and rows.next_position == 11
    stays = np.ones(14, np.bool_)
    stays[4:8] = False  # the middle frame
    found = _closed_up(rows, [np.arange(12)], stays)
    assert found.position_ids[0, stays].tolist() == [0] * 4 + [5] * 4 + [2, 3]
    assert found.next_position == 6
    stays[[2, 3, 10, 11]] = False  # the lower row
    found = _closed_up(rows, [np.arange(12)], stays)
    assert found.position_ids[1, stays].tolist() == [0] * 4 + [2, 3]


def test_on_one_axis_it_is_the_prompt_without_the_others(tiny: LVLM) -> None:
    """Logits are those of dense attention over a prompt in which the others never were."""
    images = [picture((168, 168), 1), picture((168, 168), 2)]
    kept = tiny.generate("Which?", images, policy="divprune:tokens=20", max_new_tokens=3)
    spec = "divprune:tokens=20,positions=renumber"
    found = tiny.generate("Which?", images, policy=spec, max_new_tokens=3, return_logits=True)
    assert found.stats.visual_tokens_read == kept.stats.visual_tokens_read == 40
    loaded = tiny.loaded
    prompt = loaded.processor.encode("Which?", images)
    sequence = loaded.sequence(parse(spec))
    from avl_runtime.generate.prefill import finished

    finished(loaded.prefill(sequence, prompt))
    assert sequence.next_position == len(prompt.input_ids) - 288 + 40
    assert str(parse(spec)) == spec
    (action,) = parse(spec).actions()
    assert isinstance(action, Select) and action.closes_up
    with pytest.raises(PolicyError, match="positions = keep, renumber or restore"):
        parse("divprune:positions=gone")
