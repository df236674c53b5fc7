"""The measures of the tasks against brute force and against themselves."""

from __future__ import annotations

import functools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_runtime.tasks import metrics, sample, scene

SHORT = st.text("ABab1 \n", max_size=7)


def brute_force_distance(first: str, second: str) -> int:
    """The recursive definition."""

    @functools.cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (first[i - 1] != second[j - 1]),
        )

    return distance(len(first), len(second))


@given(SHORT, SHORT)
@settings(deadline=None)
def test_edit_distance_is_the_recursive_definition(first: str, second: str) -> None:
    assert metrics.edit_distance(first, second) == brute_force_distance(first, second)


@given(SHORT, SHORT)
@settings(deadline=None)
def test_character_accuracy_is_a_share(prediction: str, answer: str) -> None:
    accuracy = metrics.character_accuracy(prediction, answer)
    assert 0 <= accuracy <= 1
    assert (accuracy == 1) == (prediction == answer)


@pytest.mark.parametrize(
    ("prediction", "answer", "accuracy"),
    [("ABCD", "ABCE", 0.75), ("", "AB", 0), ("ABXXXXXX", "AB", 0), ("AB\nC", "ABC", 2 / 3)],
)
def test_character_accuracy_by_hand(prediction: str, answer: str, accuracy: float) -> None:
    assert metrics.character_accuracy(prediction, answer) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("prediction", "right"), [(" Yes\n", 1), ("yes", 1), ("yes.", 0), ("no", 0), ("", 0)]
)
def test_exact_match_ignores_case_and_margins(prediction: str, right: float) -> None:
    assert metrics.exact_match(prediction, "yes") == right


things = st.builds(
    scene.Thing,
    st.sampled_from(list(scene.COLORS)),
    st.sampled_from(scene.SHAPES),
    st.integers(0, 8),
)


def triples(listed: list[scene.Thing]) -> list[metrics.Triple]:
    return [(thing.color, thing.shape, thing.place) for thing in listed]


@given(st.lists(things, max_size=6))
def test_objects_reads_back_what_caption_wrote(listed: list[scene.Thing]) -> None:
    assert metrics.objects(scene.caption(listed)) == triples(listed)


@given(st.lists(things, max_size=6), st.lists(things, min_size=1, max_size=6))
def test_caption_f1_is_the_harmonic_mean(
    named: list[scene.Thing], right: list[scene.Thing]
) -> None:
    left = triples(right)
    hits = 0
    for triple in triples(named):
        if triple in left:
            left.remove(triple)
            hits += 1
    expected = 0.0
    if hits:
        precision, recall = hits / len(named), hits / len(right)
        expected = 2 * precision * recall / (precision + recall)
    found = metrics.caption_f1(scene.caption(named), scene.caption(right))
    assert found == pytest.approx(expected)


def test_a_caption_cut_short_or_without_sense_still_has_a_score() -> None:
    answer = "there are 2 objects: red ring at top left, blue cross at middle right."
    assert metrics.caption_f1(answer, answer) == 1
    assert metrics.caption_f1(answer[:46], answer) == pytest.approx(2 / 3)
    assert metrics.caption_f1("there are 2 objects: red at left.", answer) == 0
    assert metrics.caption_f1("", answer) == 0


@pytest.mark.parametrize("task", ["caption", "vqa", "ocr"])
def test_the_right_answer_scores_one_and_anothers_scores_less(task: str) -> None:
    drawn = [sample(task, "held-out", index) for index in range(12)]
    for one in drawn:
        assert metrics.score(one, one.answer) == 1
        assert metrics.score(one, f" {one.answer}\n") == 1
    rng = random.Random(0)
    wrong = [metrics.score(one, rng.choice(drawn).answer) for one in drawn]
    assert sum(wrong) / len(wrong) < 0.7
