"""Measures of replies against worked examples, and properties they must have."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avl_runtime.evaluate.metrics import METRICS, anls, cider_d, exact_match, token_f1

TEXTS = st.text("ab c", max_size=12)


def test_exact_match_looks_past_case_and_space() -> None:
    rate = exact_match([])
    assert rate(" A  Red\nring ", ["blue", "a red ring"]) == 1
    assert rate("a red rings", ["a red ring"]) == 0


def test_token_f1_of_a_worked_example() -> None:
    # 2 of 4 words said, 2 of 3 words wanted: precision 1/2, recall 2/3.
    assert token_f1([])("the big red ring", ["red ring left"]) == pytest.approx(4 / 7)
    assert token_f1([])("", ["x"]) == 0 and token_f1([])("", [""]) == 1


def test_anls_of_a_worked_example() -> None:
    # One of four letters is wrong: 0.75; three of four: below one half, hence 0.
    assert anls([])("ring", ["rang"]) == pytest.approx(0.75)
    assert anls([])("ring", ["rxyz"]) == 0
    assert anls([])("ring", ["square", "RING"]) == 1


def naive_cider_d(reply: list[str], answers: list[list[str]], corpus: list[list[list[str]]]):
    """CIDEr-D written down from the paper's formulas, one n at a time."""

    def grams(words, n):
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    total = 0.0
    for n in range(1, 5):

        def vector(words, n=n):
            found = {}
            for gram, count in grams(words, n).items():
                holding = sum(any(gram in grams(a, n) for a in case) for case in corpus)
                found[gram] = count * (math.log(len(corpus)) - math.log(max(1, holding)))
            return found

        for answer in answers:
            ours, theirs = vector(reply), vector(answer)
            norm = math.sqrt(sum(v * v for v in ours.values())) * math.sqrt(
                sum(v * v for v in theirs.values())
            )
            if norm:
                dot = sum(min(ours.get(g, 0), v) * v for g, v in theirs.items())
                total += math.exp(-((len(reply) - len(answer)) ** 2) / 72) * dot / norm
    return 10 * total / 4 / len(answers)


@given(
    st.lists(
        st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6), min_size=1, max_size=2),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.sampled_from("abcde"), max_size=7),
)
def test_cider_d_is_the_papers(corpus: list[list[list[str]]], reply: list[str]) -> None:
    rate = cider_d([[" ".join(answer) for answer in case] for case in corpus])
    found = rate(" ".join(reply), [" ".join(answer) for answer in corpus[0]])
    assert found == pytest.approx(naive_cider_d(reply, corpus[0], corpus), abs=1e-9)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_measures_stay_in_range_and_know_a_right_answer(reply: str, answers: list[str]) -> None:
    for name, make in METRICS.items():
        rate = make([answers, ["other words"]])
        assert 0 <= rate(reply, answers) <= (10 + 1e-9 if name == "cider" else 1)
        if name != "cider":
            assert rate(answers[0], answers) == 1
