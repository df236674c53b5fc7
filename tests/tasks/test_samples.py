"""Samples are the same every time, disjoint between splits, long enough, and truly answered."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from avl_runtime.tasks import TASKS, page, sample, samples, scene

ROWS = {"top": 0, "middle": 1, "bottom": 2}
COLUMNS = {"left": 0, "center": 1, "right": 2}


@pytest.mark.parametrize("task", TASKS)
def test_an_index_always_gives_the_same_sample(task: str) -> None:
    one, again = sample(task, "held-out", 7), sample(task, "held-out", 7)
    assert (one.prompt, one.answer) == (again.prompt, again.answer)
    assert one.image.tobytes() == again.image.tobytes()


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_picture(task: str) -> None:
    train = {one.image.tobytes() for one in samples(task, "train", 300)}
    held_out = {one.image.tobytes() for one in samples(task, "held-out", 300)}
    assert len(train) == len(held_out) == 300
    assert not train & held_out


def test_splits_share_no_handwritten_digit() -> None:
    train, _ = page._digits(held_out=False)
    held_out, labels = page._digits(held_out=True)
    assert not {one.tobytes() for one in train} & {one.tobytes() for one in held_out}
    assert len(train) + len(held_out) == 1797
    assert set(labels) == set(range(10))


def test_answers_are_long_where_they_should_be(tiny_checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    for task, least in (("caption", 30), ("ocr", 20)):
        for one in samples(task, "held-out", 50):
            ids = tokenizer.encode(f" {one.answer}", add_special_tokens=False).ids
            assert len(ids) >= least
    assert all(len(one.answer.split()) <= 2 for one in samples("vqa", "held-out", 50))


def test_an_unknown_task_or_split_is_refused() -> None:
    for task, split in (("chess", "train"), ("vqa", "test")):
        with pytest.raises(ValueError, match="expected a task"):
            sample(task, split, 0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.booleans())
def test_questions_are_answered_by_the_scene(seed: int, distinct: bool) -> None:
    """Recomputes every answer from the caption's words instead of the objects."""
    rng = random.Random(seed)
    _, things = scene.draw_scene(rng, (1, 2, 3, 4, 5, 6), distinct_colors=distinct)
    told = scene.caption(things).split(": ")[1].rstrip(".").split(", ")
    found = []
    for phrase in told:
        color, shape, _, row, column = phrase.split()
        found.append((color, shape, ROWS[row], COLUMNS[column], f"{row} {column}"))
    assert found == sorted(found, key=lambda one: (one[2], one[3]))
    assert len({one[:2] for one in found}) == len(found)
    for _ in range(5):
        question = scene.question(rng, things)
        words = question.prompt.replace(",", "").rstrip("?").split()
        if words[0] == "How":
            assert question.answer == str(len(found))
            continue
        named = [one for word in words for one in found if one[0] == word]
        if words[:2] == ["What", "object"]:
            axis, sign = {"above": (2, 1), "below": (2, -1), "left": (3, 1), "right": (3, -1)}[
                words[3]
            ]
            assert len(named) == 2
            first = min(named, key=lambda one: sign * one[axis])
            assert named[0][axis] != named[1][axis]
            assert question.answer == first[0]
        else:
            (only,) = named
            assert question.answer == (only[4] if words[0] == "Where" else only[1])


def test_a_page_shows_ink_only_where_its_lines_are() -> None:
    image, lines = page.draw_page(random.Random(5), held_out=True)
    pixels = np.asarray(image, np.int16)
    dark = (np.abs(pixels - pixels[-1, -1]).sum(-1) > 120).any(1)
    assert len(lines) == page.LINES
    for row in range(page.LINES):
        band = dark[row * page.LINE_HEIGHT : (row + 1) * page.LINE_HEIGHT]
        assert band.any()
